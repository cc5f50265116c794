"""
Writes that are to be durable: from before the first of them until they are flushed.

A write that fails after it was made is told by the next syncfs(2), once to each
descriptor that was open by then. One that is opened later hears nothing of it if
anybody was told: another volume's flush on the same filesystem is enough. And the
second flush finds nothing wrong, though the bytes are not on the disk. So a descriptor
is opened before the writes; and after an error they have to be made once more.

Source: syncfs(2), VERSIONS; the kernel's lib/errseq.c.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from pathlib import Path
from typing import Final

from backends.system import libc
from backends.system.beneath import opened
from backends.system.clock import boottime_ns, wall_at_boot_ns
from backends.system.walk import walk

_CHUNK: Final = 2**20
# A ctime is of the clock's last tick, and the clock is set in small steps.
_SLACK_NS: Final = 60 * 10**9


class Writeback:
    """
    Writes to the filesystem of *directory* from now on; for several threads.

    Its descriptor is closed when nobody refers to it any more, not while it is flushed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._began_ns = boottime_ns()
        self._clock_ns = wall_at_boot_ns()
        self._failed = False
        self._lock = threading.Lock()
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        weakref.finalize(self, os.close, self._descriptor)

    def note_clock(self) -> None:
        """See the wall clock set back: files are told to be older from then on."""
        self._clock_ns = min(self._clock_ns, wall_at_boot_ns())

    def flush(self) -> None:
        """
        Make all that was written durable.

        Raises:
            OSError: some of it is not, and nobody knows which; nor after the next call.

        """
        with self._lock:
            if not self._failed:
                self._failed = True
                libc.sync_filesystem(self._descriptor, about=str(self.directory))
                self._failed = False
                return
        raise OSError(errno.EIO, "an earlier write was lost", str(self.directory))

    def repair(self, tree: Path, *, whole: bool) -> None:
        """
        Write once more what was written in *tree*, or all of it, and flush that.

        Nobody else may write there. What is read is what programs read there, too.

        Raises:
            OSError: it is not durable this time either.

        """
        self.note_clock()
        since_ns = self._clock_ns + self._began_ns - _SLACK_NS
        with self._lock, opened(tree) as top:
            for _, name, directory, status in walk(top):
                changed = whole or status.st_ctime_ns >= since_ns
                if changed and stat.S_ISREG(status.st_mode):
                    _write_again(name, directory, status)
            libc.sync_filesystem(self._descriptor, about=str(self.directory))
            self._failed = False


def _write_again(name: bytes, directory: int, status: os.stat_result) -> None:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(name, flags, dir_fd=directory)
    try:
        at = 0
        while at < status.st_size:
            try:
                at = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError:  # only a hole is left
                break
            end = os.lseek(descriptor, at, os.SEEK_HOLE)
            while at < end:
                chunk = os.pread(descriptor, min(_CHUNK, end - at), at)
                if not chunk:
                    break
                at += os.pwrite(descriptor, chunk, at)
        os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))
    finally:
        os.close(descriptor)
