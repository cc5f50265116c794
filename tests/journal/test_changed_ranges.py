"""
What two frozen copies of a file differ in, found by where they are on the disk.

Whatever way a file was written, each byte that differs is in a range. What the copies
are read for is in proportion to what was written, not to their size.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.system import btrfs_extents, btrfs_search, extents, libc
from backends.system.ranges import Range, merged
from tests.support.written_files import (
    BLOCK,
    POOLS,
    WAYS,
    Frozen,
    Write,
    WrittenFile,
    clone,
    differing_blocks,
    pool,
    written_file,
)

MIB = 1 << 20
SIZE = 3 * MIB
MANY_SIZE, MANY = 32 * MIB, 4 * 1024
EXAMPLES, LONG_EXAMPLES = 8, 300


def _pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    with pool(tmp_path_factory.mktemp("disk"), request.param) as disk:
        yield disk


RARE = {"xfs with blocks of 1 KiB", "btrfs with items for holes"}
ANY = [
    pytest.param(name, marks=pytest.mark.long) if name in RARE else name
    for name in POOLS
]
any_pool = pytest.fixture(_pool, scope="module", params=ANY)
plain_pool = pytest.fixture(_pool, scope="module", params=["xfs", "btrfs"])


@pytest.fixture
def file(plain_pool: Path) -> Iterator[WrittenFile]:
    with written_file(plain_pool) as file:
        yield file


WRITES = st.builds(
    Write,
    st.sampled_from(sorted(WAYS)),
    st.integers(0, SIZE) | st.sampled_from([0, BLOCK, SIZE - BLOCK]),
    st.integers(1, 2 * BLOCK) | st.integers(1, MIB),
    st.integers(0, SIZE),
    st.integers(0, 2**32),
)
ROUNDS = st.lists(st.lists(WRITES, max_size=8), min_size=1, max_size=4)
# In how many pieces the file is at first, with holes between.
PIECES = st.sampled_from([0, 1, 48, SIZE // BLOCK // 2])


@pytest.mark.parametrize(
    "examples",
    [
        EXAMPLES,
        pytest.param(
            LONG_EXAMPLES, marks=(pytest.mark.long, pytest.mark.timeout(7200))
        ),
    ],
)
def test_whatever_is_written_is_found(any_pool: Path, examples: int) -> None:
    @settings(
        max_examples=examples, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(pieces=PIECES, rounds=ROUNDS)
    def try_one(pieces: int, rounds: list[list[Write]]) -> None:
        with written_file(any_pool) as file:
            fill(file, pieces, SIZE)
            copies = [file.freeze()]
            for writes in rounds:
                for each in writes:
                    each.do(file)
                copies.append(file.freeze())
                # Of the last round, and of all of them.
                check(file, copies[-2], copies[-1])
                check(file, copies[0], copies[-1])

    try_one()


def fill(file: WrittenFile, pieces: int, size: int) -> None:
    """Make the file *size* bytes long, with as many pieces of data as holes."""
    for number in range(pieces):
        offset = number * (size // pieces)
        Write("written", offset, size // pieces // 2, 0, number).do(file)
    os.ftruncate(file.descriptor, size)


def check(file: WrittenFile, old: Frozen, new: Frozen) -> list[Range]:
    differ = merged(differing_blocks(old, new))
    assert file.changed_ranges(old, new) == differ
    # On btrfs this meets flags that it does not meet on XFS.
    assert extents.changed_ranges(old.descriptor, new.descriptor) == differ
    return differ


def bytes_read(work: Callable[[], object]) -> int:
    """Return how many bytes this thread asks for in *work*."""

    def count() -> int:
        told = Path("/proc/thread-self/io").read_text().split()
        return int(told[told.index("rchar:") + 1])

    before = count()
    work()
    return count() - before


def test_every_way_to_write_is_one_here(file: WrittenFile) -> None:
    changes_nothing = {"cut or grown", "preallocated", "preallocated beyond its end"}
    if file.is_btrfs:
        changes_nothing |= {"collapsed", "inserted into"}  # it cannot
    found = set()
    for number, way in enumerate(WAYS):
        fill(file, 1, SIZE)
        old = file.freeze()
        Write(way, 64 << 10, 128 << 10, MIB, 1 + number).do(file)
        if check(file, old, file.freeze()):
            found.add(way)
    assert found == WAYS.keys() - changes_nothing


def test_what_is_read_follows_what_was_written(file: WrittenFile) -> None:
    fill(file, MANY // 2, MANY_SIZE)
    old = file.freeze()
    for number in range(0, 32, 3):
        Write("written directly", number * MIB + 8 * BLOCK, BLOCK, 0, number).do(file)
    new = file.freeze()
    differ = sum(length for _, length in check(file, old, new))
    assert differ == 11 * BLOCK
    assert bytes_read(lambda: file.changed_ranges(old, new)) <= 3 * differ


def test_a_file_that_lies_in_the_tree_itself(file: WrittenFile) -> None:
    copies = []
    for number in range(2):
        Write("written", 0, 100, 0, number).do(file)
        copies.append(file.freeze())
    assert check(file, *copies) == [(0, 100)]


def test_what_is_preallocated_is_not_read(file: WrittenFile) -> None:
    fill(file, 48, SIZE)
    old = file.freeze()
    Write("preallocated", 0, MANY_SIZE, 0, 0).do(file)
    new = file.freeze()
    assert check(file, old, new) == []
    assert bytes_read(lambda: file.changed_ranges(old, new)) <= BLOCK


def test_of_a_tree_on_btrfs_what_is_around_a_change_is_looked_at(
    file: WrittenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not file.is_btrfs:
        return
    fill(file, MANY, MANY_SIZE)
    old = file.freeze()
    Write("written", 20 * MIB, BLOCK, 0, 1).do(file)
    Write("punched", 10 * MIB, BLOCK, 0, 0).do(file)
    new = file.freeze()
    looked_at = 0

    def counted(*arguments: Any, **options: Any) -> Iterator[Any]:
        nonlocal looked_at
        for each in btrfs_search.items(*arguments, **options):
            looked_at += 1
            yield each

    monkeypatch.setattr(btrfs_extents, "items", counted)
    assert len(check(file, old, new)) == 2
    # All of both files would be 8,000 more.
    assert looked_at < 8_000


def test_an_address_of_compressed_bytes_does_not_say_which(tmp_path: Path) -> None:
    """FIEMAP tells the same of each part of a compressed extent."""
    half = 64 << 10
    with pool(tmp_path, "btrfs with zstd") as disk, written_file(disk) as file:
        os.pwrite(file.donor, Write("", 0, 2 * half, 0, 1).content(), 0)
        os.fsync(file.donor)
        copies = []
        for source in (0, half):
            clone(file.donor, file.descriptor, Write("", 0, half, source, 0))
            copies.append(file.freeze())
        assert check(file, *copies) == [(0, half)]


def test_a_hole_over_whole_blocks_of_the_tree_is_found(file: WrittenFile) -> None:
    """No item of a late transaction is left there, on btrfs."""
    fill(file, MANY, MANY_SIZE)
    old = file.freeze()
    Write("punched", 7 * MIB, 18 * MIB, 0, 0).do(file)
    new = file.freeze()
    assert sum(length for _, length in check(file, old, new)) > 8 * MIB


def test_what_was_cut_off_is_no_range(file: WrittenFile) -> None:
    fill(file, MANY, MANY_SIZE)
    old = file.freeze()
    os.ftruncate(file.descriptor, 10 * MIB)
    assert check(file, old, file.freeze()) == []
    os.ftruncate(file.descriptor, MANY_SIZE)
    assert check(file, old, file.freeze())[0][0] >= 10 * MIB


def test_more_extents_than_one_call_tells_are_compared(file: WrittenFile) -> None:
    fill(file, MANY, MANY_SIZE)
    old = file.freeze()
    Write("written", 31 * MIB, BLOCK, 0, 1).do(file)
    Write("punched", 16 * MIB, BLOCK, 0, 0).do(file)
    assert len(check(file, old, file.freeze())) == 2


def test_extents_are_told_of_their_filesystem(file: WrittenFile) -> None:
    assert extents.is_xfs(file.descriptor) != file.is_btrfs


def test_without_a_capability_btrfs_does_not_tell(tmp_path: Path) -> None:
    found: list[object] = []
    with pool(tmp_path, "btrfs") as disk, written_file(disk) as file:
        fill(file, 1, SIZE)
        copies = file.freeze(), file.freeze()

        def find() -> None:
            libc.set_capabilities(())  # of this thread alone
            found.append(file.changed_ranges(*copies))

        thread = threading.Thread(target=find)
        thread.start()
        thread.join()
    assert found == [None]


def test_a_filesystem_in_memory_does_not_tell(disk: Path) -> None:
    with (disk / "file").open("w+b") as file:
        file.truncate(SIZE)
        number = file.fileno()
        assert extents.changed_ranges(number, number) is None
        assert btrfs_extents.changed_ranges(number, number, since=0) is None
