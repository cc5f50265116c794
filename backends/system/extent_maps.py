"""Which ranges two files have at different places of one disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from backends.system.ranges import Range

# Where a range of a file begins and ends, and its place: something that is equal in
# another file where, and only where, the bytes there are the same ones on the disk. It
# stays the same when the range is cut. What reads as zeros is no extent.
Extent = tuple[int, int, object]
_NO_MORE: Final[Extent] = (1 << 64, 1 << 64, None)


def differently_placed(old: Iterator[Extent], new: Iterator[Extent]) -> Iterator[Range]:
    """Yield what is not at the same place in *old* and *new*, which come in order."""
    one, other = next(old, _NO_MORE), next(new, _NO_MORE)
    while True:
        if one == other:
            if one is _NO_MORE:
                return
            one, other = next(old, _NO_MORE), next(new, _NO_MORE)
            continue
        begin = min(one[0], other[0])
        end = min(each for each in (*one[:2], *other[:2]) if each > begin)
        if one[0] != other[0] or one[2] != other[2]:
            yield begin, end - begin
        if one[0] == begin:
            one = _after(end, one, old)
        if other[0] == begin:
            other = _after(end, other, new)


def _after(end: int, extent: Extent, following: Iterator[Extent]) -> Extent:
    """Return what comes after *end*: the rest of *extent*, or the next one."""
    if end < extent[1]:
        return end, extent[1], extent[2]
    return next(following, _NO_MORE)
