"""
Which ranges of files on XFS have come to other places of the disk, as the kernel says.

A file with a hundred thousand extents takes a third of a second to be gone through.
Whatever changes one of them, a write to a shared block, a hole, a clone, goes through
few functions of XFS, and these have trace points. An instance of our own in tracefs,
which is mounted nowhere, tells of some files alone, by their inodes.

A process that is killed leaves its instance, and the next one removes it: one that is
in use cannot be removed. Where the kernel has no such events, none are told of.
Source: Documentation/trace/ftrace.rst; fs/xfs/libxfs/xfs_iext_tree.c, xfs_trace.h.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from backends.system import libc
from backends.system.ranges import Range, merged

# Each extent that is made, taken away, or changed: before and after.
_EVENTS: Final = (
    "xfs_iext_insert",
    "xfs_iext_remove",
    "xfs_bmap_pre_update",
    "xfs_bmap_post_update",
)
# What gives a file all the extents of another one at once: all of it has moved.
_EXCHANGED: Final = "xfs_swap_extent_before"
# A new instance has the options of the machine's own. What is lost before other events
# is told of, what is lost after all of them is not.
_OPTION: Final = "overwrite"
_PREFIX: Final = "remora."
# For each processor: four thousand events, which is more than moves in a second.
_BUFFER_KIB: Final = 512
_INODES_MAX: Final = 32
# From here on it is not about the file's content, but about extended attributes, or
# where a write to a shared block will come. Source: fs/xfs/libxfs/xfs_bmap.h.
_OTHER_FORKS: Final = 1 << 8
_READ_BYTES: Final = 1 << 20
_READ_BYTES_MAX: Final = 64 << 20
# Older kernels tell decimal numbers, of an "offset". Before all of it comes what a
# thread calls itself, which may be anything.
_EVENT: Final = re.compile(
    rb".*: dev \d+:\d+ ino 0x([0-9a-f]+) .* "
    rb"(?:fileoff 0x([0-9a-f]+)|offset (\d+)) "
    rb"(?:startblock|block) \S+ (?:fsbcount 0x([0-9a-f]+)|count (\d+)) "
)


class ExtentEvents:
    """What is told of *inodes* through the open *pipe*; see `followed`."""

    def __init__(self, pipe: int, inodes: Collection[int], block_bytes: int) -> None:
        self._pipe = pipe
        self._block_bytes = block_bytes
        self._changed: dict[int, list[Range]] = {inode: [] for inode in inodes}
        self._is_whole = True

    def changed(self, inode: int) -> list[Range] | None:
        """
        Return where extents of a file have changed since it was begun to be followed.

        None says that the kernel has forgotten some of it, or was not asked.
        """
        self.read()
        ranges = self._changed.get(inode)
        return None if ranges is None or not self._is_whole else merged(ranges)

    def read(self) -> None:
        """Note what was told by now: the kernel has room for more then."""
        content = b""
        try:
            # What has an end is turned off.
            while more := os.read(self._pipe, _READ_BYTES):
                content += more
                if len(content) >= _READ_BYTES_MAX:
                    break
        except BlockingIOError:
            for line in content.splitlines():
                self._note(line)
            return
        except OSError:
            pass
        self._is_whole = False

    def _note(self, line: bytes) -> None:
        event = _EVENT.match(line)
        # Where some were lost, a line of another kind says so.
        if event is None or int(event[1], 16) not in self._changed:
            self._is_whole = False
            return
        inode, offset, old_offset, count, old_count = event.groups()
        begin = int(offset, 16) if offset else int(old_offset)
        length = int(count, 16) if count else int(old_count)
        found = begin * self._block_bytes, length * self._block_bytes
        self._changed[int(inode, 16)].append(found)


@contextmanager
def followed(inodes: Collection[int], *, on: int) -> Iterator[ExtentEvents | None]:
    """Follow *inodes* of the open *on*'s filesystem; yield None where that fails."""
    with ExitStack() as stack:
        events = None
        if 0 < len(inodes) <= _INODES_MAX:
            with suppress(OSError):
                instance, pipe = stack.enter_context(_instance())
                _follow(instance, inodes, os.fstat(on).st_dev)
                events = ExtentEvents(pipe, inodes, os.fstatvfs(on).f_bsize)
        yield events


def _follow(instance: int, inodes: Collection[int], device: int) -> None:
    number = os.major(device) << 20 | os.minor(device)
    these = " || ".join(f"ino == {each}" for each in inodes)
    about = f"dev == {number} && ({these})"
    filters = dict.fromkeys(_EVENTS, f"bmap_state < {_OTHER_FORKS} && {about}")
    filters[_EXCHANGED] = about
    _write(instance, "buffer_size_kb", str(_BUFFER_KIB))
    _write(instance, "trace_options", _OPTION)
    for each, wanted in filters.items():
        _write(instance, f"events/xfs/{each}/filter", wanted)
        _write(instance, f"events/xfs/{each}/enable", "1")


@contextmanager
def _instance() -> Iterator[tuple[int, int]]:
    """
    Yield the directory of a new instance, and the pipe with its events, opened.

    As long as that is open, other processes cannot remove the instance.
    """
    top = libc.mounted_nowhere(b"tracefs")
    try:
        place = os.open("instances", os.O_RDONLY | os.O_DIRECTORY, dir_fd=top)
    finally:
        os.close(top)
    name = f"{_PREFIX}{secrets.token_hex(8)}"
    try:
        with os.scandir(place) as found:
            names = [each.name for each in found]
        for each in names:
            if each.startswith(_PREFIX):
                with suppress(OSError):
                    os.rmdir(each, dir_fd=place)
        os.mkdir(name, 0o700, dir_fd=place)
        try:
            flags = os.O_RDONLY | os.O_NONBLOCK
            with (
                _opened(place, name, os.O_RDONLY | os.O_DIRECTORY) as instance,
                _opened(instance, "trace_pipe", flags) as pipe,
            ):
                yield instance, pipe
        finally:
            with suppress(OSError):
                os.rmdir(name, dir_fd=place)
    finally:
        os.close(place)


@contextmanager
def _opened(directory: int, name: str, flags: int) -> Iterator[int]:
    file = os.open(name, flags, dir_fd=directory)
    try:
        yield file
    finally:
        os.close(file)


def _write(directory: int, name: str, text: str) -> None:
    with _opened(directory, name, os.O_WRONLY) as file:
        os.write(file, text.encode())
