"""Block indexes: nothing is missed, and none is believed that should not be."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.rsync.journal.block_index import BlockIndexes, Found
from backends.system import block_hashes, index_file, index_search
from backends.system.block_hashes import BlockHashes
from backends.system.copying import CopyError
from backends.system.index_file import (
    BLOCKS,
    CHUNK_BYTES,
    KEY_BYTES,
    ZEROS_TAG,
    opened_index,
)
from backends.system.ranges import BLOCK_BYTES
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.searched import NAME, Volume, volume_in

MIB = 2**20


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with volume_in(tmp_path, os.urandom(3 * MIB + 5000)) as made:
        yield made


def test_only_what_has_changed_is_sent(volume: Volume) -> None:
    volume.write(MIB - 1, b"ab")
    volume.write(2 * MIB + 100, b"c")
    found = volume.find()
    assert found.sent == found.changed
    # The first two are neighbours.
    assert found.sent == [(MIB - 4096, 8192), (2 * MIB, 4096)]
    assert volume.find().sent == []


def test_growing_shrinking_and_holes_are_changes(volume: Volume) -> None:
    before = volume.file.stat().st_size
    os.truncate(volume.file, MIB + 10)
    found = volume.find()
    # Of the last block, what is left of it is as it was.
    assert found.changed == [(MIB, before - MIB)]
    assert found.sent == [(MIB, 10)]
    os.truncate(volume.file, 60 * MIB)
    assert volume.find().data_bytes <= BLOCK_BYTES
    volume.write(50 * MIB + 1, b"x")
    assert volume.find().sent == [(50 * MIB, 4096)]
    subprocess.run(
        ["fallocate", "-p", "-o", "0", "-l", "8192", volume.file], check=True
    )
    assert volume.find().sent == [(0, 8192)]
    index = volume.indexes.file(NAME)
    assert index.stat().st_blocks * 512 < MIB
    os.truncate(volume.file, 0)
    assert volume.find().sent == []
    assert index.stat().st_size == BLOCK_BYTES


def test_what_was_cut_off_and_grew_again_is_a_change_for_older_bases(
    volume: Volume,
) -> None:
    old, size = volume.copy, len(volume.copy)
    os.truncate(volume.file, MIB)
    cut = volume.find().changed
    assert cut == [(MIB, size - MIB)]
    os.truncate(volume.file, size)
    assert volume.find().changed == []
    volume.write(0, b"x")
    found = volume.ask(also=cut)
    assert found is not None
    volume.copy = old
    volume.apply(found)
    assert volume.copy == volume.file.read_bytes()


def test_what_is_asked_for_is_sent_as_well(volume: Volume) -> None:
    volume.write(0, b"x")
    size = volume.file.stat().st_size
    found = volume.find([(5000, 1), (2 * MIB - 1, 2), (size - 1, 100), (size + 1, 9)])
    assert found.changed == [(0, 4096)]
    end = size - size % 4096
    assert found.sent == [(0, 8192), (2 * MIB - 4096, 8192), (end, size - end)]


def test_a_sparse_giant_costs_what_it_holds(tmp_path: Path) -> None:
    volume = Volume(tmp_path)
    volume.file.touch()
    os.truncate(volume.file, 8 * 2**40)
    volume.write(5 * 2**40, b"far")
    with volume.indexes.searching(volume.live) as searching:
        assert searching.index(NAME, inode=volume.inode) is None
        volume.indexes.keep(NAME, (1, 0))
        volume.write(7 * 2**40, b"away")
        volume.searching = searching
        found = volume.ask([])
    assert found is not None
    assert found.sent == [(7 * 2**40, 4096)]
    assert volume.indexes.file(NAME).stat().st_blocks * 512 < MIB


def test_more_ranges_than_are_allowed_become_fewer(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, where the number can be a small one."""
    monkeypatch.setattr(index_search, "RANGES_MAX", 3)
    key = os.urandom(KEY_BYTES)
    hashes = BlockHashes(block_hashes.fastest(), key)
    path = volume.indexes.file(NAME)
    index_file.make_index(path, index_file.Header(1, key, volume.inode))
    with opened_index(path) as index, volume.file.open("rb") as file:

        def searched_again() -> list[tuple[int, int]]:
            search = index_search.Search(file.fileno(), index, hashes, [], None)
            search.run()
            return search.changed

        searched_again()
        for place in (0, 2, 9, 12, 300, 302, 700):
            volume.write(place * BLOCK_BYTES, b"new")
        volume.data.write_bytes(b"before")
        with index_search.opened_data(str(volume.data)) as data:
            search = index_search.Search(file.fileno(), index, hashes, [], data)
            search.run()
            assert len(search.sent) == 7
            # What lies between changes meanwhile: the member gets it, the index too.
            read_first = volume.file.read_bytes()[BLOCK_BYTES : BLOCK_BYTES + 4]
            volume.write(BLOCK_BYTES, b"late")
            search.join(data)
            digest, size_bytes = data.finish()
        content = volume.data.read_bytes()
        assert content.startswith(b"before")
        volume.data.write_bytes(content.removeprefix(b"before"))
        sent = search.sent
        assert sent == [(0, 13 * 4096), (300 * 4096, 3 * 4096), (700 * 4096, 4096)]
        found = Found(search.size, [], sent, size_bytes, bytes.fromhex(digest), 0)
        volume.apply(found)
        assert volume.copy == volume.file.read_bytes()
        # That it is as when it was read first is a change from what was sent.
        volume.write(BLOCK_BYTES, read_first)
        assert searched_again() == [(BLOCK_BYTES, BLOCK_BYTES)]


def test_many_ranges_become_one_in_each_chunk(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_search, "_MANY_RANGES", 1)
    assert list(index_search._runs({1, 5}, MIB, is_coarse=True)) == [(4096, 6 * 4096)]
    assert list(index_search._runs({1, 5}, 5000, is_coarse=False)) == [(4096, 5000)]
    assert list(index_search._runs({1, 5}, 4096, is_coarse=False)) == []


@pytest.mark.parametrize("hashing", [block_hashes._GMAC, block_hashes._POLY1305])
def test_tags_of_zeros_are_zeros_and_keys_make_others(hashing: int) -> None:
    zeros, other = bytes(CHUNK_BYTES), os.urandom(CHUNK_BYTES)
    one, two = (BlockHashes(hashing, os.urandom(KEY_BYTES)) for _ in range(2))
    assert one.of_chunk(memoryview(zeros)) == ZEROS_TAG
    assert one.of_blocks(memoryview(zeros)) == ZEROS_TAG * BLOCKS
    assert (
        one.of_blocks(memoryview(other)[:8192])
        == (one.of_blocks(memoryview(other))[:32])
    )
    assert one.of_chunk(memoryview(other)) != two.of_chunk(memoryview(other))
    assert len({one.of_chunk(memoryview(each)) for each in (zeros, other)}) == 2


def test_nothing_but_a_regular_file_beneath_is_opened(volume: Volume) -> None:
    live = volume.live
    outside = live.parent / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"x" * MIB)
    os.mkfifo(live / "pipe")
    os.mknod(live / "null", 0o020600, os.makedev(1, 3))
    (live / "link").symlink_to(outside / "file")
    (live / "way").symlink_to(outside)
    (live / "directory").mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"/proc/self/fd/{os.open(live, os.O_PATH)}/socket")
    hostile = [b"pipe", b"null", b"link", b"way/file", b"../outside/file", b"socket"]
    for path in (*hostile, b"directory", b"absent", b"absent/file", b""):
        assert volume.searching.index(path, inode=1) is None
        assert not volume.indexes.file(path).exists()
    assert volume.find().sent == []


def test_another_file_at_the_path_is_not_the_file(volume: Volume) -> None:
    inode = volume.inode
    (volume.live / "new").write_bytes(b"x" * MIB)
    (volume.live / "new").rename(volume.file)
    found = volume.searching.find(
        NAME, inode=inode, base=volume.commit, data=volume.data
    )
    assert found is None


def test_a_file_that_is_written_to_meanwhile_is_what_was_sent(volume: Volume) -> None:
    """Cut, grown, replaced: what the index holds is what the copy holds."""
    stop = threading.Event()

    def disturb() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            volume.write(number * 7919 % (3 * MIB), os.urandom(9000))
            if number % 5 == 0:
                os.truncate(volume.file, number * 104729 % (4 * MIB))
            if number % 50 == 0:
                os.truncate(volume.file, 0)

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        for number in range(1, 30):
            found = volume.ask([(0, 4096)])
            assert found is not None
            volume.apply(found)
            volume.commit = (1, number)
            volume.indexes.keep(NAME, volume.commit)
    finally:
        stop.set()
        disturbing.join()
    volume.find()
    assert volume.find().sent == []


def test_a_store_after_the_search_moves_a_time(volume: Volume) -> None:
    """Also one through a mapping whose page was dirty before: else nobody looks."""
    size = volume.file.stat().st_size
    with volume.file.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        mapped[0:3] = b"one"
        volume.find()
        before = volume.file.stat().st_ctime_ns
        time.sleep(0.05)  # ctime is of the clock's last tick
        mapped[0:3] = b"two"
        mapped.flush()
        assert volume.file.stat().st_ctime_ns > before
        volume.find()


def test_a_full_disk_is_told_and_the_index_is_lost(tmp_path: Path) -> None:
    enter_private_mounts()
    with (
        loop_filesystem(tmp_path, "ext4", size="16M") as disk,
        volume_in(tmp_path, os.urandom(5 * MIB)) as volume,
    ):
        volume.file.write_bytes(os.urandom(40 * MIB))
        volume.data = disk / "data"
        with pytest.raises(CopyError) as caught:
            volume.ask([])
        assert caught.value.no_space
        assert os.strerror(errno.ENOSPC) in str(caught.value)
        # It goes on with the next file; what is half is no index of any commit.
        assert volume.ask([]) is None
        volume.indexes.keep(NAME, volume.commit)
        assert not volume.indexes.file(NAME).exists()


def test_a_root_that_is_gone_is_told(tmp_path: Path) -> None:
    indexes = BlockIndexes(tmp_path / "indexes")
    with indexes.searching(tmp_path / "absent") as searching:
        assert searching.index(NAME, inode=1) is None


WAYS = st.sampled_from(["write", "mapped", "punch", "cut", "grow", "zero", "reserve"])
SIZE = 2 * MIB + 300_000
PLACES = st.integers(0, SIZE)


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(
    rounds=st.lists(
        st.lists(st.tuples(WAYS, PLACES, st.integers(1, 70_000)), max_size=4),
        min_size=1,
        max_size=4,
    ),
    also=st.lists(st.tuples(PLACES, st.integers(1, 50_000)), max_size=3),
)
def test_nothing_is_missed(
    rounds: list[list[tuple[str, int, int]]],
    also: list[tuple[int, int]],
    searched: Volume,
) -> None:
    volume = searched
    volume.file.write_bytes(b"begin")
    os.truncate(volume.file, SIZE)
    volume.index()
    for changes in rounds:
        before = volume.file.read_bytes()
        for change in changes:
            do(volume.file, *change)
        after = volume.file.read_bytes()
        found = volume.find(also)
        differ = sum(
            before[at : at + BLOCK_BYTES] != after[at : at + BLOCK_BYTES]
            for at in range(0, max(len(before), len(after)), BLOCK_BYTES)
        )
        changed = sum(-(-length // BLOCK_BYTES) for _, length in found.changed)
        assert changed <= differ + len(found.changed)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Volume]:
    with volume_in(tmp_path_factory.mktemp("searched")) as made:
        yield made


def do(file: Path, way: str, offset: int, length: int) -> None:
    """Change *file* in one of the ways that there are."""
    size = file.stat().st_size
    fallocate = {"punch": "-pn", "zero": "-zn", "reserve": "-n"}
    if way in fallocate:
        command = ["fallocate", fallocate[way], "-o", str(offset), "-l", str(length)]
        subprocess.run([*command, file], check=True)
    elif way == "cut":
        os.truncate(file, min(size, offset))
    elif way == "grow":
        os.truncate(file, size + length)
    elif way == "mapped" and offset + length < size:
        with file.open("r+b") as opened, mmap.mmap(opened.fileno(), size) as mapped:
            mapped[offset : offset + length] = os.urandom(length)
    else:
        with file.open("r+b") as opened:
            opened.seek(offset)
            opened.write(os.urandom(length))
