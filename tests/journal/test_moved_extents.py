"""
What moves of a file on XFS while a lead to it is made, and is told of afterwards.

Whatever way it was written: by the kernel's events, without them, and after more of
them than are kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.rsync.journal import early_leads
from backends.rsync.journal.base_leads import copy_lead
from backends.rsync.journal.early_leads import EarlyLeads
from backends.system import extent_events, libc
from backends.system.beneath import Beneath
from backends.system.extent_events import ExtentEvents, followed
from backends.system.ranges import Range
from tests.support.written_files import (
    BLOCK,
    WAYS,
    Write,
    WrittenFile,
    pool,
    written_file,
)

SIZE = 1 << 20
EXAMPLES, LONG_EXAMPLES = 8, 300
WRITES = st.builds(
    Write,
    st.sampled_from(sorted(WAYS)),
    st.integers(0, SIZE) | st.sampled_from([0, BLOCK, SIZE - BLOCK]),
    st.integers(1, 2 * BLOCK) | st.integers(1, SIZE // 4),
    st.integers(0, SIZE),
    st.integers(0, 2**32),
)
SOME = st.lists(WRITES, max_size=6)


@pytest.fixture(scope="module", params=["xfs", "xfs with blocks of 1 KiB"])
def disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    with pool(tmp_path_factory.mktemp("disk"), request.param) as disk:
        yield disk


@contextmanager
def untold(inodes: object, *, on: int) -> Iterator[None]:
    del inodes, on
    yield None


class Forgetful(ExtentEvents):
    """Of more than the kernel keeps."""

    def changed(self, inode: int) -> list[Range] | None:
        assert super().changed(inode) is not None
        return None


@pytest.mark.parametrize("told", ["events", "none", "too many"])
@pytest.mark.parametrize(
    "examples",
    [
        EXAMPLES,
        pytest.param(
            LONG_EXAMPLES, marks=(pytest.mark.long, pytest.mark.timeout(7200))
        ),
    ],
)
def test_a_lead_leads_to_the_file_as_it_is(
    disk: Path, told: str, examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told == "none":
        monkeypatch.setattr(early_leads, "followed", untold)
    if told == "too many":
        monkeypatch.setattr(extent_events, "ExtentEvents", Forgetful)

    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(before=SOME, between=SOME, since=SOME, is_kept=st.booleans())
    def try_one(
        before: list[Write], between: list[Write], since: list[Write], *, is_kept: bool
    ) -> None:
        with written_file(disk) as file:
            os.pwrite(file.descriptor, os.urandom(SIZE), 0)
            write(file, before)
            base = file.freeze().descriptor if is_kept else None
            write(file, between)
            inode = os.fstat(file.descriptor).st_ino
            early = EarlyLeads(disk, {inode})
            early.add(b"path", file.descriptor, base=base, content=(1, 1))
            if b"path" in early:
                write(file, since)
                os.fsync(file.descriptor)
                lead = early.take(b"path", file.descriptor)
                assert lead is not None
                with Beneath(disk / "made") as tree:
                    copy_lead(tree, lead)
                made = disk / "made/path"
                content = os.pread(file.descriptor, 4 * SIZE, 0)
                found = made.read_bytes()
                made.unlink()
                assert found == content
            early.close()

    try_one()


def test_no_more_is_shared_than_has_moved(disk: Path) -> None:
    """Though it was one extent before, and that is in pieces now."""
    with written_file(disk) as file:
        os.pwrite(file.descriptor, os.urandom(SIZE), 0)
        base = file.freeze().descriptor
        os.pwrite(file.descriptor, b"x" * BLOCK, 3 * BLOCK)
        early = EarlyLeads(disk, {inode_of(file.descriptor)})
        early.add(b"path", file.descriptor, base=base, content=(1, 1))
        for at in (3, 9):
            os.pwrite(file.descriptor, b"y" * BLOCK, at * BLOCK)
        os.fsync(file.descriptor)
        lead = early.take(b"path", file.descriptor)
        early.close()
        assert lead is not None
        assert lead.moved == [(at * BLOCK, BLOCK) for at in (3, 9)]


def write(file: WrittenFile, writes: list[Write]) -> None:
    for each in writes:
        each.do(file)


def test_events_of_one_file_are_told(disk: Path) -> None:
    with written_file(disk) as file, written_file_beside(disk) as other:
        os.pwrite(file.descriptor, os.urandom(SIZE), 0)
        os.fsync(file.descriptor)
        frozen = file.freeze()
        with followed({inode_of(file.descriptor)}, on=file.descriptor) as events:
            assert events is not None
            assert events.changed(inode_of(file.descriptor)) == []
            os.pwrite(other, os.urandom(SIZE), 0)
            os.fsync(other)
            for at in (3, 9):
                os.pwrite(file.descriptor, b"x" * BLOCK, at * BLOCK)
            os.fsync(file.descriptor)
            found = events.changed(inode_of(file.descriptor))
            # An extent that comes to be in pieces is told of as a whole.
            assert found is not None
            for at in (3, 9):
                assert any(a <= at * BLOCK < a + length for a, length in found)
            assert events.changed(inode_of(other)) is None
        assert frozen.descriptor


@contextmanager
def written_file_beside(disk: Path) -> Iterator[int]:
    path = disk / "other"
    other = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        yield other
    finally:
        os.close(other)
        path.unlink()


def inode_of(file: int) -> int:
    return os.fstat(file).st_ino


def test_what_is_lost_is_known(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extent_events, "_BUFFER_KIB", 4)
    with written_file(disk) as file:
        os.pwrite(file.descriptor, os.urandom(SIZE), 0)
        file.freeze()
        with followed({inode_of(file.descriptor)}, on=file.descriptor) as events:
            assert events is not None
            for at in range(0, SIZE, 2 * BLOCK):
                os.pwrite(file.descriptor, b"x" * BLOCK, at)
                os.fsync(file.descriptor)
            assert events.changed(inode_of(file.descriptor)) is None


def test_what_a_killed_process_has_left_goes(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what another process follows stays."""
    # Other tests, and their daemons, follow files meanwhile.
    monkeypatch.setattr(extent_events, "_PREFIX", f"remora-test-{os.getpid()}.")
    with written_file(disk) as file:
        inode = inode_of(file.descriptor)
        with followed({inode}, on=file.descriptor) as first:
            assert first is not None
            child = os.fork()
            if not child:
                left = followed({inode}, on=file.descriptor)
                left.__enter__()
                os._exit(0)
            os.waitpid(child, 0)
            with followed({inode}, on=file.descriptor) as second:
                assert second is not None
                os.pwrite(file.descriptor, b"x" * BLOCK, 0)
                os.fsync(file.descriptor)
                assert first.changed(inode) == second.changed(inode) == [(0, BLOCK)]
                assert len(instances()) == 2
        assert instances() == []


def instances() -> list[str]:
    """Return the names of our instances in tracefs."""
    top = libc.mounted_nowhere(b"tracefs")
    place = os.open("instances", os.O_RDONLY | os.O_DIRECTORY, dir_fd=top)
    try:
        with os.scandir(place) as found:
            return [e.name for e in found if e.name.startswith(extent_events._PREFIX)]
    finally:
        for each in (top, place):
            os.close(each)
