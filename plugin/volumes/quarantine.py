"""
The use cases of what was set apart: list, compare, export, clone, discard.

The cluster's records say which node has what; the bytes can be used on that node alone.
Bytes of a volume that was removed while its node was away may be here as well: its tomb
is still known, under its id if another volume has its name.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import msgspec

from backends.errors import (
    BackendError,
    InvalidRequestError,
    RemoraError,
    VolumeBusyError,
    VolumeExistsError,
    one_line,
)
from backends.rsync.quarantine import Change, Quarantine, Tree, check_commit
from backends.system.copying import Destination, copy_tree
from plugin.errors import NotOwnerError, VolumeNotFoundError
from plugin.limits import SHORT_DEADLINE_S
from plugin.logs import fields
from plugin.membership.quarantine_records import QuarantineRecord
from plugin.model import VolumeRecord, check_name
from plugin.ownership.view import OwnershipView
from plugin.replication import quarantine
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.copying_under_way import CopyingUnderWay
from plugin.volumes.creation import Creation
from plugin.volumes.operations import Operations
from plugin.volumes.options import OptionResolver
from plugin.volumes.patience import CallerGone

log = logging.getLogger(__name__)
# So many may read at once: each keeps a thread of the control socket for a long time.
_READERS_MAX: Final = 2
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _Known:
    """A volume by its id; *record* is None if it was removed."""

    id: str
    name: str
    record: VolumeRecord | None


class QuarantinedCommit(msgspec.Struct, frozen=True, kw_only=True):
    """One set of bytes that a node has set apart; *path* is "" on other nodes."""

    volume: str
    volume_id: str
    removed: bool
    node: str
    node_id: str
    this_node: bool
    commit: str
    set_apart_at: str
    files: int
    size_bytes: int
    whole: bool
    path: str


@dataclass(frozen=True, slots=True)
class QuarantineService:
    """What can be done with what nodes have set apart of volumes."""

    catalogue: Catalogue
    resolver: OptionResolver
    operations: Operations
    copying: CopyingUnderWay
    creation: Creation
    ownership: OwnershipView
    quarantine: Quarantine
    readers: threading.BoundedSemaphore = field(
        default_factory=partial(threading.BoundedSemaphore, _READERS_MAX)
    )

    def all(self, name: str = "") -> list[QuarantinedCommit]:
        """
        Return what is set apart in the cluster, of all volumes or of *name*.

        Raises:
            VolumeNotFoundError: there is no such volume, and no removed one is known.

        """
        wanted = self._find(name).id if name else ""
        names = self.catalogue.names()
        tombs = self.ownership.heads.tombs()
        own = self.ownership.node_id
        trees = self._trees()
        paths = {
            (each.volume_id, own, each.commit): str(each.path) for each in trees or ()
        }
        found = {
            (each.volume_id, each.node_id, each.commit): each.quarantined
            for each in self.ownership.quarantine_records.all()
        }
        if trees is not None:
            # For this node the disk counts; the reconciler soon mends the records.
            found = {k: v for k, v in found.items() if k[1] != own or k in paths}
            for tree in trees:
                key = (tree.volume_id, own, tree.commit)
                if key not in found and wanted in ("", tree.volume_id):
                    found[key] = quarantine.record_of(self.quarantine, tree)
        rows = [
            _row(
                key,
                quarantined,
                volume=names.get(key[0], "")
                or (tombs[key[0]].name if key[0] in tombs else key[0]),
                removed=key[0] not in names,
                node=self.ownership.name_of(key[1]),
                own=own,
                path=paths.get(key, ""),
            )
            for key, quarantined in found.items()
            if wanted in ("", key[0])
        ]
        return sorted(rows, key=lambda row: (row.volume, row.set_apart_at, row.node))

    def differences(
        self, name: str, commit: str, *, contents: bool, caller_gone: CallerGone
    ) -> Iterator[Change | None]:
        """
        Return how the bytes of *commit* differ from the volume's copy here.

        None means: nothing new at the moment. See `Quarantine.differences`.

        Raises:
            NotOwnerError: they are on another node, which is named.
            InvalidRequestError: there is no such commit.
            VolumeBusyError: others read already, or the caller left.

        """
        _, tree = self._here(name, commit, verb="diff")
        return self._reading(
            lambda: self.quarantine.differences(tree, contents=contents), caller_gone
        )

    def archive(
        self, name: str, commit: str, *, caller_gone: CallerGone
    ) -> Iterator[bytes]:
        """Return the bytes of *commit* as a tar archive; raises as `differences`."""
        _, tree = self._here(name, commit, verb="export")
        return self._reading(lambda: self.quarantine.archive(tree), caller_gone)

    def clone(
        self,
        name: str,
        commit: str,
        new: str,
        options: Mapping[str, str],
        *,
        caller_gone: CallerGone,
    ) -> None:
        """
        Make volume *new* with the bytes of *commit*; see `Creation.clone`.

        Raises:
            NotOwnerError, InvalidRequestError: as `differences`.
            VolumeExistsError: the name is taken.
            BackendError, DeadlineError, StoreError, VolumeBusyError: as they say; no
                volume is left.

        """
        check_name(new)
        known, tree = self._here(name, commit, verb="clone")
        if self.catalogue.find(new) is not None:
            raise VolumeExistsError(f"volume '{new}' exists", hint="use another name")
        resolved = self.resolver.resolve(options, known.record)

        def fill(destination: Destination) -> None:
            with self.copying.track(new, caller_gone) as progress:
                copy_tree(tree.path, destination, progress=progress)
            if self.quarantine.find(tree.volume_id, commit) is None:
                raise BackendError(f"commit {commit} was discarded meanwhile")

        self.creation.create_filled(new, resolved, fill)

    def discard(self, name: str, commit: str) -> bool:
        """
        Delete the bytes of *commit*; return whether the cluster knows of that by now.

        Raises:
            NotOwnerError, InvalidRequestError: as `differences`.
            BackendError: the pool refuses; the bytes are where they were.

        """
        known, tree = self._here(name, commit, verb="discard")
        self.operations.run(
            known.name,
            lambda _: self.quarantine.discard(tree),
            deadline_s=SHORT_DEADLINE_S,
        )
        log.info("discarded", extra=fields(volume=known.name, commit=commit))
        return quarantine.forget(self.ownership, known.id, commit)

    def mend(self) -> None:
        """Make the cluster's records of this node agree with its disk, or log why."""
        try:
            quarantine.mend(self.ownership, self.quarantine)
        except RemoraError as error:
            log.info("what is set apart is recorded later: %s", error)

    def _trees(self) -> list[Tree] | None:
        """Return what is set apart on the disk; None if the pool cannot be read."""
        try:
            return self.quarantine.everything()
        except BackendError:
            return None

    def _find(self, name: str) -> _Known:
        """Return the volume of that name, or of that id, or else the removed one."""
        check_name(name)
        stored = self.catalogue.find(name)
        if stored is not None:
            return _Known(stored.record.id, name, stored.record)
        for record in self.catalogue.of_ids([name]):
            return _Known(record.id, record.name, record)
        held = {each.volume_id for each in self._trees() or ()}
        held |= {each.volume_id for each in self.ownership.quarantine_records.all()}
        tombs = self.ownership.heads.tombs()
        found = [
            each
            for each in sorted(held)
            if name == each or (each in tombs and tombs[each].name == name)
        ]
        if not found:
            raise VolumeNotFoundError(f"there is no volume '{name}'")
        if len(found) > 1:
            raise InvalidRequestError(
                f"several removed volumes were called '{name}'",
                hint=f"use the id: {', '.join(found[:5])}",
            )
        tomb = tombs.get(found[0])
        return _Known(found[0], tomb.name if tomb else found[0], None)

    def _here(self, name: str, commit: str, *, verb: str) -> tuple[_Known, Tree]:
        """Return the volume, and the tree of *commit* on this node."""
        check_commit(commit)
        known = self._find(name)
        tree = self.quarantine.find(known.id, commit)
        if tree is not None:
            return known, tree
        for each in self.ownership.quarantine_records.of(known.id):
            if each.commit == commit and each.node_id != self.ownership.node_id:
                node = self.ownership.name_of(each.node_id)
                raise NotOwnerError(
                    f"commit {commit} of '{known.name}' was set apart on node '{node}'",
                    hint=f"there: remora quarantine {verb} {name} {commit}",
                )
        raise InvalidRequestError(
            f"no commit {commit} of '{known.name}' is set apart on this node",
            hint="see: remora quarantine ls",
        )

    def _reading(
        self, begin: Callable[[], Iterator[Item]], caller_gone: CallerGone
    ) -> Iterator[Item]:
        """Return what *begin* yields, once its first item is there."""

        def items() -> Iterator[Item]:
            if not self.readers.acquire(blocking=False):
                raise VolumeBusyError(
                    f"{_READERS_MAX} readers of what was set apart are at work",
                    hint="retry when one of them has ended",
                )
            try:
                for item in begin():
                    if caller_gone():
                        raise VolumeBusyError("the caller has gone")
                    yield item
            finally:
                self.readers.release()

        # A failure before the first item is an error, not an answer that breaks off.
        rest = items()
        first = next(rest, None)

        def again() -> Iterator[Item]:
            if first is not None:
                yield first
            yield from rest

        return again()


def _row(
    key: tuple[str, str, str],
    quarantined: QuarantineRecord,
    *,
    volume: str,
    removed: bool,
    node: str,
    own: str,
    path: str,
) -> QuarantinedCommit:
    volume_id, node_id, commit = key
    return QuarantinedCommit(
        volume=volume,
        volume_id=volume_id,
        removed=removed,
        node=node,
        node_id=node_id,
        this_node=node_id == own,
        commit=commit,
        set_apart_at=one_line(quarantined.set_apart_at),
        files=quarantined.files,
        size_bytes=quarantined.size_bytes,
        whole=quarantined.whole,
        path=path,
    )
