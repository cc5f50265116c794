"""What a member on XFS keeps of a large file, for when it comes to own it."""

from __future__ import annotations

import os
import time

import pytest

from backends.rsync.journal import base_clones
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.large_files import LargeFiles
from backends.system import extents
from tests.support.file_fates import PART, SIZE
from tests.support.journal_trees import replicate, send
from tests.support.large_files import write_at


def lead_on(owner: Journal, member: Journal, *, urgent: bool = False) -> None:
    """Bring a change of the large file to the member."""
    epoch, number = owner.commit()
    write_at(owner.live / "db", number % 5 * PART, os.urandom(9000))
    time.sleep(0.15)  # the times of its files are believed
    owner.record(owner.look(EVERYTHING), (epoch, number + 1))
    package = owner.pack(member.commit())
    names = package.names.rstrip(b"\0").split(b"\0")
    assert b"redo/db" in names
    send(package.directory, member.staging.directory(), names)
    os.sync()
    with member.staged() as delta:
        assert member.staging.missing(delta, member.manifest) == []
        member.staging.mark(delta, urgent=urgent)
    member.apply()
    owner.unpack()
    assert (member.live / "db").read_bytes() == (owner.live / "db").read_bytes()


def moved(journal: Journal) -> tuple[int, int]:
    """Return how much of the file is elsewhere than in its base, and was noted."""
    kept = LargeFiles(journal.home)
    row = journal.manifest.get(b"db")
    assert row is not None
    commit, noted = kept.base_for(b"db", kept.log.content_of(row.entry))
    assert commit is not None
    with (
        (journal.live / "db").open("rb") as file,
        kept.bases.opened(b"db", commit) as base,
    ):
        assert base is not None
        found = extents.moved_ranges(base, file.fileno())
    assert found is not None
    return sum(e for _, e in found), sum(e for at, e in noted if at < SIZE)


def test_its_base_has_the_blocks_of_its_file(
    xfs_pair: tuple[Journal, Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which are those of the redo file; and the whole file is not cloned again."""
    monkeypatch.setattr(base_clones, "clone", None)
    for _ in range(3):
        lead_on(*xfs_pair)
        assert moved(xfs_pair[1]) == (0, 0)


def test_what_is_urgent_does_not_wait_for_its_base(
    xfs_pair: tuple[Journal, Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of an older commit, and catches up with the next one."""
    monkeypatch.setattr(base_clones, "clone", None)
    lead_on(*xfs_pair)
    # It stays as it is for a while.
    for _ in range(2):
        (xfs_pair[0].live / "other").write_bytes(os.urandom(9))
        replicate(*xfs_pair)
    for count in (1, 2):
        lead_on(*xfs_pair, urgent=True)
        elsewhere, noted = moved(xfs_pair[1])
        assert 0 < elsewhere <= noted <= count * 12288
    lead_on(*xfs_pair)
    assert moved(xfs_pair[1]) == (0, 0)


def test_who_comes_to_own_it_sends_ranges(xfs_pair: tuple[Journal, Journal]) -> None:
    """Also after an urgent commit, and of what is changed back since."""
    owner, member = xfs_pair
    before = (owner.live / "db").read_bytes()
    lead_on(owner, member, urgent=True)
    write_at(member.live / "db", 0, before[: 6 * PART])
    member.record(member.look(EVERYTHING), (2, 1))
    package = member.pack(owner.commit())
    assert b"redo/db" in package.names
    names = package.names.rstrip(b"\0").split(b"\0")
    send(package.directory, owner.staging.directory(), names)
    with owner.staged() as delta:
        assert owner.staging.missing(delta, owner.manifest) == []
        owner.staging.mark(delta)
    owner.apply()
    assert (member.live / "db").read_bytes() == (owner.live / "db").read_bytes()
