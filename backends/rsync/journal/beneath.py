"""Finds the names below a directory without ever stepping through a symbolic link."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from backends.rsync.journal.entries import Known, look

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# Paths may be 2,000 levels deep; a process may open 1,024 files.
_LEVELS_KEPT_MAX: Final = 128


class Beneath:
    """
    The names below the directory *top*; the empty path is *top* itself.

    Each component is opened in the one above it, so whoever renames directories or
    swaps them for links meanwhile leads us nowhere. The way to the last name is kept
    open: paths that come in order cost one step each. Use it in one thread.
    """

    def __init__(self, top: Path) -> None:
        self._name = os.fsencode(top.name)
        self._above = os.open(top.parent, os.O_RDONLY | os.O_DIRECTORY)
        self._kept: list[tuple[bytes, int]] = []
        # Below these only the last directory is kept, for its other names.
        self._deepest = -1
        self._deepest_way: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open."""
        self._forget_from(0)
        os.close(self._above)

    def at(self, path: bytes, *, make: bool = False) -> tuple[int, bytes]:
        """
        Return the open directory that *path* is in, and its name there.

        It stays open until the next call. With *make*, directories that are missing on
        the way are made, for root alone.

        Raises:
            FileNotFoundError: a directory on the way is missing.
            NotADirectoryError: one is something else, a symbolic link for instance.

        """
        if not path:
            return self._above, self._name
        *way, name = [self._name, *path.split(b"/")]
        if self._deepest >= 0 and way == self._deepest_way:
            return self._deepest, name
        same = 0
        while same < min(len(way), len(self._kept)) and (
            way[same] == self._kept[same][0]
        ):
            same += 1
        self._forget_from(same)
        directory = self._kept[-1][1] if self._kept else self._above
        for part in way[same:]:
            directory = self._step(directory, part, make=make)
        self._deepest_way = way
        return directory, name

    def find(self, path: bytes) -> tuple[int, bytes] | None:
        """Return what `at` does, None if there is no such directory."""
        try:
            return self.at(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, path: bytes) -> int:
        """Return the directory *path*, opened; the caller closes it."""
        directory, name = self.at(path)
        return os.open(name, _DIRECTORY, dir_fd=directory)

    def look(self, path: bytes) -> Known | None:
        """Return what *path* is now, None if it is not there."""
        found = self.find(path)
        if found is None:
            return None
        directory, name = found
        return look(name, directory=directory, path=path)

    def status(self, path: bytes) -> os.stat_result | None:
        """Return *path*'s own status, None if it is not there."""
        found = self.find(path)
        if found is None:
            return None
        directory, name = found
        try:
            return os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def forget(self) -> None:
        """Look everything up anew: the caller moves or removes a directory."""
        self._forget_from(0)

    def _step(self, directory: int, part: bytes, *, make: bool) -> int:
        try:
            below = os.open(part, _DIRECTORY, dir_fd=directory)
        except FileNotFoundError:
            if not make:
                raise
            os.mkdir(part, 0o700, dir_fd=directory)
            below = os.open(part, _DIRECTORY, dir_fd=directory)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise NotADirectoryError(errno.ENOTDIR, "a symbolic link") from None
            raise
        if len(self._kept) < _LEVELS_KEPT_MAX:
            self._kept.append((part, below))
        else:
            self._close_deepest()
            self._deepest = below
        return below

    def _forget_from(self, level: int) -> None:
        self._close_deepest()
        while len(self._kept) > level:
            os.close(self._kept.pop()[1])

    def _close_deepest(self) -> None:
        if self._deepest >= 0:
            os.close(self._deepest)
            self._deepest = -1
            self._deepest_way = []
