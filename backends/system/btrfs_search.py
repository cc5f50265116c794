"""
Items of a btrfs tree, those in blocks that a late transaction has written alone.

Blocks that are older are not even read, so that the answer costs what has changed,
whatever the tree holds.

Source: include/uapi/linux/btrfs.h, btrfs_tree.h; ioctl_btrfs in btrfs-ioctl(2).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from backends.system import libc

Key = tuple[int, int, int]  # object, type, offset
EXTENT_DATA: Final = 108
TYPE_LAST: Final = 255
OFFSET_LAST: Final = 2**64 - 1

_TREE_SEARCH: Final = 0xC070_9411  # version 2
# Tree; objects, offsets, transactions and types from and to; items, sizes.
_SEARCH: Final = struct.Struct("=Q6QIII36xQ")
_SEARCH_SIZE: Final = 256 * 1024
_ITEM: Final = struct.Struct("=8xQQII")  # object, offset, type, length


def items(
    descriptor: int, *, first: Key, last: Key, transaction_min: int = 0
) -> Iterator[tuple[Key, memoryview]]:
    """
    Yield the items from *first* to *last*, in order, of the tree of an open file.

    They are all those of each block that *transaction_min* or a later one has written.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN.

    """
    while True:
        content = bytearray(_SEARCH.size + _SEARCH_SIZE)
        _SEARCH.pack_into(
            content,
            0,
            0,  # the tree that the descriptor is in
            *(first[0], last[0], first[2], last[2], transaction_min, 2**64 - 1),
            *(first[1], last[1], 2**32 - 1, _SEARCH_SIZE),
        )
        libc.ioctl(descriptor, _TREE_SEARCH, content)
        count = _SEARCH.unpack_from(content)[9]
        if not count:
            return
        view, at = memoryview(content), _SEARCH.size
        for _ in range(count):
            number, offset, kind, length = _ITEM.unpack_from(content, at)
            at += _ITEM.size
            yield (number, kind, offset), view[at : at + length]
            at += length
        first = _after(number, kind, offset)


def _after(number: int, kind: int, offset: int) -> Key:
    """Return the key that follows; offsets may be hashes of 64 bits."""
    if offset < OFFSET_LAST:
        return number, kind, offset + 1
    return (number, kind + 1, 0) if kind < TYPE_LAST else (number + 1, 0, 0)
