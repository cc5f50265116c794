"""
Finds names below a directory without ever stepping through a symbolic link.

Others may write to the tree meanwhile, and may swap a directory for a link at any
moment. So each directory is opened by its one name in the directory above it.
Standard library alone and quick to import: `tree.py` is a program of its own.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Self

from backends.system import libc

if TYPE_CHECKING:  # quick to load, as the programs in jails have to be
    from pathlib import Path

_RESOLVE: Final = (
    libc.RESOLVE_BENEATH | libc.RESOLVE_NO_SYMLINKS | libc.RESOLVE_NO_MAGICLINKS
)
DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# Trees may be thousands of levels deep; a process may open 1,024 files.
_OPEN_MAX: Final = 64


def open_directory(name: bytes | str | Path, *, dir_fd: int | None = None) -> int:
    """
    Return the directory *name*, opened; the caller closes it.

    Raises:
        FileNotFoundError: there is no such name.
        NotADirectoryError: it is something else, a symbolic link for instance.

    """
    try:
        return os.open(name, DIRECTORY, dir_fd=dir_fd)
    except OSError as error:
        if error.errno == errno.ELOOP:  # some filesystems say so of a link
            raise NotADirectoryError(errno.ENOTDIR, "a symbolic link", name) from None
        raise


def name_in(error: OSError) -> str:
    """Return the name that *error* is about, "" if it was an open file, or nothing."""
    name = error.filename
    return "" if name is None or isinstance(name, int) else os.fsdecode(name)


def open_beneath(path: str | bytes, flags: int, *, top: int) -> int:
    """
    Return *path*, which exists below the open directory *top*; the caller closes it.

    No component leads through a link, a mount's magic link, or out of *top*.

    Raises:
        OSError: ELOOP at a link, EXDEV at what leads out, and as open(2).

    """
    path = os.fsencode(path)
    return libc.open_at(top, path, flags | os.O_NOFOLLOW, _RESOLVE)


@contextmanager
def opened(name: bytes | str | Path, *, dir_fd: int | None = None) -> Iterator[int]:
    """Yield what `open_directory` returns, and close it."""
    directory = open_directory(name, dir_fd=dir_fd)
    try:
        yield directory
    finally:
        os.close(directory)


class Way:
    """
    The way from the open directory *top* down to one below it, name by name.

    Only the last directories of a long way stay open. When the way back leads above
    them, it is opened again from the top: once for as many levels as stay open.
    *top* remains the caller's.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self.names: list[bytes] = []
        self._opened: list[int] = []  # as many; -1 is one that was closed

    def last(self) -> int:
        """
        Return the directory that the way leads to, open until the next call.

        Raises:
            FileNotFoundError, NotADirectoryError: the way is no longer there.

        """
        if not self._opened:
            return self._top
        if self._opened[-1] < 0:
            self._open_again()
        return self._opened[-1]

    def down(self, name: bytes) -> int:
        """Go down to the directory *name* and return what `last` does; as `last`."""
        below = open_directory(name, dir_fd=self.last())
        self.names.append(name)
        self._opened.append(below)
        if len(self._opened) > _OPEN_MAX:
            self._close(-1 - _OPEN_MAX)
        return below

    def up(self) -> None:
        """Go back by one directory."""
        self._close(-1)
        self._opened.pop()
        self.names.pop()

    def close(self) -> None:
        """Go back to the top."""
        while self.names:
            self.up()

    def _open_again(self) -> None:
        names, self.names, self._opened = self.names, [], []
        try:
            for name in names:
                self.down(name)
        except OSError:
            self.close()
            self.names, self._opened = names, [-1] * len(names)
            raise

    def _close(self, index: int) -> None:
        if self._opened[index] >= 0:
            os.close(self._opened[index])
            self._opened[index] = -1


class Beneath:
    """
    The names below the directory *top*, a path or an open one; "" is *top* itself.

    The way to the last name is kept open: paths that come in order cost one step each.
    Use it in one thread.
    """

    def __init__(self, top: Path | int) -> None:
        if isinstance(top, int):
            self._name, self._above = b".", os.dup(top)
        else:
            # Not *top* itself: another directory may come to its place meanwhile.
            self._name = os.fsencode(top.name)
            self._above = os.open(top.parent, os.O_RDONLY | os.O_DIRECTORY)
        self._way = Way(self._above)
        # Where the way leads; None: not all the way.
        self._at: bytes | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._way.close()
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
        above, _, name = path.rpartition(b"/")
        if above != self._at:
            self._at = None
            self._go(above, make=make)
            self._at = above
        return self._way.last(), name

    def _go(self, path: bytes, *, make: bool) -> None:
        """Lead the way to the directory *path*; as `at`."""
        parts = [self._name, *(path.split(b"/") if path else ())]
        way = self._way
        same = 0
        for part, known in zip(parts, way.names, strict=False):
            if part != known:
                break
            same += 1
        while len(way.names) > same:
            way.up()
        for part in parts[same:]:
            try:
                way.down(part)
            except FileNotFoundError:
                if not make:
                    raise
                os.mkdir(part, 0o700, dir_fd=way.last())
                way.down(part)

    def find(self, path: bytes) -> tuple[int, bytes] | None:
        """Return what `at` does, None if there is no such directory."""
        try:
            return self.at(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    @contextmanager
    def opened(self, path: bytes) -> Iterator[int]:
        """Yield the open directory *path*, and close it; raises as `at`."""
        directory, name = self.at(path)
        with opened(name, dir_fd=directory) as below:
            yield below

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

    def link(self, first: bytes, path: bytes) -> None:
        """Make *path* a second name of the file *first*; make what it has to be in."""
        directory, name = self.at(first)
        directory = os.dup(directory)
        try:
            at, new = self.at(path, make=True)
            os.link(
                name, new, src_dir_fd=directory, dst_dir_fd=at, follow_symlinks=False
            )
        finally:
            os.close(directory)

    def forget(self) -> None:
        """Look everything up anew: the caller moves or removes a directory."""
        self._at = None
        self._way.close()
