"""
Which ranges of a file differ between two snapshots of its subvolume, on btrfs.

Whatever a file has got since the older snapshot is in a block of the tree that a later
transaction has written: around the extents in these blocks, both files are compared by
where they are on the disk. An extent's own transaction says nothing, for what is cloned
keeps it. Nor does what a file has lost have to show, because a hole is no item, and a
block that is empty goes: but then it takes less of the disk than what was seen makes
up for, and all extents are compared.

Source: include/uapi/linux/btrfs_tree.h, struct btrfs_file_extent_item.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from backends.system.btrfs_search import EXTENT_DATA, items
from backends.system.extent_maps import Extent, differently_placed
from backends.system.ranges import Range, differing, joined

# Of an item: the size of its bytes, its kind; and if they are not inline the address,
# where they begin there, and how many they are.
_INLINE_SIZE: Final = struct.Struct("=8xQ")
_KIND_AT: Final = 20
_PLACE: Final = struct.Struct("=21xQ8xQQ")
_INLINE, _PREALLOCATED = 0, 2
_SECTOR_BYTES: Final = 4096
_STATUS_BLOCK_BYTES: Final = 512  # stat(2)
_END: Final = 1 << 63
# A hole at the edge of a block has its neighbour in another one.
_AROUND_BYTES: Final = 1 << 20
_CANNOT: Final = (errno.EPERM, errno.ENOTTY)

# Begin, end, place (None where it reads as zeros), and whether it takes from the disk.
_Item = tuple[int, int, object, bool]


def changed_ranges(old: int, new: int, *, since: int) -> list[Range] | None:
    """
    Return where the bytes of *new* differ from those of *old*, as `differing` does.

    Both are the same file, open in two read-only snapshots that were taken of one
    subvolume (see `Subvolume.taken_of`: what replaced it has other blocks, and old ones
    among them); *since* is the transaction that made the older snapshot. None says that
    the kernel does not tell: without CAP_SYS_ADMIN, and on another filesystem.
    """
    before, after = os.fstat(old), os.fstat(new)
    if before.st_ino != after.st_ino:
        return None
    inode = after.st_ino
    try:
        windows = list(joined(_seen(new, inode, since)))
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return None
    grown = (after.st_blocks - before.st_blocks) * _STATUS_BLOCK_BYTES
    if _taken_bytes(new, inode, windows) - _taken_bytes(old, inode, windows) != grown:
        windows = [(0, _END)]
    return differing(old, new, _candidates(old, new, inode, windows))


def _seen(new: int, inode: int, since: int) -> Iterator[Range]:
    """Yield the items in late blocks, and what is around them."""
    for first, last, _, _ in _items(new, inode, 0, _END, transaction_min=since + 1):
        begin = max(first - _AROUND_BYTES, 0)
        yield begin, last + _AROUND_BYTES - begin


def _taken_bytes(descriptor: int, inode: int, windows: Iterable[Range]) -> int:
    """Return how much of the disk the extents that begin in *windows* take there."""
    return sum(
        last - first
        for begin, length in windows
        for first, last, _, taken in _items(descriptor, inode, begin, begin + length)
        if taken
    )


def _candidates(
    old: int, new: int, inode: int, windows: Iterable[Range]
) -> Iterator[Range]:
    """
    Yield what is placed differently in *windows*.

    An extent that begins before one is seen in neither: it is the same in both, for it
    would be in the window if it were new.
    """
    for begin, length in windows:
        pieces = (_placed(each, inode, begin, begin + length) for each in (old, new))
        yield from differently_placed(*pieces)


def _placed(descriptor: int, inode: int, begin: int, end: int) -> Iterator[Extent]:
    for first, last, place, _ in _items(descriptor, inode, begin, end):
        if place is not None:
            yield first, last, place


def _items(
    descriptor: int, inode: int, begin: int, end: int, *, transaction_min: int = 0
) -> Iterator[_Item]:
    """Yield the items that begin in a range, cut at its end."""
    first, last = (inode, EXTENT_DATA, begin), (inode, EXTENT_DATA, end - 1)
    for (_, _, offset), content in items(
        descriptor, first=first, last=last, transaction_min=transaction_min
    ):
        kind = content[_KIND_AT]
        if kind == _INLINE:
            (size,) = _INLINE_SIZE.unpack_from(content)
            item_end = offset + size + -size % _SECTOR_BYTES
            yield offset, min(item_end, end), object(), True
            continue
        address, skipped, length = _PLACE.unpack_from(content)
        reads_zero = not address or kind == _PREALLOCATED
        # All of a compressed extent has one address.
        place = None if reads_zero else (address, skipped - offset)
        yield offset, min(offset + length, end), place, address != 0
