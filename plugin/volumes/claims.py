"""
Volumes as schedulers claim them: with a size, perhaps on a node, perhaps as a copy.

A volume that is there already is the one that is meant, if it is as it was asked for.
A size is a limit that storage holds; where it cannot, it is written down, and told.
"""

from __future__ import annotations

import errno
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

from backends.base import Volume
from backends.errors import (
    BackendError,
    InvalidRequestError,
    RemoraError,
    VolumeExistsError,
)
from backends.replication_options import ReplicationOptions
from plugin.errors import (
    NoRoomError,
    NotOwnerError,
    OutOfRangeError,
    PeerUnreachableError,
    StoreError,
)
from plugin.limits import LONG_DEADLINE_S
from plugin.model import VolumeRecord, check_name
from plugin.ownership.wishes import Wish
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.creation import Creation
from plugin.volumes.elsewhere import Elsewhere, asked_in
from plugin.volumes.options import Resolved
from plugin.volumes.publishing import EXCLUSIVE_MODES
from plugin.volumes.views import VolumeView

log = logging.getLogger(__name__)
_SIZE_MIN: Final = 1024**2
_FULL: Final = frozenset({errno.EDQUOT, errno.ENOSPC})
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
# Another node gets less time than our own caller gives us.
_ASK_SHARE: Final = 0.8


class ClaimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is claimed: volume *name* with *options*, as a user gives them.

    Of the sizes 0 is none. *enforce*: without a limit that holds it is refused. *modes*
    are numbers of CSI's access modes, *node* is where its first copy should be.
    """

    name: str
    options: dict[str, str] = {}
    required_bytes: _Size = 0
    limit_bytes: _Size = 0
    enforce: bool = False
    modes: list[int] = []
    node: str = ""
    claim: str = ""
    wait_s: Annotated[float, msgspec.Meta(gt=0, le=LONG_DEADLINE_S)] = 10.0


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """
    A volume as a scheduler sees it.

    ``capacity_bytes`` is 0 if nobody asked for a size, ``limited`` whether storage
    holds it. ``nodes`` are the only ones that may keep it, if it is bound to some.
    ``fault`` is "" if nothing is wrong.
    """

    name: str
    created_at: str
    capacity_bytes: int
    limited: bool
    source: str
    exclusive: bool
    nodes: list[str]
    used: bool
    fault: str


@dataclass(frozen=True, slots=True)
class Claims:
    """Makes claimed volumes, here or elsewhere, and tells of them."""

    creation: Creation
    catalogue: Catalogue
    elsewhere: Elsewhere

    def create(self, asked: ClaimRequest) -> Claim:
        """
        Return the claimed volume, made now or before.

        Raises:
            InvalidRequestError: it can never be made like that.
            VolumeExistsError: the name has another size, other options or source.
            OutOfRangeError, NoRoomError: it would be too large.
            RemoraError: as `Creation.create`, or what the node says that has to do it.

        """
        check_name(asked.name)
        stored = self.catalogue.find(asked.name)
        if stored is None and (node_id := self._wished(asked)):
            try:
                self._do_at(node_id, asked)
                return self.get(asked.name)
            except (PeerUnreachableError, StoreError) as error:
                # The wish for a node is only that: the bytes follow their containers.
                log.info("made here, not on '%s': %s", asked.node, error)
        try:
            self._create_here(asked)
        except NotOwnerError:
            source = self._source_node(asked)
            if not source:
                raise
            self._do_at(source, asked)
        return self.get(asked.name)

    def grant(self, wish: Wish) -> None:
        """Make a volume here for another node; raises as `create`."""
        self._create_here(asked_in(wish, ClaimRequest))

    def get(self, name: str) -> Claim:
        """Return the volume; raises VolumeNotFoundError."""
        views = self.creation.views
        view = views.get(name)
        record, status = view.record, view.status()
        members = ReplicationOptions.of(record.options).members
        return Claim(
            name=record.name,
            created_at=record.created_at,
            capacity_bytes=capacity_of(record),
            limited="size" in record.options,
            source=record.requested.get("from", ""),
            exclusive=self.creation.ownership.exclusive(record),
            nodes=sorted(members),
            used=bool(view.references) or status.get("ownership") == "owned",
            fault=self._fault(view, status),
        )

    def _fault(self, view: VolumeView, status: Mapping[str, object]) -> str:
        """Return what is wrong with the volume, the worst first; "" if nothing is."""
        ownership = self.creation.ownership
        if view.published and view.ownership is not None:
            owner = view.ownership.owner
            if owner not in ("", ownership.own.name):
                return f"node '{owner}' has taken it: its writers here are ended"
            if (why := ownership.membership.fault()) and ownership.exclusive(
                view.record
            ):
                return f"its writers here may stand still: {why}"
        if error := status.get("error"):
            return str(error)
        warnings = status.get("warnings")
        if isinstance(warnings, Sequence) and warnings:
            return str(warnings[0])
        healthy = self.creation.views.is_healthy(view.record)
        return "" if healthy else "its storage does not answer"

    def all(self) -> list[Claim]:
        """Return every volume, the oldest first; what cannot be read is left out."""
        found = []
        for each in self.creation.views.all():
            try:
                found.append(self.get(each.name))
            except RemoraError as error:
                log.debug("'%s' is not listed: %s", each.name, error)
        return sorted(found, key=lambda each: (each.created_at, each.name))

    def _create_here(self, asked: ClaimRequest) -> None:
        resolver = self.creation.resolver
        source = self._source(asked)
        resolved = resolver.resolve(asked.options, source, name=asked.name)
        self._require_modes(resolved, asked)
        options, asked_bytes = dict(asked.options), 0
        stored = self.catalogue.find(asked.name)
        if stored is not None and stored.record.phase == "ready":
            require_size(stored.record, asked.required_bytes, asked.limit_bytes)
            if "size" in stored.record.requested:
                options["size"] = stored.record.requested["size"]
        elif size_bytes := wanted_size(asked.required_bytes, asked.limit_bytes):
            self.require_room(resolved, size_bytes)
            if self._is_limitable(resolved, asked, size_bytes):
                options["size"] = str(size_bytes)
            else:
                asked_bytes = size_bytes
        try:
            self.creation.create(
                asked.name,
                options,
                deadline_s=asked.wait_s,
                asked_bytes=asked_bytes,
                claim=asked.claim,
            )
        except BackendError as error:
            raise _explained(error, options) from error

    def _require_modes(self, resolved: Resolved, asked: ClaimRequest) -> None:
        meant = _as_volume(resolved, asked.name)
        if not resolved.backend.exclusive(meant):
            return
        for mode in asked.modes:
            if mode not in EXCLUSIVE_MODES:
                raise InvalidRequestError(
                    f"access mode {mode} is for several nodes at once: a volume of "
                    "this kind is in use on one at a time",
                    hint="ReadWriteOnce; a share (NFS) has all modes",
                )

    def _is_limitable(
        self, resolved: Resolved, asked: ClaimRequest, size_bytes: int
    ) -> bool:
        """Return whether storage here can hold a volume to a size."""
        sized = {**asked.options, "size": str(size_bytes)}
        try:
            meant = self.creation.resolver.resolve(
                sized, self._source(asked), name=asked.name
            )
            meant.backend.require_creatable(
                _as_volume(meant, asked.name), filled="from" in sized
            )
        except InvalidRequestError as error:
            if asked.enforce:
                raise
            log.info("the size of '%s' is not held: %s", asked.name, error)
            resolved.backend.require_creatable(
                _as_volume(resolved, asked.name), filled="from" in asked.options
            )
            return False
        return True

    def require_room(self, resolved: Resolved, size_bytes: int) -> None:
        """Raise if the storage could never, or not now, have so many bytes."""
        for storage in resolved.backend.storages():
            if resolved.backend.traits.catalogue_on_storage:
                return  # which of its shares is meant, nobody has asked yet
            total, available = storage.total_bytes, storage.available_bytes
            if total is not None and size_bytes > total:
                raise OutOfRangeError(
                    f"{size_bytes} bytes: the pool of this node has {total} in all"
                )
            if available is not None and size_bytes > available:
                raise NoRoomError(
                    f"{size_bytes} bytes: the pool of this node has {available} left"
                )

    def _source(self, asked: ClaimRequest) -> VolumeRecord | None:
        """Return the volume that is to be copied, None if none is."""
        named = asked.options.get("from", "").partition("@")
        if not named[0]:
            return None
        stored = self.catalogue.find(asked.name)
        if stored is not None and stored.record.phase == "ready":
            return stored.record  # the source may be gone by now
        views = self.creation.views
        if named[2]:
            return views.with_snapshots(named[0])
        return views.existing(named[0]).record

    def _source_node(self, asked: ClaimRequest) -> str:
        """Return the id of the other node that has what is to be copied, or ""."""
        source = self._source(asked)
        if source is None:
            return ""
        snapshot = asked.options["from"].partition("@")[2]
        return self.elsewhere.node_with(source, snapshot)

    def _wished(self, asked: ClaimRequest) -> str:
        """Return the id of another node on which the first copy should be, or ""."""
        ownership = self.creation.ownership
        if not asked.node or ownership.membership.alone:
            return ""
        if "from" in asked.options or asked.node == ownership.own.name:
            return ""
        try:
            found = ownership.nodes.find(asked.node)
        except RemoraError:
            return ""  # a node that the scheduler knows and the cluster does not
        return found.record.id if found.alive and not found.record.drained else ""

    def _do_at(self, node_id: str, asked: ClaimRequest) -> None:
        wait_s = asked.wait_s * _ASK_SHARE
        request: Any = msgspec.to_builtins(
            msgspec.structs.replace(asked, wait_s=wait_s * _ASK_SHARE)
        )
        self.elsewhere.do(node_id, "create", str(uuid.uuid4()), request, wait_s=wait_s)
        # The record comes with the mirror's watch.
        self.creation.ownership.heads.refresh(wait_s)


def capacity_of(record: VolumeRecord) -> int:
    """Return the size that the volume was asked for with; 0 if with none."""
    size = record.options.get("size", "")
    return int(size) if size.isdigit() else record.asked_bytes


def wanted_size(required_bytes: int, limit_bytes: int) -> int:
    """Return the size to make a volume with, 0 for none; raises OutOfRangeError."""
    if not required_bytes and not limit_bytes:
        return 0
    wanted = max(required_bytes or limit_bytes, _SIZE_MIN)
    if limit_bytes and wanted > limit_bytes:
        raise OutOfRangeError(
            f"at least {wanted} bytes and at most {limit_bytes}: there is no such size",
            hint=f"{_SIZE_MIN} is the smallest",
        )
    return wanted


def require_size(record: VolumeRecord, required_bytes: int, limit_bytes: int) -> None:
    """Raise VolumeExistsError if the volume has not a size that was asked for."""
    has = capacity_of(record)
    if has and (has < required_bytes or (limit_bytes and has > limit_bytes)):
        raise VolumeExistsError(
            f"volume '{record.name}' exists with {has} bytes, asked for "
            f"{required_bytes or limit_bytes}",
            hint="use another name",
        )


def _explained(error: BackendError, options: Mapping[str, str]) -> RemoraError:
    """Return *error*, as one that says so if the bytes had no room."""
    if getattr(error.__cause__, "errno", 0) not in _FULL:
        return error
    if "from" in options and "size" in options:
        return OutOfRangeError(
            f"'{options['from']}' has more than {options['size']} bytes in it",
            hint="ask for more",
        )
    return NoRoomError(error.cause, hint=error.hint)


def _as_volume(resolved: Resolved, name: str) -> Volume:
    """Return the volume that would be made."""
    return Volume(
        id=str(uuid.UUID(int=0)),
        name=name,
        options=resolved.options,
        created_at="",
        requested=resolved.requested,
    )
