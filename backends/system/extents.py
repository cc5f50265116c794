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
from collections.abc import Iterator
from typing import Final

from backends.system import libc
from backends.system.copy_file import clone_range
from backends.system.extent_maps import Extent, differently_placed
from backends.system.ranges import BLOCK_BYTES, Range, differing, joined

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
_MOVED_MAX: Final = 20_000
# Of any filesystem: what is cloned are whole blocks.
_BLOCK_BYTES_MAX: Final = 65536
_NOT_SHARED: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV)
_CANNOT: Final = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADR)


class _UntoldError(Exception):
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
    except _UntoldError:
        return None


def moved_ranges(old: int, new: int, *, into: int) -> list[Range] | None:
    """
    Return what *new*, to which others write, has not at the same place as *old*.

    *into* gets the beginning of *new*: to clone that waits for direct writes that have
    begun. They have moved the file's times by then, and come to their places when they
    end. None as above, or says that it is quicker to clone all of the file.
    """
    size = os.fstat(new).st_size
    if size:
        clone_range(new, into, 0, min(size, _BLOCK_BYTES_MAX))
    try:
        found = joined(_candidates(old, new, os.fstat(new).st_size))
        ranges = list(itertools.islice(found, _MOVED_MAX + 1))
    except _UntoldError:
        return None
    return ranges if len(ranges) <= _MOVED_MAX else None


def share_moved(base: int, source: int, *, into: int) -> list[Range] | None:
    """
    Have *into* share what the open *source* has not at the same place as *base*.

    Return where that is: whole blocks, each range of one moment, no two of one if
    others write to *source*. None says that all of it is to be cloned: the disk cannot
    tell, too much has moved, or the file was cut meanwhile.
    """
    try:
        moved = moved_ranges(base, source, into=into)
        for at, length in moved or ():
            # Up to where the file ends now: it may grow meanwhile.
            end = min(at + length + -length % BLOCK_BYTES, os.fstat(source).st_size)
            if at < end:
                clone_range(source, into, at, end - at)
    except OSError as error:
        if error.errno not in _NOT_SHARED:
            raise
        return None
    return moved


def _candidates(old: int, new: int, size: int) -> Iterator[Range]:
    begin = 0
    for _ in range(_CALLS_MAX):
        if begin >= size:
            return
        before, after = _told(old, begin, size), _told(new, begin, size)
        end = min(_told_until(before, size), _told_until(after, size))
        if before != after or not _is_sure(after):
            pieces = (_extents(each, begin, end) for each in (before, after))
            yield from differently_placed(*pieces)
        begin = end
    if begin < size:
        raise _UntoldError


def _told(descriptor: int, begin: int, end: int) -> bytes:
    """Return the first extents between *begin* and *end*, as the kernel has them."""
    content = bytearray(_REQUEST.size + _EXTENTS_PER_CALL * _EXTENT.size)
    request = begin, end - begin, _SYNC, 0, _EXTENTS_PER_CALL, 0
    _REQUEST.pack_into(content, 0, *request)
    try:
        libc.ioctl(descriptor, _FIEMAP, content)
    except OSError as error:
        if error.errno in _CANNOT:
            raise _UntoldError from error
        raise
    count = _REQUEST.unpack_from(content)[3]
    return bytes(content[_REQUEST.size : _REQUEST.size + count * _EXTENT.size])


def _told_until(content: bytes, size: int) -> int:
    if len(content) < _EXTENTS_PER_CALL * _EXTENT.size:
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
