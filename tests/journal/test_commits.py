"""Commits as read-only snapshots: what differs, what is sent, what a crash leaves."""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.rsync.journal import journal as journal_module
from backends.rsync.journal.journal import EVERYTHING, Hints, Journal
from backends.rsync.journal.outbox import unpack_all
from backends.rsync.journal.packing import OUTBOX_NAME
from backends.rsync.journal.scan import Changes
from backends.rsync.journal.staging import Staging
from tests.support.changing import Changing
from tests.support.journal_trees import (
    VOLUME,
    all_known,
    carry,
    check_rows,
    make_everything,
    send,
    shape,
)
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.watching import make_root

NOTHING = Hints()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    enter_private_mounts()
    with loop_filesystem(tmp_path_factory.mktemp("disk"), "btrfs") as disk:
        yield disk


numbers = itertools.count()


def make_home(disk: Path) -> Path:
    """Return the directory of a new copy on the btrfs *disk*."""
    home = disk / f"volume{next(numbers)}"
    home.mkdir()
    make_root(home / "live")
    return home


@pytest.fixture
def owner(disk: Path) -> Iterator[Journal]:
    journal = Journal(make_home(disk), VOLUME)
    assert journal.by_snapshot
    yield journal
    journal.close()


@pytest.fixture(params=["btrfs", "journal"])
def member(
    request: pytest.FixtureRequest, disk: Path, tmp_path: Path
) -> Iterator[Journal]:
    """Yield another copy, of either engine."""
    if request.param == "btrfs":
        home = make_home(disk)
    else:
        home = tmp_path / "member"
        (home / "live").mkdir(parents=True)
    journal = Journal(home, VOLUME)
    assert journal.by_snapshot == (request.param == "btrfs")
    yield journal
    journal.close()


def commit(journal: Journal, hints: Hints = EVERYTHING) -> Changes:
    """Make the next commit of what has changed."""
    changes = journal.look(hints)
    journal.record(changes, (1, journal.commit()[1] + 1))
    return changes


def bring(owner: Journal, member: Journal) -> int:
    """Bring the owner's commit to the member; return how much was sent."""
    sent = 0
    stand = member.commit()
    base = stand if owner.manifest.since(stand) else None
    missing: list[bytes] = []
    for _ in range(3):
        package = owner.pack(base, only=missing)
        sent += package.size_bytes
        missing = carry(package, member)
        if not missing:
            break
    owner.unpack()
    member.apply()
    assert member.commit() == owner.commit()
    assert shape(member.live) == shape(owner.source())
    check_rows(member.manifest.all(), all_known(member.live))
    return sent


def check(journal: Journal) -> None:
    """Assert that the manifest says what is there, and so does the snapshot."""
    # A rename of a subvolume changes the ctime of its root, in memory alone.
    check_rows(list(journal.manifest.all())[1:], list(all_known(journal.live))[1:])
    assert journal.source() != journal.live
    assert shape(journal.source()) == shape(journal.live)


def subvolumes(directory: Path) -> set[str]:
    """Return what subvolumes there are below *directory*."""
    return {
        str(each.relative_to(directory))
        for each in directory.rglob("*")
        if each.is_dir() and not each.is_symlink() and each.stat().st_ino == 256
    }


def test_what_is_written_as_soon_as_a_commit_is_in_place_is_found(
    owner: Journal, member: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Mount waits for no more than that nothing is marked."""
    (owner.live / "file").write_text("of the owner")
    commit(owner)
    assert not carry(owner.pack(None, only=[b"file"]), member)
    unmark = Staging.unmark

    def write_then(staging: Staging) -> None:
        unmark(staging)
        (member.live / "file").write_text("of the next owner")
        (member.live / "new").write_text("of the next owner")

    monkeypatch.setattr(Staging, "unmark", write_then)
    member.apply()
    found = {known.entry.path for known in member.look(EVERYTHING).changed}
    assert {b"file", b"new"} <= found


def test_everything_arrives_and_what_changes_follows(
    owner: Journal, member: Journal
) -> None:
    make_everything(owner.live)
    commit(owner)
    bring(owner, member)
    (owner.live / "deep/er/file").write_text("short now")
    (owner.live / "program").unlink()
    (owner.live / "empty").rename(owner.live / "deep/full")
    os.link(owner.live / "odd\nname \udcff", owner.live / "deep/full/linked")
    commit(owner)
    assert bring(owner, member) < 100
    assert owner.quality() == "snapshot"
    check(owner)
    assert subvolumes(owner.home) == {"live", "commits/1.2"}


def test_what_is_sent_stands_still(owner: Journal, member: Journal) -> None:
    (owner.live / "file").write_text("at the commit")
    commit(owner)
    (owner.live / "file").write_text("later")
    (owner.live / "other").write_text("later")
    bring(owner, member)
    assert (member.live / "file").read_text() == "at the commit"
    assert sorted(each.name for each in member.live.iterdir()) == ["file"]


def test_a_member_leads_on_as_owner(owner: Journal, disk: Path) -> None:
    make_everything(owner.live)
    commit(owner)
    member = Journal(make_home(disk), VOLUME)
    bring(owner, member)
    assert subvolumes(member.home) == {"live", "commits/1.1"}
    (member.live / "deep-").write_text("changed")
    found = commit(member)
    assert [each.entry.path for each in found.changed] == [b"deep-"]
    check(member)
    member.close()


@pytest.mark.parametrize("grown_max_bytes", [2**30, -1])
def test_stores_through_a_mapping_are_found(
    owner: Journal, grown_max_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a look at all names."""
    monkeypatch.setattr(journal_module, "_GROWN_MAX_BYTES", grown_max_bytes)
    file = owner.live / "mapped"
    file.write_bytes(bytes(8192))
    commit(owner)
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 8192) as mapped:
        for number in range(1, 4):
            mapped[:1] = bytes([number])
            found = commit(owner)
            assert [each.entry.path for each in found.changed] == [b"mapped"]
            assert (owner.source() / "mapped").read_bytes()[0] == number


def test_without_a_change_nothing_is_found(owner: Journal) -> None:
    make_everything(owner.live)
    commit(owner)
    for each in owner.live.rglob("*"):
        if each.is_file():
            each.read_bytes()
    assert not owner.look(EVERYTHING).changed


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_is_found(owner: Journal, seed: int) -> None:
    changing = Changing(owner.live, seed)
    for _ in range(25):
        for _ in range(12):
            changing.change()
        commit(owner)
        check(owner)


def test_another_directory_is_looked_at_whole(owner: Journal, disk: Path) -> None:
    """As after `snapshot restore`: the commit's snapshot is of another one."""
    (owner.live / "file").write_text("one")
    commit(owner)
    other = make_root(disk / f"other{next(numbers)}")
    shutil.copytree(owner.live, other, dirs_exist_ok=True)
    commit(owner)
    owner.live.rename(owner.home / "before")
    other.rename(owner.live)
    commit(owner)
    check(owner)


def test_what_was_set_apart_leaves_a_new_subvolume(owner: Journal) -> None:
    (owner.live / "file").write_text("precious")
    commit(owner)
    place = owner.keep_apart("1.1")
    make_root(owner.live)
    assert (place / "file").read_text() == "precious"
    commit(owner)
    check(owner)
    assert subvolumes(owner.home) == {"live", "quarantine/1.1", "commits/1.1"}


def test_a_directory_that_is_no_subvolume_stays_with_copies(disk: Path) -> None:
    home = disk / f"plain{next(numbers)}"
    (home / "live").mkdir(parents=True)
    journal = Journal(home, VOLUME)
    (journal.live / "file").write_text("one")
    commit(journal, EVERYTHING)
    assert (journal.by_snapshot, journal.quality()) == (False, "fuzzy")
    assert journal.pack(None, only=[b"file"]).size_bytes == 3
    journal.close()
    assert subvolumes(home) == set()


def test_a_commit_without_its_snapshot_is_sent_from_the_directory(
    owner: Journal, member: Journal
) -> None:
    (owner.live / "file").write_text("one")
    commit(owner)
    subprocess.run(
        ["btrfs", "subvolume", "delete", owner.home / "commits/1.1"],
        check=True,
        capture_output=True,
        timeout=30,
    )
    assert owner.quality() == "fuzzy"
    package = owner.pack(None, only=[b"file"])
    send(
        package.directory,
        member.staging.directory(),
        package.names.rstrip(b"\0").split(b"\0"),
    )
    owner.unpack()
    with member.staged() as delta:
        assert member.staging.missing(delta, member.manifest) == []


def test_what_a_crash_has_left_is_of_no_harm(owner: Journal) -> None:
    (owner.live / "file").write_text("one")
    commit(owner)
    # Named already, not yet in the manifest; and an outbox that nobody has removed.
    (owner.live / "file").write_text("two")
    owner.look(EVERYTHING)
    (owner.home / "commits/new").rename(owner.home / "commits/1.2")
    owner.pack(None, only=[b"file"])
    (owner.live / "file").write_text("three")
    again = Journal(owner.home, VOLUME)
    unpack_all(owner.home / OUTBOX_NAME)
    assert again.commit() == (1, 1)
    commit(again)
    check(again)
    assert (again.source() / "file").read_text() == "three"
    again.close()
    assert subvolumes(owner.home) == {"live", "commits/1.2"}


def test_without_a_snapshot_nothing_is_looked_at(owner: Journal) -> None:
    (owner.live / "file").write_text("one")
    shutil.rmtree(owner.home / "commits", ignore_errors=True)
    (owner.home / "commits").write_text("in the way")
    with pytest.raises(BackendError, match="cannot take a snapshot"):
        owner.look(EVERYTHING)
    (owner.home / "commits").unlink()
    commit(owner)
    check(owner)
