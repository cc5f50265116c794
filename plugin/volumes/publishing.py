"""
A volume at a path that a scheduler names: NodePublish and NodeUnpublish of CSI.

As with a Mount, what is to be done is written down first: a publication is there before
the volume is acquired, and goes last. So a crash between any two steps leaves what the
same call, made again, finishes, or the reconciler takes back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from backends.errors import (
    DeadlineError,
    InvalidRequestError,
    RemoraError,
    VolumeBusyError,
)
from backends.system import published
from backends.system.clock import Deadline
from plugin.errors import (
    NotOwnerError,
    OneWriterError,
    OwnedElsewhereError,
    PublishedOtherwiseError,
    VolumeNotFoundError,
)
from plugin.limits import LONG_DEADLINE_S, SHORT_DEADLINE_S
from plugin.logs import fields
from plugin.model import VolumeRecord, check_name
from plugin.ownership.parts import Asking
from plugin.ownership.wishes import Wish
from plugin.volumes.mounting import Mounting
from plugin.volumes.publications import Publication, Publications

log = logging.getLogger(__name__)
# What a wish may take of the time of a call; the owner looks for wishes all the time.
_ASK_SHARE: Final = 0.6
# The numbers of CSI's access modes. Source: csi.v1, VolumeCapability.AccessMode.
_WRITER, _ONE_WRITER, _MANY_WRITERS = 1, 6, 7
_ANY_NODE: Final = 5
# Kubelets have called the first three by turns: they mean one kind of use.
_KIND: Final = {_WRITER: 1, _ONE_WRITER: 1, _MANY_WRITERS: 1, 2: 2, 3: 2, 4: 3, 5: 3}
EXCLUSIVE_MODES: Final = frozenset({_WRITER, _ANY_NODE, _ONE_WRITER, _MANY_WRITERS})
# How much of a volume's bytes has come from another node, None if nothing is to come.
Percent = Callable[[str], int | None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be published: volume *name* at *target*, a place below *root*."""

    name: str
    target: str
    root: str
    mode: int
    read_only: bool
    user: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Publishing:
    """Shows volumes at paths that others name; *percent* tells how far bytes are."""

    mounting: Mounting
    publications: Publications
    asking: Asking | None
    percent: Percent

    def publish(self, wanted: Wanted, *, wait_s: float) -> None:
        """
        Have the volume at its target; what has it there already is success.

        What is not done in *wait_s* goes on, and the same call finds it done.

        Raises:
            VolumeNotFoundError: there is no such volume.
            OwnedElsewhereError: a node that lives has it in use.
            OneWriterError: it is for one path alone.
            PublishedOtherwiseError: the target shows something else.
            BackendError, DeadlineError, NotOwnerError, StoreError, VolumeBusyError: as
                they say.

        """
        check_name(wanted.name)
        path = _real(wanted.target, wanted.root)
        try:
            self.mounting.operations.run(
                wanted.name,
                lambda deadline: self._publish(wanted, path, deadline),
                deadline_s=wait_s,
            )
        except DeadlineError as error:
            raise self._on_its_way(wanted.name) or error from None

    def unpublish(self, name: str, target: str, root: str, *, wait_s: float) -> None:
        """
        Take the volume away from *target*; if it is not there, that is done.

        Raises:
            InvalidRequestError: something is mounted there that is no volume.
            VolumeBusyError: a process of this machine still works there.
            BackendError, DeadlineError, StoreError: as they say.

        """
        path = _real(target, root)
        publication = self.publications.at(target)
        record = self._published(publication, name)
        self.mounting.operations.run(
            record.name if record else target,
            lambda _: self._unpublish(record, target, path, Path(root)),
            deadline_s=wait_s,
        )

    def grant(self, wish: Wish) -> None:
        """
        Let a volume go that another node is to publish, if nothing here uses it.

        A pod's node takes its volume back by itself, and may start its containers again
        until then.

        Raises:
            VolumeBusyError: it is in use.

        """
        for record in self.mounting.unmounting.catalogue.of_ids([wish.volume]):
            self.mounting.operations.run(
                record.name,
                partial(self._yield, record),
                deadline_s=SHORT_DEADLINE_S,
            )

    def _publish(self, wanted: Wanted, path: Path, deadline: Deadline) -> None:
        record = self.mounting.ready(wanted.name)
        before = self.publications.at(wanted.target)
        self._require_possible(record, wanted, before)
        if before is None:
            self.publications.put(
                Publication(
                    target=wanted.target,
                    path=str(path),
                    root=str(Path(wanted.root).resolve()),
                    volume_id=record.id,
                    mode=wanted.mode,
                    read_only=wanted.read_only,
                    user=wanted.user,
                )
            )
        epoch = 0
        try:
            self._ask_owner(record, deadline)
            epoch = self.mounting.acquire(record, deadline)
            # A server that is slow is not asked again from the start.
            source = self.mounting.mount_owned(record, epoch, Deadline(LONG_DEADLINE_S))
            published.bind(
                source,
                path,
                root=Path(wanted.root).resolve(),
                read_only=wanted.read_only,
            )
        except BaseException as error:
            if before is None:
                self.publications.drop(wanted.target)
            self.mounting.roll_back(record, epoch)
            if isinstance(error, NotOwnerError):
                raise self._explained(record, error) from error
            raise

    def _unpublish(
        self, record: VolumeRecord | None, target: str, path: Path, root: Path
    ) -> None:
        there = self.publications.at(target)
        if there is None:
            at = None if record is None else self.mounting.views.target(record)
            published.require_shown(at, path)
        elif record is not None and there.volume_id != record.id:
            return  # the volume is not there, but another one
        published.unbind(path, root=root.resolve())
        self.publications.drop(target)
        if record is not None:
            self.mounting.unmounting.unmount_if_unused(
                record, Deadline(SHORT_DEADLINE_S)
            )

    def _yield(self, record: VolumeRecord, deadline: Deadline) -> None:
        unmounting, keeper = self.mounting.unmounting, self.mounting.keeper
        found = self.publications.of(record.id)
        count = self.mounting.references.total(record.id)
        others = count.live + count.inherited - len(found)
        pods = [each.user["pod"] for each in found if "pod" in each.user]
        in_use = keeper is not None and keeper.pausing.is_written(record.id)
        if others or pods or in_use or not found:
            why = f"pod {pods[0]} has it" if pods else "something uses it"
            raise VolumeBusyError(f"'{record.name}': {why}", hint="stop that first")
        unmounting.take_away(record, "another node has taken the volume")
        unmounting.require_unheld(record)
        unmounting.drop_mount(record, deadline)
        log.info("let go for another node", extra=fields(volume=record.name))

    def _require_possible(
        self, record: VolumeRecord, wanted: Wanted, before: Publication | None
    ) -> None:
        """Raise unless the volume may be at the target too, and in that mode."""
        exclusive = self.mounting.ownership.exclusive(record)
        if exclusive and wanted.mode not in EXCLUSIVE_MODES:
            raise InvalidRequestError(
                f"'{record.name}' is in use on one node at a time: access mode "
                f"{wanted.mode} is for several",
                hint="ReadWriteOnce; a share (NFS) has all modes",
            )
        if before is not None and before.volume_id != record.id:
            raise PublishedOtherwiseError(f"{wanted.target} shows another volume")
        if before is not None and (
            before.read_only != wanted.read_only
            or _KIND[before.mode] != _KIND[wanted.mode]
        ):
            how = "read-only" if before.read_only else f"in mode {before.mode}"
            raise PublishedOtherwiseError(
                f"{wanted.target} shows '{record.name}' already, {how}",
                hint="unpublish it first",
            )
        others = [
            each
            for each in self.publications.of(record.id)
            if each.target != wanted.target
        ]
        if others and _ONE_WRITER in (wanted.mode, *(each.mode for each in others)):
            raise OneWriterError(
                f"'{record.name}' is at {others[0].target}, and for one writer alone",
                hint="end what has it there",
            )

    def _ask_owner(self, record: VolumeRecord, deadline: Deadline) -> None:
        """Have the node that owns the volume let go of what no process there uses."""
        ownership = self.mounting.ownership
        if self.asking is None or not ownership.exclusive(record):
            return
        owner = ownership.heads.read(record.id).locked_by
        if owner in ("", ownership.node_id) or not ownership.nodes.lease_of(owner):
            return
        wish = Wish(volume=record.id, node=ownership.node_id, action="yield", to=owner)
        try:
            self.asking.fulfil(wish, deadline.remaining_s() * _ASK_SHARE)
        except RemoraError as error:
            log.info("not let go: %s", error, extra=fields(volume=record.name))

    def _explained(self, record: VolumeRecord, error: NotOwnerError) -> NotOwnerError:
        """Return *error*; as one that names the owner, if a node that lives is it."""
        ownership = self.mounting.ownership
        owner = ownership.heads.read(record.id).locked_by
        if owner in ("", ownership.node_id):
            return error
        return OwnedElsewhereError(error.cause, hint=error.hint)

    def _on_its_way(self, name: str) -> DeadlineError | None:
        """Return what to say of bytes that come from another node; None if none do."""
        try:
            record = self.mounting.views.existing(name).record
        except (RemoraError, VolumeNotFoundError):
            return None
        percent = self.percent(record.id)
        if percent is None:
            return None
        return DeadlineError(
            f"the bytes of '{name}' are on their way: {percent} %",
            hint="it goes on; the same call again finds it done",
        )

    def _published(
        self, publication: Publication | None, name: str
    ) -> VolumeRecord | None:
        """Return the volume of *name*, or else the one that is at a target."""
        catalogue = self.mounting.unmounting.catalogue
        if stored := catalogue.find(name):
            return stored.record
        # It has another name now.
        ids = [publication.volume_id] if publication else []
        return next(iter(catalogue.of_ids(ids)), None)


def _real(target: str, root: str) -> Path:
    """
    Return what *target* is called without links above *root*.

    Raises:
        InvalidRequestError: it is no place below *root*.

    """
    path = Path(target)
    if (
        not path.is_absolute()
        or ".." in path.parts
        or os.path.normpath(target) != target.rstrip("/")
        or not path.is_relative_to(root)
        or path == Path(root)
    ):
        raise InvalidRequestError(f"{target} is no place below {root}")
    return Path(root).resolve() / path.relative_to(root)
