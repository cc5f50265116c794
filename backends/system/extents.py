"""
Which ranges differ between two clones of a file on XFS, by where they are on the disk.

A clone shares all of its blocks with its origin (FICLONE), and a write gives a shared
block another place. So what two clones, to which nobody writes, have at the same place
is the same. The reverse is not so: a store through a mapping moves a whole folio.

Source: Documentation/filesystems/fiemap.rst; include/uapi/linux/fiemap.h.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from backends.system import libc
from backends.system.copy_file import clone_range
from backends.system.extent_maps import Extent, differently_placed
from backends.system.ranges import (
    BLOCK_BYTES,
    Range,
    differing,
    joined,
    merged,
    whole_blocks,
)

# Source: include/uapi/linux/magic.h.
FILESYSTEM_TYPE: Final = 0x5846_5342
_FIEMAP: Final = 0xC020_660B
# Offset, length, flags, extents told, room for them, nothing.
_REQUEST: Final = struct.Struct("=QQIIII")
_SYNC: Final = 1
# Offsets in the file and on the disk, length, flags.
_EXTENT: Final = struct.Struct("=QQQ16xI12x")
_FLAGS_WORD: Final = 10  # of 32 bits
_LAST, _UNWRITTEN, _MERGED, _SHARED = 0x1, 0x800, 0x1000, 0x2000
# Any other flag says that the place may not be all there is to know.
_SURE: Final = _LAST | _UNWRITTEN | _MERGED | _SHARED
# Few: what is not the same at all is looked at one by one.
_EXTENTS_PER_CALL: Final = 512
_CALLS_MAX: Final = 8192
# Of a part that is looked at again; what was written meanwhile is in pieces.
_EXTENTS_AGAIN: Final = 4 * _EXTENTS_PER_CALL
# Each costs as much to clone as an extent of the whole file does, which has more.
_MOVED_MAX: Final = 500_000
# Of any filesystem: what is cloned are whole blocks.
_BLOCK_BYTES_MAX: Final = 65536
_NOT_SHARED: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV)
_CANNOT: Final = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADR)


class UntoldError(Exception):
    """The filesystem does not tell where a file is, or it is in too many places."""


def is_xfs(descriptor: int) -> bool:
    """Return whether an open file is on XFS."""
    return libc.filesystem_type(descriptor) == FILESYSTEM_TYPE


def changed_ranges(old: int, new: int) -> list[Range] | None:
    """
    Return where the bytes of *new* differ from those of *old*, as `differing` does.

    Both are open clones of one file, which nobody writes to. None says that the disk
    cannot tell, or that the file has millions of extents.
    """
    try:
        return differing(old, new, _candidates(old, new, os.fstat(new).st_size))
    except UntoldError:
        return None


class Places:
    """Where a file was on the disk: what `_told` said of one part after the other."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, int, bytes]] = []

    def note(self, begin: int, end: int, told: bytes) -> None:
        """Note what was *told* of the part from *begin* to *end*, the next one."""
        self._parts.append((begin, end, told))

    @classmethod
    def of(cls, file: int, end: int) -> Places:
        """Return those up to *end* of the open *file*, which has few extents there."""
        places = cls()
        places.note(0, end, _told(file, 0, end))
        return places

    def look_again(self, file: int) -> list[Range]:
        """
        Return where the open *file* is not at the same places any more.

        Those of now are noted.

        Raises:
            UntoldError: the disk cannot tell, or there are many more extents now.

        """
        found: list[Range] = []
        size, end = os.fstat(file).st_size, 0
        before, self._parts = self._parts, []
        for begin, end, known in before:
            now = _told(file, begin, end, _EXTENTS_AGAIN)
            if _told_until(now, end, _EXTENTS_AGAIN) < end:
                raise UntoldError
            self.note(begin, end, now)
            if now != known:
                both = (_extents(each, begin, end) for each in (known, now))
                found += differently_placed(*both)
        if end < size:
            # What it has grown by is in any case looked at the next time.
            self.note(end, size, b"")
            found.append((end, size - end))
        return found


def moved_ranges(
    old: int, new: int, places: Places | None = None
) -> list[Range] | None:
    """
    Return what *new* has not at the same place as *old*; see `changed_ranges`.

    *places* takes all its places, if others write to it.
    """
    try:
        found = joined(_candidates(old, new, os.fstat(new).st_size, places=places))
        ranges = list(itertools.islice(found, _MOVED_MAX + 1))
    except UntoldError:
        return None
    return ranges if len(ranges) <= _MOVED_MAX else None


def moved_within(old: int, new: int, ranges: Iterable[Range]) -> list[Range]:
    """Return what of *ranges* is not at the same place in *old* and *new*."""
    return [
        found
        for at, length in ranges
        for found in _candidates(old, new, at + length, begin=at)
    ]


def share_beginning(source: int, into: int) -> None:
    """
    Have *into* share the beginning of *source*, to which others may write.

    That waits for direct writes that have begun. They have moved the file's times by
    then, and come to their places when they end.
    """
    if size := os.fstat(source).st_size:
        clone_range(source, into, 0, min(size, _BLOCK_BYTES_MAX))


def share(source: int, into: int, ranges: Iterable[Range]) -> None:
    """Have *into* share *ranges*, in whole blocks, of *source*; raises OSError."""
    for at, length in ranges:
        # Up to where the file ends now: it may grow meanwhile.
        end = min(at + length + -length % BLOCK_BYTES, os.fstat(source).st_size)
        if at < end:
            clone_range(source, into, at, end - at)


def share_moved(
    base: int, source: int, *, into: int, places: Places | None = None
) -> list[Range] | None:
    """
    Have *into* share what the open *source* has not at the same place as *base*.

    Return where that is: whole blocks, each range of one moment, no two of one if
    others write to *source*. None says that all of it is to be cloned: the disk cannot
    tell, too much has moved, or the file was cut meanwhile.
    """
    try:
        share_beginning(source, into)
        found = moved_ranges(base, source, places)
        moved = None if found is None else merged(whole_blocks(found))
        share(source, into, moved or ())
    except OSError as error:
        if error.errno not in _NOT_SHARED:
            raise
        return None
    return moved


def _candidates(
    old: int, new: int, size: int, *, begin: int = 0, places: Places | None = None
) -> Iterator[Range]:
    for _ in range(_CALLS_MAX):
        if begin >= size:
            return
        before, after = _told(old, begin, size), _told(new, begin, size)
        end = min(_told_until(before, size), _told_until(after, size))
        if places is not None:
            places.note(begin, end, after)
        if before != after or not _is_sure(after):
            pieces = (_extents(each, begin, end) for each in (before, after))
            yield from differently_placed(*pieces)
        begin = end
    if begin < size:
        raise UntoldError


def _told(
    descriptor: int, begin: int, end: int, count_max: int = _EXTENTS_PER_CALL
) -> bytes:
    """
    Return the first extents between *begin* and *end*, as the kernel has them.

    None is marked as the last one: it may be that of the question alone.
    """
    content = bytearray(_REQUEST.size + count_max * _EXTENT.size)
    request = begin, end - begin, _SYNC, 0, count_max, 0
    _REQUEST.pack_into(content, 0, *request)
    try:
        libc.ioctl(descriptor, _FIEMAP, content)
    except OSError as error:
        if error.errno in _CANNOT:
            raise UntoldError from error
        raise
    count = _REQUEST.unpack_from(content)[3]
    if count:
        flags_at = _REQUEST.size + (count - 1) * _EXTENT.size + 4 * _FLAGS_WORD
        content[flags_at] &= ~_LAST & 0xFF
    return bytes(content[_REQUEST.size : _REQUEST.size + count * _EXTENT.size])


def _told_until(content: bytes, size: int, count_max: int = _EXTENTS_PER_CALL) -> int:
    if len(content) < count_max * _EXTENT.size:
        return size
    offset, _, length, _ = _EXTENT.unpack_from(content, len(content) - _EXTENT.size)
    end: int = offset + length
    return min(end, size)


def _is_sure(content: bytes) -> bool:
    words = memoryview(content).cast("I")
    flags = set(words[_FLAGS_WORD :: _EXTENT.size // words.itemsize])
    return all(each | _SURE == _SURE for each in flags)


def _extents(content: bytes, begin: int, end: int) -> Iterator[Extent]:
    """Yield what *content* says of the bytes from *begin* to *end*."""
    for offset, place, length, flags in _EXTENT.iter_unpack(content):
        first = max(begin, offset)
        last = min(end, offset + length)
        if first >= last:
            continue
        if flags | _SURE != _SURE:
            yield first, last, object()  # equal to nothing
        elif not flags & _UNWRITTEN:
            yield first, last, place - offset
