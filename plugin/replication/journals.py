"""
The journals of this node's copies: one use of each at a time, and repair.

A journal is opened for each use. Changes of a mounted volume are watched from the first
use until the volume is let go.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from backends.errors import BackendError, RemoraError, VolumeBusyError, one_line
from backends.replication_options import ReplicationOptions
from backends.rsync.backend import RsyncBackend
from backends.rsync.journal.fitting import unfit_of
from backends.rsync.journal.journal import Journal
from backends.rsync.journal.manifest import DamagedManifestError
from backends.rsync.journal.outbox import OUTBOX_NAME, lacking_space, unpack_all
from backends.rsync.journal.staging import LIVE_NAME, Staging
from backends.rsync.journal.watch import Hints, Watched, Watcher
from backends.rsync.pool import Place
from backends.system.clock import Deadline
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.copy_states import CopyStates
from plugin.ownership.state import EMPTY, CopyState

log = logging.getLogger(__name__)
# A commit that is applied after the daemon's start, whatever its size.
_REPAIR_DEADLINE_S: Final = 3600.0
_MAKE_DEADLINE_S: Final = 30.0
# So soon it is seen that the pool's disk was mounted, or another one was.
_LOOK_S: Final = 1.0
# What could not be put in its place: the disk may have been full.
_APPLY_AGAIN_S: Final = 60.0


class Journals:
    """See the module's text; *backend* says where copies lie."""

    def __init__(self, backend: RsyncBackend, copy_states: CopyStates) -> None:
        self.copy_states = copy_states
        self._backend = backend
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._watcher: Watcher | None = None
        self._watched_at: Place | None = None
        self._watched: dict[str, Watched] = {}
        # Whose marked commit could not be applied, and why.
        self._unapplied: dict[str, tuple[VolumeRecord, str]] = {}
        self._closing = threading.Event()
        self._follower = threading.Thread(
            target=self._follow_pool, name="journals:repair", daemon=True
        )

    def home(self, record: VolumeRecord) -> Path | None:
        """Return the directory of this node's copy, None if there is none."""
        return self._backend.copy_directory(record.volume())

    def require_home(self, record: VolumeRecord) -> Path:
        """Return the directory of this node's copy; raise BackendError without one."""
        home = self.home(record)
        if home is None:
            raise BackendError(f"there is no copy of '{record.name}' here")
        return home

    def basis(self, record: VolumeRecord) -> Path:
        """
        Return the directory that has most of what another node may send.

        For a copy that begins anew, these are the bytes that were set apart last.

        Raises:
            BackendError: the pool cannot be read.

        """
        live = self.require_home(record) / LIVE_NAME
        apart = self._backend.quarantine.of(record.id)
        if apart and not (live.is_dir() and any(live.iterdir())):
            return max(apart, key=lambda tree: tree.set_apart_at).path
        return live

    def unfit(self, record: VolumeRecord) -> str:
        """Return what of its commit this node's copy lacks, "" if nothing; a line."""
        if unapplied := self._unapplied.get(record.id):
            return f"it is not in place: {unapplied[1]}"
        return unfit_of(self.home(record))

    def lacking_space(self, record: VolumeRecord, size_bytes: int) -> str:
        """
        Return why *size_bytes* from another node do not fit here, "" if they do.

        Raises:
            BackendError: the pool cannot be looked at.

        """
        home = self.home(record)
        try:
            if home is None:
                return lacking_space(self._backend.pool.volumes, size_bytes)
            return Staging(home).lacking_space(size_bytes)
        except OSError as error:
            raise BackendError(f"the pool cannot be looked at: {error}") from error

    def make(self, record: VolumeRecord, promised: int, deadline: Deadline) -> None:
        """
        Make an empty copy, if there is none, that has promised epoch *promised*.

        Raises:
            BackendError: the pool refuses.

        """
        self.copy_states.make(
            self._backend,
            record.volume(),
            promised=promised,
            deadline_s=deadline.remaining_s(),
        )

    @contextmanager
    def using(self, record: VolumeRecord, deadline: Deadline) -> Iterator[Journal]:
        """
        Yield the copy's journal, which nobody else uses meanwhile.

        A commit that was marked is applied first. A manifest that turns out to be
        damaged is made anew by the next use.

        Raises:
            VolumeBusyError: another use did not end before *deadline*.
            BackendError: there is no copy, or it cannot be read.

        """
        with self.alone(record, deadline):
            max_names = ReplicationOptions.of(record.options).max_names
            home = self.require_home(record)
            journal = Journal(home, record.id, max_names=max_names)
            try:
                if not journal.live.is_dir():
                    self._finish_setting_apart(record, journal)
                if journal.staging.marked() is not None:
                    with journal.staging.still(deadline):
                        self.apply(record, journal)
                yield journal
            except DamagedManifestError:
                journal.forget()
                raise
            finally:
                journal.close()

    @contextmanager
    def alone(self, record: VolumeRecord, deadline: Deadline) -> Iterator[None]:
        """
        Keep others from using the copy.

        Raises:
            VolumeBusyError: another use did not end before *deadline*.

        """
        with self._guard:
            lock = self._locks.setdefault(record.id, threading.Lock())
        if not lock.acquire(timeout=max(0.0, deadline.remaining_s())):
            raise VolumeBusyError(
                f"the copy of '{record.name}' is being brought up to date",
                hint="retry; it goes on meanwhile",
            )
        try:
            yield
        finally:
            lock.release()

    def is_applying(self, record: VolumeRecord) -> bool:
        """Return whether what was marked is being applied, after a crash maybe."""
        with self._guard:
            lock = self._locks.get(record.id)
        home = self.home(record) if lock and lock.locked() else None
        return home is not None and Staging(home).marked() is not None

    def hints(self, record: VolumeRecord, journal: Journal) -> Hints:
        """Return where the volume may have changed since the last call."""
        place = self._backend.pool.place()
        self._end_watches(but_at=place)
        with self._guard:
            if self._watcher is None:
                self._watched_at = place
                self._watcher = Watcher(self._backend.pool.volumes)
                if self._watcher.fault:
                    log.warning(
                        "changes are looked for in whole: %s", self._watcher.fault
                    )
            watched = self._watched.get(record.id)
            if watched is None or watched.path != journal.live:
                watched = self._watched[record.id] = self._watcher.add(journal.live)
        return watched.pop_hints()

    def new_hints(self, record: VolumeRecord) -> Hints:
        """Return what the watch over a volume tells since the last call."""
        with self._guard:
            watched = self._watched.get(record.id)
        return watched.pop_hints() if watched else Hints(everything=True)

    def give_back(self, record: VolumeRecord, hints: Hints) -> None:
        """Let the next call of `hints` return *hints* again: the look has failed."""
        with self._guard:
            watched = self._watched.get(record.id)
        if watched is not None:
            watched.give_back(hints)

    def unwatch(self, record: VolumeRecord) -> None:
        """Watch over the volume no more; the next look is at everything."""
        with self._guard:
            watched = self._watched.pop(record.id, None)
            if watched is not None and self._watcher is not None:
                self._watcher.remove(watched)

    def begin_empty(self, record: VolumeRecord, journal: Journal) -> None:
        """
        Go on without the bytes that the journal has set apart.

        The copy state says so before there is a `live` again: an empty directory must
        never pass for a commit.

        Raises:
            BackendError: the disk refuses; the next use of the copy tries again.

        """
        with self.copy_states.changing(record.id):
            copy = self.copy_states.read(record.id, initial=EMPTY) or CopyState()
            empty = msgspec.structs.replace(copy, commit=EMPTY, live_epoch=0)
            self.copy_states.write(record.id, empty)
        journal.forget()
        self.unwatch(record)
        self._backend.make_live(record.volume(), deadline_s=_MAKE_DEADLINE_S)

    def _finish_setting_apart(self, record: VolumeRecord, journal: Journal) -> None:
        """Do what a crash after `Journal.keep_apart` has left undone."""
        copy = self.copy_states.read(record.id, initial=EMPTY) or CopyState()
        lost = rules.seal(copy).commit
        apart = [each.commit for each in self._backend.quarantine.of(record.id)]
        if not apart or (lost != EMPTY and str(lost) not in apart):
            raise BackendError(
                f"the data of volume '{record.name}' is missing: "
                f"{journal.live} is not there",
                hint="put the directory back, or restore it from a backup",
            )
        self.begin_empty(record, journal)

    def apply(self, record: VolumeRecord, journal: Journal) -> None:
        """Apply the commit that is marked, if there is one."""
        if journal.staging.marked() is None:
            return
        # Without the mark, the file alone says which commit the copy is.
        with self.copy_states.changing(record.id):
            copy = self.copy_states.read(record.id, initial=EMPTY) or CopyState()
            self.copy_states.write(record.id, copy)
        self.put_in_place(record, journal)

    def put_in_place(self, record: VolumeRecord, journal: Journal) -> None:
        """
        Apply the commit that is marked; what fails `repair` tries again.

        Its sender may have been answered, and nobody use the copy for long.
        """
        try:
            journal.apply()
        except Exception as error:
            self._unapplied[record.id] = record, one_line(str(error))
            raise
        self._unapplied.pop(record.id, None)

    def repair(self) -> None:
        """
        Finish in the background what a crash has left, whenever the pool comes.

        Uses of a copy wait for it meanwhile.
        """
        self._follower.start()

    def _follow_pool(self) -> None:
        came, again = None, Deadline(_APPLY_AGAIN_S)
        while not self._closing.is_set():
            place = self._backend.pool.place()
            self._end_watches(but_at=place)
            if place not in (None, came):
                self._for_each(self._repair)
            came = place
            if again.passed():
                self._apply_again()
                again = Deadline(_APPLY_AGAIN_S)
            self._closing.wait(_LOOK_S)

    def _apply_again(self) -> None:
        """Try once more what could not be applied; it is told of if it is new."""
        for key, (record, before) in [*self._unapplied.items()]:
            try:
                if (home := self.home(record)) is not None and not is_whole(home):
                    with self.using(record, Deadline(_LOOK_S)):
                        pass
                self._unapplied.pop(key, None)
            except VolumeBusyError:  # it is applied first by whoever uses the copy
                continue
            except Exception as error:  # noqa: BLE001 - whatever it is, others go on
                why = one_line(str(error))
                self._unapplied[key] = record, why
                if why != before:
                    _tell(record.name, error)

    def _for_each(self, work: Callable[[VolumeRecord], None]) -> None:
        """Do *work* with each copy of the pool, which is there whatever is down."""
        try:
            volumes = list(self._backend.discover())
        except (RemoraError, OSError) as error:
            log.warning("copies could not be repaired: %s", error)
            return
        for volume in volumes:
            if self._closing.is_set():
                return
            try:
                work(VolumeRecord.of(volume, backend=self._backend.kind))
            except Exception as error:  # noqa: BLE001 - whatever it is, others go on
                _tell(volume.name, error)

    def close(self) -> None:
        """End all watches, and what `repair` has begun after the copy it is at."""
        self._closing.set()
        self._end_watches()

    def _end_watches(self, *, but_at: Place | None = None) -> None:
        """End all watches, but those on the disk *but_at*."""
        with self._guard:
            if but_at is not None and self._watched_at == but_at:
                return
            watcher, self._watcher = self._watcher, None
            self._watched.clear()
        if watcher is not None:
            watcher.close()

    def _repair(self, record: VolumeRecord) -> None:
        home = self.home(record)
        if home is None or (is_whole(home) and not (home / OUTBOX_NAME).exists()):
            return
        marked = Staging(home).marked()
        with self.using(record, Deadline(_REPAIR_DEADLINE_S)):
            unpack_all(home / OUTBOX_NAME)
        if marked is not None:
            log.info("a commit was applied", extra=fields(volume=record.name))


def _tell(name: str, error: Exception) -> None:
    log.warning(
        "a copy could not be repaired: %s",
        error,
        exc_info=not isinstance(error, (RemoraError, OSError)),
        extra=fields(volume=name),
    )


def is_whole(home: Path) -> bool:
    """Return whether the copy in *home* is what its state says: else use it once."""
    return Staging(home).marked() is None and (home / LIVE_NAME).is_dir()
