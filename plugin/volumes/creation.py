"""
How a volume comes to be: from the options of a request to a record that is ready.

The record is written before the backend makes anything, and is `creating` until the
whole volume is there, its first bytes included. So a crash between any two steps leaves
a note of what to undo, and the reconciler undoes it.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from backends.base import Fill
from backends.errors import (
    BackendError,
    InvalidRequestError,
    RemoraError,
    VolumeBusyError,
    VolumeExistsError,
)
from backends.options import require_usable_size, source_volume
from backends.system import clock, mounts
from backends.system.clock import Deadline
from backends.system.copying import Destination, copy_tree
from plugin.limits import COPY_DEADLINE_S, LONG_DEADLINE_S, SHORT_DEADLINE_S
from plugin.logs import fields
from plugin.model import VolumeRecord, check_name
from plugin.ownership.view import OwnershipView
from plugin.store.contention import attempted
from plugin.volumes.catalogue import Catalogue, Stored
from plugin.volumes.copying_under_way import CopyingUnderWay
from plugin.volumes.newest import NewestBytes
from plugin.volumes.operations import Operations, never
from plugin.volumes.options import OptionResolver, Resolved, require_same_options
from plugin.volumes.own_snapshots import on_their_node
from plugin.volumes.patience import CallerGone
from plugin.volumes.removal import Removal
from plugin.volumes.views import VolumeViews

log = logging.getLogger(__name__)
_LOOK_AGAIN_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Creation:
    """Answers Create, and makes volumes with the bytes of others."""

    views: VolumeViews
    catalogue: Catalogue
    resolver: OptionResolver
    operations: Operations
    copying: CopyingUnderWay
    ownership: OwnershipView
    removal: Removal
    newest: NewestBytes

    def scope(self) -> str:
        """Return "global" if a volume without options is usable on every node."""
        backend = self.resolver.resolve({}).backend
        return "global" if backend.traits.reachable_from_every_node else "local"

    def create(
        self,
        name: str,
        options: Mapping[str, str] | None,
        *,
        caller_gone: CallerGone = never,
        deadline_s: float = LONG_DEADLINE_S,
        asked_bytes: int = 0,
        claim: str = "",
    ) -> None:
        """
        Make the volume, or find that it exists with the same options.

        Without *options* (None) a volume that exists may have any: that is how Mesos
        asks for a volume to unmount. *asked_bytes* and *claim* are kept in its record.

        Raises:
            InvalidRequestError: the name or an option is not valid; nothing is made.
            VolumeExistsError: it exists with other options, which are named.
            BackendError, DeadlineError, StoreError, VolumeBusyError: as they say.

        """
        check_name(name)
        resolved, fill = self._understand(name, options or {})
        resolved = replace(
            resolved, asked_bytes=asked_bytes, claim=claim, takes_any=options is None
        )
        self.operations.run(
            name,
            lambda deadline: self._make(name, resolved, deadline, fill),
            deadline_s=deadline_s,
            # Copying that takes longer than the engine waits goes on; see `Operations`.
            undo=self.removal.discard if fill is None else None,
            caller_gone=caller_gone,
            storage=resolved.backend.kind,
        )

    def clone(
        self,
        name: str,
        source: str,
        options: Mapping[str, str],
        *,
        caller_gone: CallerGone,
    ) -> None:
        """
        Make volume *name* with the bytes of *source*, a volume or `VOLUME@SNAPSHOT`.

        Raises:
            VolumeNotFoundError, SnapshotNotFoundError: there is no such source.
            VolumeExistsError: the name is taken.
            BackendError, DeadlineError, StoreError, VolumeBusyError: as they say; no
                volume is left.

        """
        check_name(name)
        resolved, fill = self._understand(
            name, {**options, "from": source}, caller_gone
        )
        if fill is None:
            raise VolumeExistsError(f"volume '{name}' exists", hint="use another name")
        self.create_filled(name, resolved, fill)

    def import_directory(
        self,
        name: str,
        options: Mapping[str, str],
        source: Path,
        *,
        caller_gone: CallerGone,
    ) -> None:
        """
        Make volume *name* with the bytes of directory *source*, which is only read.

        Raises:
            InvalidRequestError: the name, an option or the source is not usable.
            VolumeExistsError: the name is taken.
            VolumeBusyError: a container has *source* mounted, or the caller left.
            BackendError, DeadlineError: the copy failed or stood still.

        """
        check_name(name)
        resolved = self.resolver.resolve(options, name=name)
        _check_source(source)

        def fill(destination: Destination) -> None:
            with self.copying.track(name, caller_gone) as progress:
                copy_tree(source, destination, progress=progress)

        self.create_filled(name, resolved, fill)

    def create_filled(self, name: str, resolved: Resolved, fill: Fill) -> None:
        """
        Make the volume with the bytes that *fill* puts into it, however long it takes.

        Raises:
            VolumeExistsError: there is one of that name.
            BackendError, DeadlineError, StoreError, VolumeBusyError: as they say; no
                volume is left.

        """
        made = self.operations.run(
            name,
            lambda deadline: self._make(name, resolved, deadline, fill),
            deadline_s=COPY_DEADLINE_S,
            storage=resolved.backend.kind,
        )
        if made is None:
            raise VolumeExistsError(f"volume '{name}' exists", hint="use another name")

    def _understand(
        self, name: str, options: Mapping[str, str], caller_gone: CallerGone = never
    ) -> tuple[Resolved, Fill | None]:
        """Return what *options* mean, and a function that copies the `from` bytes."""
        wanted = [value for key, value in options.items() if key.lower() == "from"]
        if not wanted:
            return self.resolver.resolve(options, name=name), None
        existing = self.catalogue.find(name)
        if existing is not None and existing.record.phase == "ready":
            # Nothing is copied again, and the source may be gone by now.
            return self.resolver.resolve(options, existing.record), None
        try:
            source_name, _, snapshot = source_volume(wanted[0]).partition("@")
        except ValueError as error:
            raise InvalidRequestError(f"option 'from': {error}") from None
        source = (
            self.views.existing(source_name).record
            if not snapshot
            else self.views.with_snapshots(source_name)
        )
        volume = source.volume()
        backend = self.ownership.backend_of(source)
        command = f"remora clone {wanted[0]} {name}"
        with on_their_node(self.ownership, volume, snapshot, command=command):
            if not snapshot:
                self.newest.require_here(source, command=command)
            backend.data_directory(volume, snapshot)

        def fill(destination: Destination) -> None:
            directory = backend.data_directory(volume, snapshot)
            mounted = not snapshot and mounts.mounted_at(self.views.target(source))
            flush = [self.views.target(source)] if mounted else []
            live = self.newest.reading(source, command=command)
            with (
                self.copying.track(name, caller_gone) as progress,
                nullcontext() if snapshot else live,
            ):
                copy_tree(directory, destination, progress=progress, flush=flush)
            # Raise an error if a removal has deleted files of the source meanwhile.
            backend.data_directory(volume, snapshot)

        return self.resolver.resolve(options, source), fill

    def _begin(
        self, name: str, resolved: Resolved, deadline: Deadline, *, filled: bool
    ) -> Stored | None:
        """
        Return a new record in phase `creating`; None if the volume is there already.

        The volume's lock is held.
        """
        patience = Deadline(deadline.remaining_s() / 2)
        while (
            stored := attempted(lambda: self._settled(name, patience, deadline))
        ) is None:
            if "from" in resolved.requested and not filled:
                # It was there a moment ago; the one to be made must not be empty.
                raise VolumeBusyError(f"'{name}' was removed meanwhile", hint="retry")
            record = VolumeRecord(
                id=str(uuid.uuid4()),
                name=name,
                backend=resolved.backend.kind,
                requested=resolved.requested,
                options=resolved.options,
                created_at=clock.now_rfc3339(),
                phase="creating",
                node=self.ownership.node_id,
                filled=filled,
                asked_bytes=resolved.asked_bytes,
                claim=resolved.claim,
            )
            self._require_creatable(resolved, record)
            stored = self.catalogue.insert(record)
            if stored is not None:
                return stored
            # Another node was quicker: its volume is ours as well, once it is made.
            if patience.passed():
                raise VolumeBusyError(
                    f"'{name}' is made and removed on other nodes", hint="retry"
                )
        require_same_options(resolved, stored.record)
        return None

    def _settled(
        self, name: str, patience: Deadline, deadline: Deadline
    ) -> Stored | None:
        """
        Return the record of *name*, `ready`; None if there is none, or none any more.

        What this node, or one that is dead, has begun is undone, or removed to the end.
        A node that lives gets to do it itself until *patience* has passed.

        Raises:
            VolumeBusyError: another node is at it, or the volume is in use.
            BackendError, DeadlineError, StoreError: it is as it was.

        """
        while (stored := self.catalogue.find(name)) is not None:
            record = stored.record
            if record.phase == "ready":
                return stored
            is_ours = self.ownership.is_ours_to_finish(record)
            living = not is_ours and bool(self.ownership.nodes.lease_of(record.node))
            if living and not patience.passed():
                clock.pause(_LOOK_AGAIN_S)
            elif record.phase == "creating":
                self.removal.roll_back_creation(stored, deadline)
            elif living:
                raise VolumeBusyError(
                    f"'{name}' is being removed on node "
                    f"'{self.ownership.name_of(record.node)}'",
                    hint="retry",
                )
            else:
                self.removal.finish_begun(stored, deadline)
        return None

    def _require_creatable(self, resolved: Resolved, record: VolumeRecord) -> None:
        """Raise what is known to be in the way before anything is written."""
        require_usable_size(resolved.chosen)
        self.ownership.require_possible(record)
        resolved.backend.require_creatable(record.volume(), filled=record.filled)
        chosen = resolved.chosen.get("members", "")
        if not self.ownership.membership.alone:
            for node in filter(None, chosen.split(",")):
                self.ownership.nodes.find(node)

    def _make(
        self, name: str, resolved: Resolved, deadline: Deadline, fill: Fill | None
    ) -> str | None:
        """Return the id of the volume that was made, None if it was there."""
        stored = self._begin(name, resolved, deadline, filled=fill is not None)
        if stored is None:
            return None
        try:
            made = resolved.backend.create(
                stored.record.volume(), deadline_s=deadline.remaining_s(), fill=fill
            )
            self.catalogue.replace(stored, stored.record.made(made))
        except BaseException as error:
            # If storage refused, it has made nothing. Only an unknown outcome must be
            # remembered until storage answers again.
            refused = fill is None and isinstance(error, BackendError)
            self._abandon(stored, refused=refused)
            raise
        return made.id

    def _abandon(self, stored: Stored, *, refused: bool) -> None:
        """Undo a creation now if that is possible, else leave it to the reconciler."""
        try:
            self.removal.roll_back_creation(
                stored, Deadline(SHORT_DEADLINE_S), leave=lambda _: refused
            )
        except RemoraError as error:
            log.warning(
                "the creation is rolled back later: %s",
                error,
                extra=fields(volume=stored.record.name),
            )


def _check_source(source: Path) -> None:
    """Raise unless all of directory *source* can be read, and no container has it."""
    if not source.is_absolute() or ".." in source.parts or not source.is_dir():
        raise InvalidRequestError(f"'{source}' is not the absolute path of a directory")
    # Others may have made a link on the way: people say that they mean where it leads.
    if (real := source.resolve()) != source:
        raise InvalidRequestError(
            f"the path {source} has a symbolic link in it", hint=f"name {real} instead"
        )
    if below := mounts.inner_mounts(source):
        raise InvalidRequestError(
            f"{below[0]} is another filesystem, and would be left out",
            hint="unmount it, or import each by itself",
        )
    users = mounts.users_of(source)
    if users:
        raise VolumeBusyError(
            f"{source} is used by {', '.join(map(str, users[:3]))}",
            hint="stop its containers first: a copy of changing files is torn",
        )
