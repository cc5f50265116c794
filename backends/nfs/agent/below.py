"""
Paths on a share: none of them leads through a link, or out of it.

Whoever can write to the share can put links into it, and names with `..` into its
catalogue. The agent's jail holds such a path inside of the share; this holds it where
it was meant to be, so that one volume is not taken for another.

A directory is opened with O_PATH wherever that will do. One that is opened to be read
may be delegated to this client (RFC 8881, 18.39), which from then on believes that it
is there, also when it was removed on the server.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice

from backends.system.beneath import open_beneath
from backends.system.opening import Opener
from backends.system.regular_files import open_regular

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
# Enough to reach what is in a directory.
WAY = os.O_PATH | os.O_DIRECTORY


class Below:
    """What is below the directory *top*; paths are relative to it, "" is *top*."""

    def __init__(self, top: str) -> None:
        self._top = os.open(top, os.O_PATH | os.O_DIRECTORY)
        self._opener = Opener(self._top)

    @contextmanager
    def way(self, path: str) -> Iterator[tuple[int, str]]:
        """Yield the open directory that *path* is in, and its name there."""
        above, _, name = path.rpartition("/")
        if name in ("", ".", ".."):
            raise NotADirectoryError(errno.ENOTDIR, "no name of a file", path)
        directory = open_beneath(above or ".", WAY, top=self._top)
        try:
            yield directory, name
        finally:
            os.close(directory)

    @contextmanager
    def directory(self, path: str, flags: int = _DIRECTORY) -> Iterator[int]:
        """Yield the directory *path*, opened."""
        directory = open_beneath(path or ".", flags, top=self._top)
        try:
            yield directory
        finally:
            os.close(directory)

    def create(self, path: str, mode: int) -> int:
        """Return a new file, opened for writing."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with self.way(path) as (directory, name):
            return self._opener.open(name, flags, mode, dir_fd=directory)

    def read(self, path: str, size_max: int) -> bytes:
        """Return what the file *path* holds, as far as *size_max* bytes go."""
        with self.way(path) as (directory, name):
            opened = open_regular(name, dir_fd=directory, open_file=self._opener.open)
        with os.fdopen(opened, "rb") as file:
            return file.read(size_max)

    def status(self, path: str) -> os.stat_result:
        """Return *path*'s own status."""
        if not path:
            return os.stat(self._top)
        with self.way(path) as (directory, name):
            return os.stat(name, dir_fd=directory, follow_symlinks=False)

    def exists(self, path: str) -> bool:
        """Return whether there is something at *path*, a link for instance."""
        try:
            self.status(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_directory(self, path: str) -> bool:
        """Return whether *path* is a directory, and no link to one."""
        try:
            return stat.S_ISDIR(self.status(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def names(self, path: str) -> list[str]:
        """Return the names in the directory *path*."""
        with self.directory(path) as directory:
            return os.listdir(directory)

    def some_names(self, path: str, at_most: int) -> list[str]:
        """Return the names in the directory *path*, or as many as that."""
        with self.directory(path) as directory, os.scandir(directory) as entries:
            return [entry.name for entry in islice(entries, at_most)]

    def make_directory(self, path: str, mode: int) -> None:
        """Make the directory *path*."""
        # mkdir(2) believes what this client remembers of the name, stat(2) asks.
        if self.exists(path):
            raise FileExistsError(errno.EEXIST, "it exists", path)
        with self.way(path) as (directory, name):
            os.mkdir(name, mode, dir_fd=directory)

    def set_mode(self, path: str, mode: int) -> None:
        """Give the directory *path* that *mode*."""
        with self.directory(path, WAY) as directory:
            os.chmod(f"/proc/self/fd/{directory}", mode)

    def set_owner(self, path: str, uid: int, gid: int) -> None:
        """Give the directory *path* to that user and group."""
        with self.way(path) as (directory, name):
            os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)

    def renew_time(self, path: str) -> None:
        """Give *path* its server's time; what it holds stays."""
        with self.way(path) as (directory, name):
            os.utime(name, dir_fd=directory, follow_symlinks=False)

    def rename(self, path: str, new: str) -> None:
        """Give *path* the name *new*; an empty directory, or a file, there goes."""
        with self.way(path) as (at, name), self.way(new) as (to, new_name):
            os.rename(name, new_name, src_dir_fd=at, dst_dir_fd=to)

    def link(self, path: str, new: str) -> None:
        """Make *new* a second name of the file *path*."""
        with self.way(path) as (at, name), self.way(new) as (to, new_name):
            os.link(name, new_name, src_dir_fd=at, dst_dir_fd=to, follow_symlinks=False)

    def unlink(self, path: str) -> None:
        """Remove the file *path*."""
        with self.way(path) as (directory, name):
            os.unlink(name, dir_fd=directory)

    def remove_directory(self, path: str) -> None:
        """Remove the empty directory *path*."""
        with self.way(path) as (directory, name):
            os.rmdir(name, dir_fd=directory)

    def remove_files(self, path: str) -> None:
        """Remove the directory *path* and the files in it, as far as that goes."""
        with suppress(OSError):
            for name in self.names(path):
                with suppress(OSError):
                    self.unlink(f"{path}/{name}")
            self.remove_directory(path)

    def space(self) -> os.statvfs_result:
        """Return how much room the share has."""
        return os.statvfs(self._top)
