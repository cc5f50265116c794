"""The arithmetic of ranges, against what a set of bytes says."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.system.extent_maps import Extent, differently_placed
from backends.system.ranges import (
    BLOCK_BYTES,
    Range,
    at_most,
    differing,
    joined,
    merged,
)

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=12)
MIB = 1 << 20


def covered(ranges: Iterable[Range]) -> set[int]:
    return {
        each for offset, length in ranges for each in range(offset, offset + length)
    }


def gaps(ranges: list[Range]) -> list[int]:
    ends = [offset + length for offset, length in ranges]
    return [offset - end for end, (offset, _) in zip(ends, ranges[1:], strict=False)]


@given(ranges=RANGES, gap_bytes=st.integers(0, 4))
def test_merged_ranges(ranges: list[Range], gap_bytes: int) -> None:
    found = merged(ranges, gap_bytes=gap_bytes)
    assert all(gap > gap_bytes for gap in gaps(found))
    assert covered(merged(ranges)) == covered(ranges)
    # What is more lies in gaps that are no wider.
    assert found == merged(merged(ranges), gap_bytes=gap_bytes)
    assert covered(ranges) <= covered(found)


@given(ranges=RANGES, count_max=st.integers(1, 6))
def test_the_nearest_are_joined(ranges: list[Range], count_max: int) -> None:
    disjoint = merged(ranges)
    found = at_most(disjoint, count_max)
    assert len(found) == min(len(disjoint), count_max)
    assert covered(disjoint) <= covered(found)
    assert (
        sorted(gaps(found))
        == sorted(gaps(disjoint), reverse=True)[: max(len(found) - 1, 0)][::-1]
    )


def test_no_more_ranges_are_held_than_needed() -> None:
    endless = ((8 * number, 4) for number in range(1_000_000))
    assert at_most(endless, 1) == [(0, 8 * 999_999 + 4)]


@st.composite
def maps(draw: st.DrawFn) -> list[Extent]:
    """Extents of up to 40 bytes; a place is one of few, so that two maps agree."""
    places = draw(st.lists(st.sampled_from([None, 0, 0, 100]), max_size=40))
    pieces = (
        (at, at + 1, place) for at, place in enumerate(places) if place is not None
    )
    found: list[Extent] = []
    for begin, end, place in pieces:
        if found and found[-1][1:] == (begin, place) and draw(st.booleans()):
            found[-1] = found[-1][0], end, place
        else:
            found.append((begin, end, place))
    return found


@given(old=maps(), new=maps())
def test_what_is_placed_differently(old: list[Extent], new: list[Extent]) -> None:
    def by_byte(extents: list[Extent]) -> dict[int, object]:
        return {at: place for begin, end, place in extents for at in range(begin, end)}

    before, after = by_byte(old), by_byte(new)
    found = list(differently_placed(iter(old), iter(new)))
    assert found == sorted(found)
    assert covered(found) == {
        at for at in before | after if before.get(at) != after.get(at)
    }


def test_a_place_that_is_not_sure_is_another_one() -> None:
    one: list[Extent] = [(0, 9, object())]
    other: list[Extent] = [(0, 9, object())]
    assert list(differently_placed(iter(one), iter(other))) == [(0, 9)]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Yield the older and the newer of two files; the newer is longer."""
    content = bytearray(random.Random(1).randbytes(3 * MIB))
    (tmp_path / "old").write_bytes(content)
    for at in (0, 5 * BLOCK_BYTES + 7, MIB - 1, MIB, 2 * MIB + 100):
        content[at] ^= 1
    (tmp_path / "new").write_bytes(content + bytes(MIB) + b"end")
    descriptors = [os.open(tmp_path / name, os.O_RDONLY) for name in ("old", "new")]
    yield descriptors[0], descriptors[1]
    for each in descriptors:
        os.close(each)


def test_blocks_that_differ(files: tuple[int, int]) -> None:
    everything = [(0, 1 << 60)]
    assert differing(*files, everything) == [
        (0, BLOCK_BYTES),
        (5 * BLOCK_BYTES, BLOCK_BYTES),
        (MIB - BLOCK_BYTES, 2 * BLOCK_BYTES),
        (2 * MIB, BLOCK_BYTES),
        (4 * MIB, 3),
    ]
    assert len(differing(*files, everything, count_max=2)) == 2


def test_candidates_alone_are_compared(files: tuple[int, int]) -> None:
    found = differing(*files, [(1, 2), (5 * BLOCK_BYTES, 1), (MIB + 9, MIB)])
    assert found == [
        (0, BLOCK_BYTES),
        (5 * BLOCK_BYTES, BLOCK_BYTES),
        (MIB, BLOCK_BYTES),
        (2 * MIB, BLOCK_BYTES),
    ]


def test_what_is_beyond_the_newer_end_differs_in_nothing(
    files: tuple[int, int],
) -> None:
    old, new = files
    assert differing(new, old, [(3 * MIB, 2 * MIB)]) == []


def test_a_range_of_nothing_joins_nothing() -> None:
    assert list(joined([(0, 4), (6, 0), (8, 4)], gap_bytes=3)) == [(0, 4), (8, 4)]
