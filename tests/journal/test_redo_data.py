"""What a redo file has of a large file's ranges: data, written zeros, holes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from backends.rsync.journal import redo as module
from backends.rsync.journal.redo import DataWriter, Redo
from backends.system import libc
from backends.system.ranges import BLOCK_BYTES, Range, read_ahead

BLOCKS = 1024
SIZE = BLOCKS * BLOCK_BYTES + 100
# Of what kind each part is, in blocks: their ends are at no chunk's.
PARTS = (("data", 3), ("hole", 5), ("zeros", 2), ("hole", 300), ("data", 290))


@contextmanager
def opened(path: Path, flags: int = 0) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[int]:
    with opened(tmp_path / "source") as file:
        os.ftruncate(file, SIZE)
        at = 0
        for kind, blocks in (*PARTS, ("zeros", 300), ("data", 124)):
            content = os.urandom(blocks * BLOCK_BYTES)
            if kind != "hole":
                content = content if kind == "data" else bytes(len(content))
                os.pwrite(file, content, at)
            at += blocks * BLOCK_BYTES
        os.pwrite(file, b"end", SIZE - 3)
        os.fsync(file)
        yield file


def redone(source: int, directory: Path, ranges: list[Range]) -> Redo:
    """Write *ranges* over what was another file; return what has led there."""
    with ExitStack() as stack:
        made = stack.enter_context(opened(directory / "redo", os.O_APPEND))
        target = stack.enter_context(opened(directory / "target"))
        os.pwrite(target, b"\xff" * SIZE, 0)
        writer = DataWriter(made)
        writer.copy(source, ranges)
        writer.finish(b"file", (1, 1), (1, 2), SIZE)
        redo = Redo(made)
        redo.require_data()
        redo.write_to(target)
        for at, length in ranges:
            assert os.pread(target, length, at) == os.pread(source, length, at)
        return redo


def test_holes_are_holes_and_zeros_are_data(source: int, tmp_path: Path) -> None:
    found = redone(source, tmp_path, [(0, SIZE)])
    blocks = [(at // BLOCK_BYTES, each // BLOCK_BYTES) for at, each in found.holes]
    assert blocks == [(3, 5), (10, 300)]
    assert [at // BLOCK_BYTES for at, _ in found.ranges] == [0, 8, 310]


@pytest.mark.parametrize(
    "ranges",
    [
        [(BLOCK_BYTES, 4 * BLOCK_BYTES), (9 * BLOCK_BYTES, BLOCK_BYTES)],
        [(7 * BLOCK_BYTES, 2 * BLOCK_BYTES), (800 * BLOCK_BYTES, 200 * BLOCK_BYTES)],
        [(100, 10_000), (SIZE - 50, 50)],
    ],
)
def test_some_ranges_alone(source: int, tmp_path: Path, ranges: list[Range]) -> None:
    redone(source, tmp_path, ranges)


def test_a_hole_that_is_punched_later_is_one(source: int, tmp_path: Path) -> None:
    libc.punch_hole(source, 500 * BLOCK_BYTES, 2 * BLOCK_BYTES)
    found = redone(source, tmp_path, [(400 * BLOCK_BYTES, 200 * BLOCK_BYTES)])
    assert found.holes == [(500 * BLOCK_BYTES, 2 * BLOCK_BYTES)]


def test_where_data_ends_is_not_asked(
    source: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a database's file the kernel would go through all extents, for each range."""
    asked = []
    seek = os.lseek

    def note(file: int, at: int, whence: int) -> int:
        asked.append(whence)
        return seek(file, at, whence)

    monkeypatch.setattr(module.os, "lseek", note)
    redone(source, tmp_path, [(0, SIZE)])
    assert os.SEEK_HOLE not in asked
    # Once where a chunk or a hole ends, and for the blocks of zeros.
    assert len(asked) < 400


def test_a_disk_is_asked_for_ranges_before_they_are_read(
    source: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        "backends.system.ranges.os.posix_fadvise",
        lambda _file, at, _length, _advice: asked.append(at),
    )
    wanted = [(at * BLOCK_BYTES, BLOCK_BYTES) for at in range(BLOCKS)]
    for number, each in enumerate(read_ahead(iter(wanted), source)):
        assert each == wanted[number]
        assert number < len(asked) <= number + 130
    assert asked == [at for at, _ in wanted]
