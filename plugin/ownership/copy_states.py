"""
What this node knows of its own copies: one small file for each, changed durably.

The file lies with the copy (`Backend.copy_directory`), so that a pool that moves to
another machine, or comes back from a backup, brings its promises along. A copy without
a file is as its volume was made: nobody has owned it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from backends.base import Backend, Volume
from backends.errors import BackendError
from backends.system import files
from backends.system.decoding import from_json
from plugin.ownership.state import EMPTY, Commit, CopyState

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
            return from_json(path.read_bytes(), CopyState)
        except FileNotFoundError:
            return CopyState(commit=initial)
        except (OSError, msgspec.DecodeError) as error:
            raise BackendError(
                f"cannot read {path}: {error}",
                hint="restore it from a backup of the pool; the bytes are untouched",
            ) from error

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
            files.write_durably(path, msgspec.json.encode(copy))
        except OSError as error:
            raise BackendError(f"cannot write {path}: {error.strerror}") from error
