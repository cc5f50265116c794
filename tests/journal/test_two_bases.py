"""Members at different commits get one and the same, whatever is written meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.rsync.journal.journal import EVERYTHING, Journal
from tests.support.journal_trees import VOLUME, carry, replicate, shape


@pytest.fixture
def copies(tmp_path: Path) -> list[Journal]:
    """Return an owner's copy and those of two members."""
    made = []
    for name in ("owner", "first", "second"):
        (tmp_path / name / "live").mkdir(parents=True)
        made.append(Journal(tmp_path / name, VOLUME))
    return made


def record(owner: Journal) -> None:
    owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))


def test_one_commit_leads_on_from_two_bases(copies: list[Journal]) -> None:
    owner, first, second = copies
    for name in ("one", "two", "three"):
        (owner.live / name).write_text("at first")
    replicate(owner, first)
    (owner.live / "one").write_text("for the second alone")
    (owner.live / "two").unlink()
    replicate(owner, second)
    (owner.live / "three").write_text("for both")
    (owner.live / "new").write_text("for both")
    (owner.live / "linked").hardlink_to(owner.live / "new")
    record(owner)
    package = owner.pack((1, 1), (1, 2))
    expected = shape(owner.live)
    assert carry(package, first) == []
    (owner.live / "three").write_text("written while others were sent to")
    other = owner.repack((1, 2))
    assert b"tree/one" in package.names
    assert carry(other, second) == []
    for each in (first, second):
        each.apply()
        assert each.commit() == owner.commit() == (1, 3)
        assert shape(each.live) == expected
    owner.unpack()
    for each in copies:
        each.close()
