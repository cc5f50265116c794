"""
Ranges of a file's bytes: their arithmetic, and which of them differ between two files.

What finds changes finds too much now and then (a place on the disk is another one, the
bytes are the same): the last word has a comparison of the bytes themselves.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

Range = tuple[int, int]  # offset and length, in bytes
RANGES_MAX: Final = 50_000
BLOCK_BYTES: Final = 4096
_NOWHERE: Final[Range] = (1 << 64, 1)
# Small enough for memory that is used again.
_CHUNK_BYTES: Final = 1 << 17
# A disk is asked for so many ranges at once, and so many bytes: what is asked for one
# after the other waits for each.
_AHEAD_RANGES: Final = 128
_AHEAD_BYTES: Final = 8 << 20


def merged(ranges: Iterable[Range], *, gap_bytes: int = 0) -> list[Range]:
    """
    Return what *ranges* cover, in order and disjoint.

    Neighbours become one where no more than *gap_bytes* lie between them.
    """
    return list(joined(sorted(ranges), gap_bytes=gap_bytes))


def joined(ranges: Iterable[Range], *, gap_bytes: int = 0) -> Iterator[Range]:
    """Yield *ranges*, which come in the order of their offsets, as `merged` does."""
    begin = end = 0
    for offset, length in ranges:
        if not length:
            continue
        if begin < end and offset <= end + gap_bytes:
            end = max(end, offset + length)
            continue
        if begin < end:
            yield begin, end - begin
        begin, end = offset, offset + length
    if begin < end:
        yield begin, end - begin


def cut(ranges: Iterable[Range], size: int) -> Iterator[Range]:
    """Yield what of *ranges* is before *size*."""
    return ((at, min(length, size - at)) for at, length in ranges if at < size)


def whole_blocks(ranges: Iterable[Range]) -> Iterator[Range]:
    """Yield *ranges* widened to whole blocks."""
    for offset, length in ranges:
        begin, end = offset - offset % BLOCK_BYTES, offset + length
        yield begin, end + -end % BLOCK_BYTES - begin


def split(ranges: Iterable[Range], by: Iterable[Range]) -> Iterator[tuple[bool, Range]]:
    """
    Yield *ranges* in pieces that lie in *by* or outside, and whether each lies in it.

    Both come in order and disjoint.
    """
    inside = iter(by)
    begin, end = next(inside, _NOWHERE)
    end += begin
    for offset, length in ranges:
        at, stop = offset, offset + length
        while at < stop:
            while end <= at:
                begin, end = next(inside, _NOWHERE)
                end += begin
            is_in = begin <= at
            after = min(stop, end if is_in else begin)
            yield is_in, (at, after - at)
            at = after


def at_most(ranges: Iterable[Range], count_max: int) -> list[Range]:
    """
    Return no more than *count_max* ranges that cover all *ranges*.

    These come in order and disjoint; those with the least between them become one. No
    more than twice as many are held at any time.
    """
    kept: list[Range] = []
    for each in ranges:
        kept.append(each)
        if len(kept) >= 2 * count_max:
            kept = _nearest_joined(kept, count_max)
    return _nearest_joined(kept, count_max)


def _nearest_joined(ranges: list[Range], count_max: int) -> list[Range]:
    if len(ranges) <= count_max:
        return ranges
    ends = [offset + length for offset, length in ranges]
    # Which begin after the widest gaps: these stay.
    places = sorted(range(1, len(ranges)), key=lambda at: ends[at - 1] - ranges[at][0])
    begins = [0, *sorted(places[: count_max - 1]), len(ranges)]
    return [
        (ranges[first][0], ends[after - 1] - ranges[first][0])
        for first, after in itertools.pairwise(begins)
    ]


def differing(
    old: int, new: int, ranges: Iterable[Range], *, count_max: int = RANGES_MAX
) -> list[Range]:
    """
    Return those blocks of *ranges* whose bytes differ between two open files.

    *ranges* come in the order of their offsets; nothing else is read. Blocks are those
    of 4 KiB from the file's start, neighbours are one range, and the last one ends with
    *new*. What is beyond the end of a file counts as zeros. Beyond *count_max* ranges,
    the nearest become one.
    """
    size = os.fstat(new).st_size
    wanted = read_ahead(joined(cut(whole_blocks(ranges), size)), old, new)
    blocks = _differing_blocks(old, new, wanted)
    return at_most(joined(blocks), count_max)


def read_ahead(ranges: Iterable[Range], *descriptors: int) -> Iterator[Range]:
    """Yield *ranges*; the disk reads the next ones of all open files meanwhile."""
    asked: deque[Range] = deque()
    asked_bytes = 0
    for offset, length in ranges:
        for descriptor in descriptors:
            os.posix_fadvise(
                descriptor, offset, min(length, _AHEAD_BYTES), os.POSIX_FADV_WILLNEED
            )
        asked.append((offset, length))
        asked_bytes += length
        while len(asked) > _AHEAD_RANGES or (asked_bytes > _AHEAD_BYTES and asked):
            asked_bytes -= asked[0][1]
            yield asked.popleft()
    yield from asked


def _differing_blocks(old: int, new: int, ranges: Iterable[Range]) -> Iterator[Range]:
    for begin, length in ranges:
        for at in range(begin, begin + length, _CHUNK_BYTES):
            chunk_bytes = min(_CHUNK_BYTES, begin + length - at)
            before, after = _read(old, at, chunk_bytes), _read(new, at, chunk_bytes)
            if before == after:
                continue
            for place in range(0, chunk_bytes, BLOCK_BYTES):
                block = after[place : place + BLOCK_BYTES]
                if before[place : place + BLOCK_BYTES] != block:
                    yield at + place, len(block)


def _read(descriptor: int, offset: int, length: int) -> bytes:
    content = os.pread(descriptor, length, offset)
    # A disk that fails gives what it could read first, and only then its error.
    while len(content) < length:
        more = os.pread(descriptor, length - len(content), offset + len(content))
        if not more:
            return content.ljust(length, b"\0")
        content += more
    return content
