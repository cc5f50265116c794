"""What of a file moves on XFS without being told of by the kernel is in a lead, too."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backends.rsync.journal.base_leads import Lead, copy_lead
from backends.rsync.journal.early_leads import EarlyLeads
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.watch import Hints
from backends.system import extent_events, extent_events_check, extents, libc
from backends.system.beneath import Beneath
from backends.system.extent_events import followed
from backends.system.extent_events_check import all_is_told
from tests.support.journal_trees import VOLUME, carry, replicate, shape
from tests.support.large_files import make_home
from tests.support.namespaces import enter_private_mounts, loop_filesystem

MIB = 2**20
BLOCK = 4096
# Until the kernel has noted what a thread is called now.
NOTED_S = 0.1


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    enter_private_mounts()
    directory = tmp_path_factory.mktemp("disk")
    made_with = ("-m", "rmapbt=0")  # as it was the default for years
    with loop_filesystem(directory, "xfs", made_with=made_with) as disk:
        yield disk


@pytest.fixture
def file(disk: Path) -> Iterator[int]:
    path = disk / "file"
    path.write_bytes(os.urandom(MIB))
    descriptor = os.open(path, os.O_RDWR)
    os.fsync(descriptor)
    yield descriptor
    os.close(descriptor)
    path.unlink()


def assert_whole(lead: Lead | None, disk: Path) -> None:
    """Fail unless *lead* has the bytes of the file."""
    assert lead is not None
    with Beneath(disk / "made") as tree:
        copy_lead(tree, lead)
    made = disk / "made/file"
    assert made.read_bytes() == (disk / "file").read_bytes()
    made.unlink()


def test_a_file_that_was_replaced_before(disk: Path) -> None:
    """Its inode is not that of the last commit."""
    owner, member = (Journal(make_home(disk, "xfs"), VOLUME) for _ in "12")
    path = owner.live / "db"
    path.write_bytes(os.urandom(5 * MIB))
    replicate(owner, member)
    (owner.live / "new").write_bytes(os.urandom(5 * MIB))
    (owner.live / "new").rename(path)
    owner.moments.expect([member.commit()])
    again = owner.moments.prepare(
        owner.look(EVERYTHING), owner.manifest, shares_blocks=True
    )
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(os.urandom(BLOCK))
    owner.moments.take(again, ())
    owner.record(owner.moments.taken(), (1, owner.commit()[1] + 1))
    assert carry(owner.pack(member.commit()), member) == []
    owner.unpack()
    member.apply()
    assert shape(member.live) == shape(owner.live)
    for each in (owner, member):
        each.close()


def test_the_extents_of_another_file(disk: Path, file: int) -> None:
    """A defragmented file has them; what is written then moves nothing more."""
    donor = disk / "donor"
    donor.write_bytes((disk / "file").read_bytes())
    early = EarlyLeads(disk, {os.fstat(file).st_ino})
    early.add(b"file", file, base=None, content=None)
    command = ["xfs_io", "-c", f"swapext {donor}", str(disk / "file")]
    subprocess.run(command, check=True, timeout=10)
    os.pwrite(file, b"x" * BLOCK, 3 * BLOCK)
    lead = early.take(b"file", file)
    early.close()
    assert_whole(lead, disk)


@pytest.mark.parametrize("by", [-1000, 1000])
def test_an_end_that_the_lead_has_for_itself(
    disk: Path, file: int, by: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last block is none of the file's any more: a write there moves nothing."""
    end = MIB + BLOCK // 2
    os.pwrite(file, os.urandom(end), 0)
    os.fsync(file)
    os.ftruncate(file, end)  # so there are no blocks beyond
    early, moved = EarlyLeads(disk, {os.fstat(file).st_ino}), extents.moved_ranges

    def resize(*arguments: Any) -> object:
        found = moved(*arguments)
        os.ftruncate(file, end + by)
        return found

    with (disk / "base").open("w+b") as base, monkeypatch.context() as patch:
        patch.setattr(extents, "moved_ranges", resize)
        early.add(b"file", file, base=base.fileno(), content=None)
    libc.sync_filesystem(file)
    os.pwrite(file, b"x" * 100, MIB)
    os.ftruncate(file, min(end, end + by))
    lead = early.take(b"file", file)
    early.close()
    assert_whole(lead, disk)


@contextmanager
def called(name: str) -> Iterator[None]:
    """Call this process *name*."""
    own = Path("/proc/self/comm")
    before = own.read_text().rstrip("\n")
    own.write_text(name)
    try:
        yield
    finally:
        own.write_text(before)


@pytest.mark.parametrize("name", [" ino 0x5 ", "x\n#", "\n", ": dev 7:0 ino 0x5"])
def test_a_process_with_an_odd_name(name: str, file: int) -> None:
    inode = os.fstat(file).st_ino
    with followed({inode}, on=file) as events:
        assert events is not None
        with called(name):
            libc.punch_hole(file, 5 * BLOCK, BLOCK)
            time.sleep(NOTED_S)
            found = events.changed(inode)
    assert found in (None, [(0, MIB)])


@contextmanager
def tracing(disk: Path) -> Iterator[Path]:
    top = disk / "tracing"
    top.mkdir()
    command = ["mount", "-t", "tracefs", "none", str(top)]
    subprocess.run(command, check=True, timeout=10)
    try:
        yield top
    finally:
        subprocess.run(["umount", top], check=True, timeout=10)
        top.rmdir()


def test_what_is_dropped_is_known(
    disk: Path, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the machine's own tracing does when its buffers are full."""
    inode = os.fstat(file).st_ino
    monkeypatch.setattr(extent_events, "_BUFFER_KIB", 4)
    with tracing(disk) as top:
        overwrite = top / "options/overwrite"
        before = overwrite.read_text()
        overwrite.write_text("0")
        try:
            with followed({inode}, on=file) as events:
                assert events is not None
                for at in range(0, MIB, 2 * BLOCK):
                    libc.punch_hole(file, at, BLOCK)
                assert events.changed(inode) is None
        finally:
            overwrite.write_text(before)


def test_more_than_is_read_is_not_believed(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = os.fstat(file).st_ino
    monkeypatch.setattr(extent_events, "_READ_BYTES", 100)
    monkeypatch.setattr(extent_events, "_READ_BYTES_MAX", 400)
    with followed({inode}, on=file) as events:
        assert events is not None
        for at in range(0, 100 * BLOCK, 2 * BLOCK):
            libc.punch_hole(file, at, BLOCK)
        assert events.changed(inode) is None


def test_who_was_not_followed_is_not_told_of(file: int) -> None:
    with followed({1}, on=file) as events:
        assert events is not None
        assert events.changed(os.fstat(file).st_ino) is None


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extent_events_check, "_told", {})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("lacking", extent_events._EVENTS)
def test_a_kernel_that_tells_less_is_found_out(
    disk: Path,
    lacking: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    left = [each for each in extent_events._EVENTS if each != lacking]
    monkeypatch.setattr(extent_events, "_EVENTS", left)
    assert not all_is_told(disk)
    assert not all_is_told(disk)
    assert len(caplog.messages) == 1


@pytest.mark.usefixtures("unchecked")
def test_this_kernel_tells_all(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all_is_told(disk)
    monkeypatch.setattr(extent_events_check, "_untold", None)
    assert all_is_told(disk)


@pytest.mark.usefixtures("unchecked")
def test_where_nothing_can_be_tried_nothing_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not all_is_told(Path("/proc"))
    monkeypatch.setattr(extent_events, "_EVENTS", ["no_such_event"])
    assert not all_is_told(tmp_path)


@pytest.mark.parametrize("fate", ["cut", "linked", "moded"])
def test_a_file_that_is_no_large_one_in_the_moment(disk: Path, fate: str) -> None:
    """Or whose bytes nobody lacks: what is sent of it is there all the same."""
    owner, member = (Journal(make_home(disk, "xfs"), VOLUME) for _ in "12")
    path = owner.live / "db"
    path.write_bytes(os.urandom(5 * MIB))
    replicate(owner, member)
    owner.moments.expect([member.commit()])
    if fate == "moded":
        path.chmod(0o751)
    else:
        path.write_bytes(os.urandom(5 * MIB))
    owner.moments.prepare(owner.look(EVERYTHING), owner.manifest, shares_blocks=True)
    if fate == "cut":
        os.truncate(path, 5000)
    elif fate == "linked":
        path.with_name("other").hardlink_to(path)
    owner.moments.take(Hints(frozenset({b"", b"db", b"other"})), ())
    owner.record(owner.moments.taken(), (1, owner.commit()[1] + 1))
    assert carry(owner.pack(member.commit()), member) == []
    owner.unpack()
    member.apply()
    assert shape(member.live) == shape(owner.live)
    for each in (owner, member):
        each.close()
