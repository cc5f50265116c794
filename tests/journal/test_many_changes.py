"""More changes than memory is for: they are found in parts, and all of them."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backends.rsync.journal import scan
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.scan import Changes
from backends.rsync.journal.watch import Hints
from tests.support.journal_trees import all_known, check_rows

PART_MAX = 20
DIRECTORIES, FILES = 12, 15


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "PART_MAX", PART_MAX)
    monkeypatch.setattr(scan, "HINTED_MAX", PART_MAX)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    fill(tmp_path / "live")
    with closing(Journal(tmp_path, "id")) as made:
        yield made


def fill(live: Path) -> None:
    for number in range(DIRECTORIES):
        (live / f"d{number:02}").mkdir(parents=True)
        for each in range(FILES):
            (live / f"d{number:02}/f{each:02}").write_text("content")
    # Their other names are far away in the order of the paths.
    os.link(live / "d00/f00", live / "d11/z")


def keep(journal: Journal, changes: Changes, seq: int) -> list[int]:
    """Record *changes*; return how many were in memory at a time."""
    sizes: list[int] = []

    def counted() -> Iterator[Changes]:
        for each in changes.rest:
            sizes.append(size(each))
            yield each

    sizes.append(size(changes))
    rest = counted() if changes.rest else ()
    journal.record(
        Changes(changes.changed, changes.deleted, changes.touched, rest), (1, seq)
    )
    return sizes


def size(changes: Changes) -> int:
    return len(changes.changed) + len(changes.deleted) + len(changes.touched)


def check(journal: Journal, sizes: list[int]) -> None:
    """Assert that the manifest is as the directory, and that memory was bounded."""
    check_rows(journal.manifest.all(), all_known(journal.live))
    # The other names of files of a part come with it.
    assert max(sizes) <= PART_MAX + 3


def test_a_first_look_and_one_after_many_changes(journal: Journal) -> None:
    sizes = keep(journal, journal.look(EVERYTHING), 1)
    assert len(sizes) > 5
    check(journal, sizes)
    for path in journal.live.rglob("f*"):
        path.write_text("other content")
    shutil.rmtree(journal.live / "d03")
    (journal.live / "d03").write_text("a file now")
    for each in (journal.live / "d05").iterdir():
        each.unlink()
    (journal.live / "d07/f07").unlink()
    (journal.live / "d07/f07").mkdir()
    (journal.live / "d07/f07/below").write_text("")
    sizes = keep(journal, journal.look(EVERYTHING), 2)
    assert len(sizes) > 5
    check(journal, sizes)
    entries, deleted = journal.manifest.since((1, 1)) or ((), ())
    assert b"d07/f07/below" in {each.path for each in entries}
    assert {path for path in deleted if path.startswith(b"d03")} == {
        b"d03/f%02d" % number for number in range(FILES)
    }
    assert len([*journal.live.rglob("*")]) + 1 == journal.manifest.count()


@pytest.mark.parametrize("what", ["made", "removed", "moved", "hinted"])
def test_hints_that_lead_to_much_are_given_up(
    journal: Journal, tmp_path: Path, what: str
) -> None:
    keep(journal, journal.look(EVERYTHING), 1)
    live = journal.live
    hints = {
        "made": Hints(frozenset([b"new"])),
        "removed": Hints(frozenset([b"d01", b"d02"]), trees=frozenset([b"d01"])),
        "moved": Hints(frozenset([b"d01", b"gone"])),
        "hinted": Hints(
            frozenset(
                b"d%02d/f%02d" % each
                for each in itertools.product(range(DIRECTORIES), range(FILES))
            )
        ),
    }[what]
    if what == "made":
        fill(tmp_path / "made")
        (tmp_path / "made").rename(live / "new")
    elif what == "removed":
        shutil.rmtree(live / "d01")
        shutil.rmtree(live / "d02")
    elif what == "moved":
        (live / "d01").rename(live / "gone")
    else:
        for path in live.rglob("f*"):
            path.write_text("other")
    check(journal, keep(journal, journal.look(hints), 2))


def test_a_part_that_fails_records_nothing(journal: Journal) -> None:
    keep(journal, journal.look(EVERYTHING), 1)
    before = list(journal.manifest.all())
    for path in journal.live.rglob("f*"):
        path.write_text("other content")
    changes = journal.look(EVERYTHING)

    def broken() -> Iterator[Changes]:
        yield next(iter(changes.rest))
        raise OSError

    with pytest.raises(Exception, match="cannot use the manifest"):
        journal.record(
            Changes(changes.changed, changes.deleted, changes.touched, broken()), (1, 2)
        )
    assert list(journal.manifest.all()) == before
    assert journal.commit() == (1, 1)
    check(journal, keep(journal, journal.look(EVERYTHING), 2))
