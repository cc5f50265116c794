"""
What this node knows of its own copies: one small file for each, changed durably.

The file lies with the copy (`Backend.copy_directory`), so that a pool that moves to
another machine, or comes back from a backup, brings its promises along. A copy without
a file is as its volume was made: nobody has owned it.

A crash may leave the file older than the bytes. What it has made of the copy is seen
beside it at each read, so that a pool may come at any time.

Which epoch a copy is live in is known in memory as well: who keeps deadlines must not
wait for a disk.

While a copy is live its writes are watched: what is sealed has to be on the disk, and
only who was there before them hears that it is not.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from backends.base import Backend, Volume
from backends.errors import BackendError
from backends.rsync.journal.journal import QUARANTINE_NAME
from backends.rsync.journal.staging import LIVE_NAME, Staging
from backends.system import files
from backends.system.decoding import from_json
from backends.system.writeback import Writeback
from plugin.ownership import rules
from plugin.ownership.state import EMPTY, Commit, CopyState

log = logging.getLogger(__name__)
_NAME: Final = "replica.json"
# Where a copy lies, by its volume's id; None if this node has none.
Locate = Callable[[str], Path | None]


def locate_with(backend: Backend) -> Locate:
    """Return a function that finds the copies of *backend*."""

    def locate(volume_id: str) -> Path | None:
        volume = Volume(id=volume_id, name=volume_id, options={}, created_at="")
        return backend.copy_directory(volume)

    return locate


class CopyStates:
    """The copy states of this node; changes of one copy wait for each other."""

    def __init__(self, locate: Locate) -> None:
        self._locate = locate
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        # The writes of live copies; with each whether we were there before the first.
        self._writebacks: dict[str, tuple[Writeback, bool]] = {}
        self._live_epochs: dict[str, int] = {}

    def directory(self, volume_id: str) -> Path | None:
        """Return where the copy lies, None if there is none."""
        return self._locate(volume_id)

    def read(self, volume_id: str, *, initial: Commit) -> CopyState | None:
        """
        Return the copy state; None if there is no copy.

        *initial* is the commit of a copy that nobody has owned yet.

        Raises:
            BackendError: the file cannot be read, so nothing may be done with the copy.

        """
        directory = self._locate(volume_id)
        if directory is None:
            return None
        path = directory / _NAME
        try:
            copy = _as_left(directory, _read(path, initial))
        except (OSError, msgspec.DecodeError) as error:
            raise BackendError(
                f"cannot read {path}: {error}",
                hint="restore it from a backup of the pool; the bytes are untouched",
            ) from error
        # A write that has come meanwhile knows better.
        self._live_epochs.setdefault(volume_id, copy.live_epoch)
        with suppress(OSError):  # too many files are open, or it has just gone
            self._watch(volume_id, directory, copy, from_its_begin=False)
        return copy

    def in_place(self, volume_id: str) -> bool:
        """Return whether no commit is marked that has yet to be put in its place."""
        directory = self._locate(volume_id)
        return directory is None or Staging(directory).marked() is None

    def live_epoch(self, volume_id: str) -> int | None:
        """
        Return the epoch in which the copy is live, 0 if it is not, and touch no disk.

        None if this process has not read it yet, or there is no copy.
        """
        return self._live_epochs.get(volume_id)

    def make(
        self, backend: Backend, volume: Volume, *, promised: int, deadline_s: float
    ) -> None:
        """
        Make an empty copy, if there is none, that has promised epoch *promised*.

        Raises:
            BackendError: the pool refuses.

        """
        # Without its state it would count as the volume was made: filled, on its maker.
        copy = msgspec.json.encode(CopyState(promised=promised, commit=EMPTY))
        with self.changing(volume.id):
            if backend.copy_directory(volume) is None:
                backend.create(volume, deadline_s=deadline_s, beside={_NAME: copy})
                self._live_epochs[volume.id] = 0

    @contextmanager
    def changing(self, volume_id: str) -> Iterator[None]:
        """Keep other threads from changing the state; never while a network is used."""
        with self._guard:
            lock = self._locks.setdefault(volume_id, threading.Lock())
        with lock:
            yield

    def write(self, volume_id: str, copy: CopyState) -> None:
        """
        Keep *copy* durably; the caller holds `changing`.

        Raises:
            BackendError: there is no copy, or the disk refuses.

        """
        directory = self._locate(volume_id)
        if directory is None:
            raise BackendError(f"this node has no copy of volume {volume_id}")
        path = directory / _NAME
        try:
            self._watch(volume_id, directory, copy, from_its_begin=True)
            files.write_durably(path, msgspec.json.encode(copy))
        except OSError as error:
            raise BackendError(f"cannot write {path}: {error.strerror}") from error
        self._live_epochs[volume_id] = copy.live_epoch
        if not copy.live_epoch:
            self._writebacks.pop(volume_id, None)

    def flush(self, volume_id: str) -> None:
        """
        Make durable what was written to a live copy, to which nobody writes any more.

        What the disk has lost is written once more, from what programs read.

        Raises:
            BackendError: the disk has lost that as well.

        """
        directory = self._locate(volume_id)
        watched = self._writebacks.get(volume_id)
        if directory is None or watched is None:
            return
        written, from_its_begin = watched
        try:
            try:
                written.flush()
            except OSError as error:
                log.warning(
                    "the disk has lost writes: they are made once more: %s", error
                )
                written.repair(directory / LIVE_NAME, whole=not from_its_begin)
        except OSError as error:
            raise BackendError(
                f"what was written to {directory} is not on the disk: {error.strerror}",
                hint="see the kernel's log; when the disk is well again, it is retried",
            ) from error

    def _watch(
        self, volume_id: str, directory: Path, copy: CopyState, *, from_its_begin: bool
    ) -> None:
        """Be there for the errors of a live copy's writes."""
        if not copy.live_epoch:
            return
        if known := self._writebacks.get(volume_id):
            known[0].note_clock()
        else:
            watched = Writeback(directory), from_its_begin
            self._writebacks.setdefault(volume_id, watched)


def _read(path: Path, initial: Commit) -> CopyState:
    try:
        return from_json(path.read_bytes(), CopyState)
    except FileNotFoundError:
        return CopyState(commit=initial)


def _as_left(directory: Path, copy: CopyState) -> CopyState:
    """
    Return what a crash has made of *copy* since its file was written.

    A commit that is marked is the copy's, though it may still have to be applied. Bytes
    that were set apart are the copy's no more.
    """
    marked = Staging(directory).marked()
    if marked is not None and copy.commit != Commit(*marked):
        promised = max(copy.promised, marked[0])
        return replace(copy, commit=Commit(*marked), promised=promised, live_epoch=0)
    apart = directory / QUARANTINE_NAME / str(rules.seal(copy).commit)
    if apart.is_dir() and not (directory / LIVE_NAME).is_dir():
        return replace(copy, commit=EMPTY, live_epoch=0)
    return copy
