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
# A new instance has the options of the machine's own: not all that is lost is counted.
_OPTIONS: Final = ("overwrite", "nopause-on-trace")
_PREFIX: Final = "remora."
# For each processor: four thousand events, which is more than moves in a second.
_BUFFER_KIB: Final = 512
_INODES_MAX: Final = 32
# From here on it is not about the file's content, but about extended attributes, or
# where a write to a shared block will come. Source: fs/xfs/libxfs/xfs_bmap.h.
_OTHER_FORKS: Final = 1 << 8
_READ_BYTES: Final = 1 << 20
_READ_BYTES_MAX: Final = 64 << 20
# How many there are, and were. What was lost would be missing.
_COUNTS: Final = re.compile(rb"entries-in-buffer/entries-written: (\d+)/(\d+)")
# Older kernels tell decimal numbers, of an "offset". Before all of it comes what a
# thread calls itself, which may be anything.
_EVENT: Final = re.compile(
    rb".*: dev \d+:\d+ ino 0x([0-9a-f]+) .* "
    rb"(?:fileoff 0x([0-9a-f]+)|offset (\d+)) "
    rb"(?:startblock|block) \S+ (?:fsbcount 0x([0-9a-f]+)|count (\d+)) "
)


class ExtentEvents:
    """What is told of the inodes of a device; see `followed`."""

    def __init__(
        self, instance: int, inodes: Collection[int], block_bytes: int
    ) -> None:
        self._instance = instance
        self._inodes = inodes
        self._block_bytes = block_bytes

    def changed(self, inode: int) -> list[Range] | None:
        """
        Return where extents of a file have changed since it was begun to be followed.

        None says that the kernel has forgotten some of it, or was not asked.
        """
        try:
            content = _read(self._instance, b"trace")
        except OSError:
            return None
        counts = _COUNTS.search(content)
        is_whole = len(content) < _READ_BYTES_MAX
        if inode not in self._inodes or not is_whole:
            return None
        if counts is None or counts[1] != counts[2]:
            return None
        ranges: list[Range] = []
        for line in content.splitlines():
            if line.startswith(b"#") or not line:
                continue
            event = _EVENT.search(line)
            if event is None:
                return None
            at, offset, old_offset, count, old_count = event.groups()
            if int(at, 16) != inode:
                continue
            begin = int(offset, 16) if offset else int(old_offset)
            length = int(count, 16) if count else int(old_count)
            ranges.append((begin * self._block_bytes, length * self._block_bytes))
        return merged(ranges)


@contextmanager
def followed(inodes: Collection[int], *, on: int) -> Iterator[ExtentEvents | None]:
    """Follow *inodes* of the open *on*'s filesystem; yield None where that fails."""
    with ExitStack() as stack:
        events = None
        if 0 < len(inodes) <= _INODES_MAX:
            with suppress(OSError):
                instance = stack.enter_context(_instance())
                _follow(instance, inodes, os.fstat(on).st_dev)
                block_bytes = os.fstatvfs(on).f_bsize
                events = ExtentEvents(instance, inodes, block_bytes)
        yield events


def _follow(instance: int, inodes: Collection[int], device: int) -> None:
    number = os.major(device) << 20 | os.minor(device)
    these = " || ".join(f"ino == {each}" for each in inodes)
    about = f"dev == {number} && ({these})"
    filters = dict.fromkeys(_EVENTS, f"bmap_state < {_OTHER_FORKS} && {about}")
    filters[_EXCHANGED] = about
    _write(instance, "buffer_size_kb", str(_BUFFER_KIB))
    for each in _OPTIONS:
        _write(instance, "trace_options", each)
    for each, wanted in filters.items():
        _write(instance, f"events/xfs/{each}/filter", wanted)
        _write(instance, f"events/xfs/{each}/enable", "1")


@contextmanager
def _instance() -> Iterator[int]:
    """Yield the directory of a new instance, opened."""
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
            with _opened(place, name) as instance, _in_use(instance):
                yield instance
        finally:
            with suppress(OSError):
                os.rmdir(name, dir_fd=place)
    finally:
        os.close(place)


@contextmanager
def _opened(place: int, name: str) -> Iterator[int]:
    instance = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=place)
    try:
        yield instance
    finally:
        os.close(instance)


@contextmanager
def _in_use(instance: int) -> Iterator[None]:
    """Keep other processes from removing the instance."""
    file = os.open("trace_pipe", os.O_RDONLY | os.O_NONBLOCK, dir_fd=instance)
    try:
        yield
    finally:
        os.close(file)


def _write(directory: int, name: str, text: str) -> None:
    file = os.open(name, os.O_WRONLY, dir_fd=directory)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def _read(directory: int, name: bytes) -> bytes:
    content = bytearray()
    file = os.open(name, os.O_RDONLY, dir_fd=directory)
    try:
        while (more := os.read(file, _READ_BYTES)) and len(content) < _READ_BYTES_MAX:
            content += more
    finally:
        os.close(file)
    return bytes(content)
