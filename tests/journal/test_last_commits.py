"""An owner's last commit on XFS, of a large file that nobody writes to any more."""

from __future__ import annotations

import itertools
import os
import time

import pytest

from backends.errors import BackendError
from backends.rsync.journal import base_leads
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.large_files import LargeFiles
from backends.system import extents
from tests.support.file_fates import PART
from tests.support.journal_trees import carry
from tests.support.large_files import write_at


def change(owner: Journal, part: int) -> None:
    """Make a commit of a change in one *part* of the large file."""
    write_at(owner.live / "db", part * PART, os.urandom(9000))
    time.sleep(0.15)  # the times of its files are believed
    epoch, number = owner.commit()
    owner.record(owner.look(EVERYTHING), (epoch, number + 1))


def bring(owner: Journal, member: Journal, *, stands_still: bool) -> None:
    """Bring the last commit over as a redo file."""
    package = owner.pack(member.commit(), stands_still=stands_still)
    assert package.names == b"delta\0redo/db\0"
    assert carry(package, member) == []
    owner.unpack()
    member.apply()
    assert (member.live / "db").read_bytes() == (owner.live / "db").read_bytes()


def base_of(journal: Journal) -> tuple[int, int] | None:
    """Return the commit of the clone that is kept."""
    return LargeFiles(journal.home).bases.nearest(b"db", journal.commit())


def test_nothing_is_cloned_before_it_is_sent(
    xfs_pair: tuple[Journal, Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, member = xfs_pair
    for part in (1, 2):
        change(owner, part)
        before = base_of(owner)
        with monkeypatch.context() as patch:
            patch.setattr(extents, "share_moved", None)
            patch.setattr(base_leads, "clone_range", None)
            package = owner.pack(member.commit(), stands_still=True)
        # Its clone comes after it while it is on the way.
        assert base_of(owner) == before
        owner.advance_bases()
        assert base_of(owner) == owner.commit()
        assert carry(package, member) == []
        member.apply()
        assert (member.live / "db").read_bytes() == (owner.live / "db").read_bytes()


def test_what_is_packed_again_are_ranges(xfs_pair: tuple[Journal, Journal]) -> None:
    """A member that did not get it the first time is sent it once more."""
    owner, member = xfs_pair
    change(owner, 1)
    owner.pack(member.commit(), stands_still=True)
    owner.unpack()
    bring(owner, member, stands_still=True)


def test_a_clone_that_stays_behind_loses_no_change(
    xfs_pair: tuple[Journal, Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a crash leaves it, before the commit was on its way."""
    owner, member = xfs_pair
    change(owner, 1)
    before = base_of(owner)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "advance_bases", lambda _: None)
        bring(owner, member, stands_still=False)
    assert base_of(owner) == before
    change(owner, 3)
    bring(owner, member, stands_still=False)
    assert base_of(owner) == owner.commit()


@pytest.mark.parametrize("stands_still", [True, False])
@pytest.mark.parametrize("count", range(8))
def test_who_writes_again_meanwhile_loses_no_change(
    xfs_pair: tuple[Journal, Journal], count: int, *, stands_still: bool
) -> None:
    """Wherever it happens: before it is sent it fails, and else the clone goes."""
    owner, member = xfs_pair
    asked = itertools.count()

    def valid() -> bool:
        number = next(asked)
        if number == count:
            write_at(owner.live / "db", PART, os.urandom(PART))
        return number < count

    change(owner, 1)
    try:
        package = owner.pack(member.commit(), stands_still=stands_still, valid=valid)
    except BackendError as error:
        assert "changed hands" in str(error)
    else:
        assert carry(package, member) == []
        member.apply()
    owner.unpack()
    time.sleep(0.15)
    for _ in range(2):
        change(owner, 4)
        missing: list[bytes] = []
        while missing := carry(owner.pack(member.commit(), only=missing), member):
            owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))
        owner.unpack()
        member.apply()
        assert (member.live / "db").read_bytes() == (owner.live / "db").read_bytes()
