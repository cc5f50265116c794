"""A base on XFS is led on by what has moved; the whole file is not cloned again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.rsync.journal import base_leads as module
from backends.rsync.journal.base_clones import BaseClones
from backends.system import copy_file, libc
from backends.system.ranges import BLOCK_BYTES
from tests.support.namespaces import enter_private_mounts, loop_filesystem

PATH = b"directory/file"
BLOCKS = 256


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    enter_private_mounts()
    with loop_filesystem(tmp_path_factory.mktemp("disk"), "xfs") as disk:
        yield disk


@pytest.fixture
def file(disk: Path) -> Iterator[int]:
    descriptor = os.open(disk / "file", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    os.pwrite(descriptor, os.urandom(BLOCKS * BLOCK_BYTES), 0)
    os.fsync(descriptor)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def bases(disk: Path, file: int) -> Iterator[BaseClones]:
    bases = BaseClones(disk / "bases")
    bases.keep(PATH, (1, 1), file)
    yield bases
    bases.keep_only({PATH: None})


def content(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size + 1, 0)


def led_on(bases: BaseClones, file: int, seq: int) -> list[int]:
    """Lead the base of commit *seq* on to *file*; return the blocks that differ."""
    with bases.opened(PATH, (1, seq)) as base:
        assert base is not None
        lead = bases.lead_on(PATH, (1, seq), base, file)
        assert lead is not None
        now, before = content(file), content(base)
        blocks = [at // BLOCK_BYTES for at, _ in lead.changed()]
        # Of both together it has what the file has.
        found = bytearray(lead.size)
        for source, ranges in lead.parts([(0, lead.size)]):
            for at, length in ranges:
                found[at : at + length] = os.pread(source, length, at).ljust(
                    length, b"\0"
                )
        assert bytes(found) == now
        assert content(base) == before
    bases.advance(PATH, (1, seq), (1, seq + 1), lead.give_to)
    with bases.opened(PATH, (1, seq + 1)) as base:
        assert base is not None
        assert content(base) == now
    with bases.opened(PATH, (1, seq)) as gone:
        assert gone is None
    return blocks


def test_all_ways_in_which_a_file_changes(bases: BaseClones, file: int) -> None:
    for number, at in enumerate((3, 100, 101)):
        os.pwrite(file, bytes([number + 1]) * BLOCK_BYTES, at * BLOCK_BYTES)
    assert led_on(bases, file, 1) == [3, 100]
    libc.punch_hole(file, 50 * BLOCK_BYTES, 2 * BLOCK_BYTES)
    assert led_on(bases, file, 2) == [50]
    # It grows to no whole block, and by a hole.
    os.ftruncate(file, (BLOCKS + 10) * BLOCK_BYTES)
    os.pwrite(file, b"end", (BLOCKS + 10) * BLOCK_BYTES + 100)
    assert led_on(bases, file, 3) == [BLOCKS + 10]
    os.ftruncate(file, 20 * BLOCK_BYTES + 7)
    assert led_on(bases, file, 4) == []
    os.pwrite(file, b"x" * BLOCK_BYTES * 3, 20 * BLOCK_BYTES)
    assert led_on(bases, file, 5) == [20]
    assert led_on(bases, file, 6) == []


def test_the_whole_file_is_not_cloned_again(
    bases: BaseClones, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writers would wait, as long as it has extents."""

    def fail(_source: int, _target: int) -> None:
        raise AssertionError("cloned")

    monkeypatch.setattr(copy_file, "clone", fail)
    monkeypatch.setattr("backends.rsync.journal.base_clones.clone", fail)
    os.pwrite(file, b"x" * BLOCK_BYTES, 9 * BLOCK_BYTES)
    assert led_on(bases, file, 1) == [9]


def test_a_file_that_grows_meanwhile_is_as_large_as_it_was(
    bases: BaseClones, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.pwrite(file, b"x" * 100, BLOCKS * BLOCK_BYTES)
    moved = module.extents.moved_ranges

    def grow(old: int, new: int, places: object = None) -> object:
        found = moved(old, new, places)
        os.pwrite(file, b"y" * BLOCK_BYTES, BLOCKS * BLOCK_BYTES + 100)
        return found

    monkeypatch.setattr(module.extents, "moved_ranges", grow)
    with bases.opened(PATH, (1, 1)) as base:
        assert base is not None
        lead = bases.lead_on(PATH, (1, 1), base, file)
        assert lead is not None
        assert lead.size == BLOCKS * BLOCK_BYTES + 100
        assert lead.changed() == [(BLOCKS * BLOCK_BYTES, 100)]
    bases.advance(PATH, (1, 1), (1, 2), lead.give_to)
    monkeypatch.undo()
    assert led_on(bases, file, 2) == [BLOCKS]


def test_a_file_that_is_cut_meanwhile_is_not_led_on(
    bases: BaseClones, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.pwrite(file, b"x" * BLOCK_BYTES, 200 * BLOCK_BYTES)
    moved = module.extents.moved_ranges

    def cut(old: int, new: int, places: object = None) -> object:
        found = moved(old, new, places)
        os.ftruncate(file, 10)
        return found

    monkeypatch.setattr(module.extents, "moved_ranges", cut)
    with bases.opened(PATH, (1, 1)) as base:
        assert base is not None
        lead = bases.lead_on(PATH, (1, 1), base, file)
        # What it has of it is the file's at some moment: zeros where it was cut.
        assert lead is None or lead.size == BLOCKS * BLOCK_BYTES
    monkeypatch.undo()
