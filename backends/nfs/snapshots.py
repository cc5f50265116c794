"""
Snapshots on a share, and the copies that new volumes and restored ones are made of.

A child process copies through the control mount; the agent gives the finished copy its
place. Copies share their blocks where the server can (NFS 4.2 on XFS or btrfs).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backends.base import Fill, Snapshot, Volume
from backends.errors import InvalidRequestError, SnapshotExistsError
from backends.nfs.errors import NfsError
from backends.nfs.options import is_direct, owner_of
from backends.nfs.records import complete
from backends.nfs.share import CALL_BUDGET_S, Share
from backends.nfs.shares import Shares
from backends.snapshots import not_found
from backends.system import clock
from backends.system.clock import Deadline
from backends.system.copying import CopyError, Destination, Progress, copy_tree


class NfsSnapshots:
    """The snapshots of the volumes on *shares*; see `backends.snapshots.Snapshots`."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares

    def create(
        self,
        volume: Volume,
        name: str,
        *,
        mounted_at: Path | None,
        progress: Progress,
    ) -> Snapshot:
        """Copy the volume's directory, after this node's cache of it was written."""
        volume, share = self._on_share(volume)
        self._call(share, volume, "require_free", snapshot=name)
        source = self.data_directory(volume, "")
        flush = [] if mounted_at is None else [mounted_at]
        with copy_on(share, volume) as (token, destination):
            with _as_nfs_errors(share):
                copied = copy_tree(source, destination, progress=progress, flush=flush)
            snapshot = Snapshot.of_copy(name, clock.now_rfc3339(), copied)
            facts = asdict(snapshot)
            self._call(
                share, volume, "keep_snapshot", token=token, snapshot=name, facts=facts
            )
        return snapshot

    def all(self, volume: Volume) -> list[Snapshot]:
        """Return the snapshots, oldest first."""
        volume, share = self._on_share(volume)
        found = self._call(share, volume, "snapshots")
        snapshots = [Snapshot.of_facts(str(facts["name"]), facts) for facts in found]
        return sorted(snapshots, key=lambda each: (each.created_at, each.name))

    def remove(self, volume: Volume, name: str) -> None:
        """Rename it into the share's trash."""
        volume, share = self._on_share(volume)
        self._call(share, volume, "remove_snapshot", snapshot=name)

    def restore(
        self,
        volume: Volume,
        name: str,
        *,
        keep_as: str,
        progress: Progress,
        exchanging: AbstractContextManager[None],
    ) -> None:
        """Copy the snapshot, then have the agent swap the two directories."""
        volume, share = self._on_share(volume)
        self._call(share, volume, "require_free", snapshot=keep_as)
        source = self.data_directory(volume, name)
        with copy_on(share, volume) as (token, destination):
            with _as_nfs_errors(share):
                copied = copy_tree(source, destination, progress=progress)
            facts = asdict(Snapshot.of_copy(keep_as, clock.now_rfc3339(), copied))
            swap = {"token": token, "keep_as": keep_as, "facts": facts}
            with exchanging:
                self._call(share, volume, "swap", **swap)

    def data_directory(self, volume: Volume, snapshot: str) -> Path:
        """Return where on the control mount the bytes are; not for the daemon."""
        volume, share = self._on_share(volume)
        below = self._call(share, volume, "locate", snapshot=snapshot)
        return share.control_mount / str(below)

    def _on_share(self, volume: Volume) -> tuple[Volume, Share]:
        """Return the volume with complete options, and its share."""
        volume = complete(volume)
        if is_direct(volume):
            raise InvalidRequestError(
                f"'{volume.name}' is a whole export: it has no snapshots",
                hint="create it with -o server= and -o share= instead of device=",
            )
        return volume, self._shares.of(volume)

    def _call(
        self, share: Share, volume: Volume, operation: str, **request: Any
    ) -> Any:
        try:
            return share.call(
                operation,
                deadline=Deadline(CALL_BUDGET_S),
                name=volume.name,
                id=volume.id,
                **owner_of(volume),
                **request,
            )
        except NfsError as error:
            if error.code == "NFS-NOSNAPSHOT":
                raise not_found(volume, str(request["snapshot"])) from error
            if error.code == "NFS-SNAPSHOT":
                raise SnapshotExistsError(
                    f"'{volume.name}': {error.cause}", hint=error.hint
                ) from error
            raise


@contextmanager
def copy_on(share: Share, volume: Volume) -> Iterator[tuple[str, Destination]]:
    """
    Yield the token of a new copy on *share*, and where to copy to.

    A copy that nobody gave a place until the end is thrown away by the next survey.
    """
    token = secrets.token_hex(8)
    share.copying.add(token)
    try:
        begun = share.call(
            "begin_copy",
            deadline=Deadline(CALL_BUDGET_S),
            token=token,
            **owner_of(volume),
        )
        yield (
            token,
            Destination(
                share.control_mount / begun["path"],
                fsync=True,
                uid=begun["uid"],
                gid=begun["gid"],
            ),
        )
    finally:
        share.copying.discard(token)
        share.survey_soon()


def filled(
    share: Share, volume: Volume, fill: Fill, create: Callable[[str], Any]
) -> Any:
    """Return what *create* makes of a copy's token, after *fill* has filled it."""
    with copy_on(share, volume) as (token, destination):
        with _as_nfs_errors(share):
            fill(destination)
        return create(token)


@contextmanager
def _as_nfs_errors(share: Share) -> Iterator[None]:
    """Give a full server the code that users can look up."""
    try:
        yield
    except CopyError as error:
        if error.no_space:
            raise NfsError("NOSPACE", error.cause, str(share.export)) from error
        raise
