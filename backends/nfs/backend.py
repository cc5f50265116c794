"""The backend `nfs` against the contract: what is done where, and in which order."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from backends.base import ANONYMOUS, NOTHING, Fill, Storage, Volume
from backends.errors import (
    BackendError,
    DeadlineError,
    InvalidRequestError,
    RemoraError,
    VolumeExistsError,
)
from backends.nfs import options as nfs_options
from backends.nfs import server
from backends.nfs.errors import NfsError
from backends.nfs.identity import Known, NothingKnown
from backends.nfs.options import export_of, is_direct, owner_of, subdir_of
from backends.nfs.records import complete, on_share, volume_of
from backends.nfs.share import CALL_BUDGET_S, Share
from backends.nfs.shares import Shares
from backends.nfs.snapshots import NfsSnapshots, filled
from backends.nfs.traits import TRAITS
from backends.nfs.volume_mounts import VolumeMounts, source_of
from backends.options import differences
from backends.system import mounts
from backends.system.clock import Deadline, now_rfc3339, pause
from backends.system.mounts import VolumeUser

log = logging.getLogger(__name__)

_MOUNT_BUDGET_S: Final = 90.0
_BUSY_POLL_S: Final = 0.2
# Another node is at it just now.
_BUSY: Final = ("NFS-CREATING", "NFS-CHANGING")
# What others have put on a share is told of once; no more lines than these.
_TOLD_MAX: Final = 1000


class NfsBackend:
    """
    Volumes as directories of NFS exports.

    *state_dir* holds control mounts, *node* names this node in leases, and *known* says
    which shares are the right ones.
    """

    kind = "nfs"
    traits = TRAITS

    def __init__(
        self, state_dir: Path, *, node: str, known: Known | None = None
    ) -> None:
        self._shares = Shares(
            state_dir / "nfs", node=node, known=known or NothingKnown()
        )
        self._mounts = VolumeMounts(self._shares)
        self.snapshots = NfsSnapshots(self._shares)
        self._told: set[str] = set()

    def watch(self, options: Mapping[str, str]) -> None:
        """Watch the share that *options* name, if they name one."""
        if "server" in options and "share" in options:
            complete = self.merge_options(self.default_options(), options)
            if complete["mountMode"] != "direct":
                self._shares.configure(complete)

    def parse_options(self, raw: Mapping[str, str]) -> dict[str, str]:
        """Return *raw* in canonical form; see `Backend.parse_options`."""
        return nfs_options.parse_options(raw)

    def default_options(self, name: str = "", /) -> dict[str, str]:
        """
        Return the options of volume *name*, which was given none but its share.

        Nobody could name an anonymous one again: its directory goes with it.
        """
        goes = {"onDelete": "delete"} if ANONYMOUS.fullmatch(name) else {}
        return nfs_options.DEFAULTS | goes

    def merge_options(
        self, base: Mapping[str, str], over: Mapping[str, str]
    ) -> dict[str, str]:
        """Return *base* with *over* on top, mount options one by one."""
        return nfs_options.merge_options(base, over)

    def claims(self, raw: Mapping[str, str]) -> bool:
        """Return whether *raw* names a server, or is the built-in driver's form."""
        keys = {key.lower() for key in raw}
        return bool(keys & {"server", "share", "device"}) or "type" in keys

    def implied(self, raw: Mapping[str, str], /) -> Collection[str]:
        """Return what a line of mount options, or a share, says beside itself."""
        return nfs_options.implied(raw)

    def require_creatable(self, volume: Volume, *, filled: bool) -> None:
        """Raise unless the options name a share; its server is not asked."""
        nfs_options.require_complete(volume.options)
        if filled and volume.requested.get("existing") == "adopt":
            raise InvalidRequestError(
                "existing=adopt takes over the bytes that are there: nothing can be "
                "copied",
                hint="leave one of the two out",
            )

    def create(
        self,
        volume: Volume,
        *,
        deadline_s: float,
        fill: Fill | None = None,
        beside: Mapping[str, bytes] = NOTHING,
    ) -> Volume:
        """Claim name and directory on the share; both have one winner."""
        del beside  # this node has no copy
        self.require_creatable(volume, filled=fill is not None)
        budget_s = min(deadline_s, CALL_BUDGET_S)
        if is_direct(volume):
            server.ping(export_of(volume.options))
            return volume
        share = self._shares.of(volume)

        def claim(content: str) -> Any:
            return self._claim(share, volume, Deadline(budget_s), content)

        try:
            marker = claim("") if fill is None else filled(share, volume, fill, claim)
        except (BackendError, DeadlineError):
            self._shares.forget(share)
            raise
        found = volume_of(marker, volume.options)
        if dict(found.requested) != dict(volume.requested):
            raise VolumeExistsError(
                f"volume '{volume.name}' exists on {share.export} with other options: "
                f"{differences(volume.requested, found.requested)}",
                hint="use another name, or remove it first",
            )
        share.survey_soon()
        return found

    def _claim(
        self, share: Share, volume: Volume, deadline: Deadline, content: str
    ) -> Any:
        """
        Return the marker of the volume, made or found.

        *content* is the token of the copy that it shall have, "" for an empty one.
        """
        adopt = volume.options["existing"] == "adopt" and not content
        return _patiently(
            share,
            "create",
            deadline,
            marker={
                "id": volume.id,
                "name": volume.name,
                "subdir": subdir_of(volume),
                "adopt": adopt,
                "requested": dict(volume.requested),
                "options": dict(volume.options),
                "created_at": volume.created_at,
            },
            content=content,
            **_wishes(volume, adopt=adopt, filled=bool(content)),
            **owner_of(volume),
        )

    def discard(self, volume: Volume, *, deadline_s: float) -> None:
        """Take back claims and an empty directory; a finished volume stays."""
        located = on_share(volume)
        if located is None:
            return  # nothing was made
        volume, watched = located, self._shares.watched()
        share = self._shares.of(volume)
        try:
            share.call(
                "discard",
                deadline=Deadline(min(deadline_s, CALL_BUDGET_S)),
                name=volume.name,
                id=volume.id,
                **owner_of(volume),
            )
        finally:
            if share not in watched:
                self._shares.forget(share)

    def remove(self, volume: Volume, *, deadline_s: float) -> None:
        """Remove the volume from the share as `onDelete` says."""
        located = on_share(volume)
        if located is None:
            return
        volume, share = located, self._shares.of(located)
        done = _patiently(
            share,
            "remove",
            Deadline(min(deadline_s, CALL_BUDGET_S)),
            name=volume.name,
            id=volume.id,
            on_delete=volume.options["onDelete"],
            time=now_rfc3339().replace(":", ""),
            **owner_of(volume),
        )
        log.info("%s on %s: %s", volume.name, share.export, done)
        share.survey_soon()

    def exclusive(self, volume: Volume) -> bool:
        """Return whether that was asked for; any node may mount the others."""
        return volume.options.get("exclusive") == "true"

    def copy_directory(self, volume: Volume) -> Path | None:
        """Return None: the server has the bytes."""
        del volume
        return None

    def copies(self) -> Collection[str]:
        """Return nothing: the server has the bytes."""
        return ()

    def mount(self, volume: Volume, target: Path, *, deadline_s: float) -> None:
        """Take the lease, mount, and see that it answers; else leave nothing."""
        self._mounts.mount(volume, target, Deadline(min(deadline_s, _MOUNT_BUDGET_S)))

    def unmount(self, volume: Volume, target: Path, *, deadline_s: float) -> None:
        """Unmount, by force if the server is dead; then give the lease back."""
        del deadline_s  # each step has its own
        self._mounts.unmount(volume, target)

    def users(self, volume: Volume, target: Path) -> list[VolumeUser]:
        """Return who has the volume mounted elsewhere: its source names it."""
        return self._mounts.users(volume, target)

    def status(self, volume: Volume) -> Mapping[str, object]:
        """
        Return the share's last known state and the mount's effective options.

        Of a record that says nonsense, that: an error would be taken for no volume.
        """
        try:
            volume = complete(volume)
        except BackendError as error:
            return {"replication": "shared", "health": "error", "error": str(error)}
        source, root = source_of(volume)
        facts: dict[str, object] = {
            "replication": "shared",
            "source": source if root == "/" else f"{source.rstrip('/')}{root}",
        }
        if not is_direct(volume):
            state = self._shares.of(volume).state
            facts |= {
                "health": state.state,
                "checked_at": state.checked_at,
                "total_bytes": state.total_bytes,
                "available_bytes": state.available_bytes,
            }
            if state.error:
                facts["error"] = state.error
        for entry in mounts.mount_table():
            is_its = entry.mount_point.endswith(f"/{volume.id}")
            if is_its and entry.filesystem.startswith("nfs"):
                facts["effective_options"] = entry.super_options
        warnings = nfs_options.warnings_of(volume.options)
        if warnings:
            facts["warnings"] = warnings
        return facts

    def require_removable(self, volume: Volume) -> None:
        """Raise NfsError unless the volume's server answers."""
        if located := on_share(volume):
            self._shares.of(located).require_server(Deadline(CALL_BUDGET_S))

    def storages(self) -> list[Storage]:
        """Return every share that is watched."""
        return self._shares.storages()

    def place_of(self, share: str) -> dict[str, str]:
        """Return the options of a share that is written as SERVER:/PATH."""
        return nfs_options.place_of(share)

    def accept(self, name: str) -> str:
        """
        Let what answers as the share *name* be the right one; return its identity.

        Raises:
            InvalidRequestError: no share of that name is used here.
            NfsError, DeadlineError: it did not answer.

        """
        place = self.place_of(name)
        for share in self._shares.watched():
            if place.items() <= share.export.options.items():
                return share.accept(Deadline(CALL_BUDGET_S))
        raise InvalidRequestError(
            f"no share '{name[:255]}' is used here", hint="remora status names them"
        )

    def data_directory(self, volume: Volume, snapshot: str = "") -> Path:
        """Return where on the control mount the bytes are; not for the daemon."""
        return self.snapshots.data_directory(volume, snapshot)

    def discover(self) -> Iterator[Volume]:
        """Yield the volumes of every share as it was last seen."""
        for share in self._shares.watched():
            for marker in share.state.markers or ():
                if marker.get("state") != "ready":
                    continue
                try:
                    yield volume_of(marker, self._shares.ours(share))
                except BackendError as error:
                    self._tell(f"passed over on {share.export}: {error}")

    def knows(self, volume: Volume) -> bool:
        """Return whether the volume's share was read, and is not away now."""
        located = on_share(volume)
        if located is None:
            return False
        state = self._shares.of(located).state
        return state.state == "ok" and state.markers is not None

    def find(
        self, name: str, *, deadline_s: float, beside: Volume | None = None
    ) -> Volume | None:
        """Return the volume of that name from the one share that has it."""
        on = beside and (on_share(beside) or beside)
        found = self._shares.find(name, Deadline(deadline_s), on=on)
        return (
            None if found is None else volume_of(found[1], self._shares.ours(found[0]))
        )

    def rewrite(self, volume: Volume, *, deadline_s: float) -> None:
        """
        Have the share of *volume* say what it was asked for with, and what it is.

        Raises:
            NfsError: another node has it mounted, or it is another volume; or as said.

        """
        self._shares.of(volume).call(
            "rewrite",
            deadline=Deadline(deadline_s),
            name=volume.name,
            id=volume.id,
            requested=dict(volume.requested),
            options=dict(volume.options),
            **owner_of(volume),
        )

    def collect_garbage(self, *, deadline_s: float) -> int:
        """Delete what removals have put into the shares' trash."""
        deadline, freed = Deadline(deadline_s), 0
        for share in self._shares.watched():
            if share.state.state != "ok" or not share.state.thrown_away:
                continue
            try:
                freed += share.empty_trash(deadline)
            except RemoraError as error:
                log.info("the trash of %s stays for now: %s", share.export, error)
        return freed

    def _tell(self, line: str) -> None:
        """Log *line* once, as far as can be remembered."""
        if line not in self._told and len(self._told) < _TOLD_MAX:
            self._told.add(line)
            log.warning("%s", line)

    def close(self) -> None:
        """Stop watching; mounted volumes stay mounted."""
        self._shares.close()


def _patiently(share: Share, operation: str, deadline: Deadline, **request: Any) -> Any:
    """Return the answer to a request once no other node makes or removes the volume."""
    while True:
        try:
            return share.call(operation, deadline=deadline, **request)
        except NfsError as error:
            if error.code not in _BUSY or deadline.passed():
                raise
        pause(_BUSY_POLL_S)


def _wishes(volume: Volume, *, adopt: bool, filled: bool) -> dict[str, int | None]:
    """Return owner and mode for the directory; None leaves it as it is."""
    if adopt:
        chosen: Mapping[str, str] = {}
    elif filled:  # what was copied keeps its own, but for what was asked for
        chosen = volume.requested
    else:
        chosen = {"uid": "0", "gid": "0", **volume.options}
    return {
        "own_uid": int(chosen["uid"]) if "uid" in chosen else None,
        "own_gid": int(chosen["gid"]) if "gid" in chosen else None,
        "mode": int(chosen["mode"], 8) if "mode" in chosen else None,
    }
