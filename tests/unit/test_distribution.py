"""What was copied in an earlier round is not copied again under the same number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.rsync.journal.journal import EVERYTHING, Journal
from plugin.errors import PeerUnreachableError
from plugin.ownership.state import EMPTY, Commit, Epoch, Lineage
from plugin.replication import seeding
from plugin.replication.progress import Progress
from plugin.replication.report import Report
from plugin.replication.sending import Sending
from tests.support.journal_trees import VOLUME

RECORD: Any = SimpleNamespace(id=VOLUME, name="v")
LINEAGE = Lineage({1: Epoch(EMPTY, "owner")})


class Line:
    """Says at which commits members are, and brings nothing: it notes for whom."""

    def __init__(self, **commits: Commit) -> None:
        self.commits = commits
        self.progress = Progress()
        self.applying: set[str] = set()
        self.sent: list[tuple[str, Commit]] = []
        self.fillers: list[str] = []

    def call_all(self, *_: object, **__: object) -> dict[str, dict[str, object]]:
        return {
            name: {"commit": [at.epoch, at.seq], "applying": name in self.applying}
            for name, at in self.commits.items()
        }

    def call(self, node_id: str, *_: object, **__: object) -> dict[str, object]:
        self.fillers.append(node_id)
        return {"carried_bytes": 0}

    def send_ahead(self, *_: object, **__: object) -> int:
        self.fillers.append("owner")
        return 0

    def send(self, node_id: str, *, commit: Commit, **_: object) -> int:
        self.sent.append((node_id, commit))
        raise PeerUnreachableError("planned")


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    monkeypatch.setattr(seeding, "_WAIT_S", 30.0)  # it flushes the disk before
    (tmp_path / "live").mkdir()
    made = Journal(tmp_path, VOLUME)
    for number in (1, 2):
        (made.live / "file").write_text(str(number))
        made.record(made.look(EVERYTHING), (1, number))
    yield made
    made.close()


def distribute(journal: Journal, line: Line, *, changed: bool = False) -> list[bool]:
    """Return which commits had to be new, whether or not files have *changed*."""
    return distributed(journal, line, changed=changed)[0]


def distributed(
    journal: Journal, line: Line, *, changed: bool
) -> tuple[list[bool], list[Report]]:
    """Return what `distribute` does, and the reports."""
    asked: list[bool] = []

    def advance(anew: bool) -> Commit:
        asked.append(anew)
        if anew or changed:
            number = journal.commit()[1] + 1
            journal.record(journal.look(EVERYTHING), (1, number))
        return Commit(*journal.commit())

    peers: Any = line
    sending = Sending(peers, peers, node_name="owner")
    reports = sending.distribute(
        *(RECORD, journal, LINEAGE, [*line.commits]),
        advance=advance,
        valid=lambda: True,
    )
    return asked, [*reports]


def test_a_commit_that_somebody_has_is_not_copied_again(journal: Journal) -> None:
    """What containers write meanwhile would be part of it for one member alone."""
    line = Line(there=Commit(1, 2), behind=Commit(1, 1))
    assert distribute(journal, line) == [False, True]
    assert set(line.sent) == {("there", Commit(1, 3)), ("behind", Commit(1, 3))}


def test_a_commit_that_was_offered_is_not_copied_again(journal: Journal) -> None:
    """Its answer may be lost: the member takes those bytes, and none of the others."""
    at = Commit(1, 1)
    assert distribute(journal, Line(one=at, two=at)) == [False, True]


def test_a_new_commit_is_copied(journal: Journal) -> None:
    line = Line(one=Commit(1, 2))
    assert distribute(journal, line, changed=True) == [False]
    assert line.sent == [("one", Commit(1, 3))]


def test_members_that_are_there_need_no_other(journal: Journal) -> None:
    at = Commit(1, 2)
    assert distribute(journal, Line(one=at, two=at)) == [False]


def test_who_has_an_older_commit_fills_nobody(journal: Journal) -> None:
    """What has changed since would not be sent to the member that is filled."""
    line = Line(there=Commit(1, 2), unknown=Commit(7, 1), empty=EMPTY)
    assert distribute(journal, line) == [False, True, True]
    assert line.fillers == ["owner"]


def test_who_has_the_newest_commit_fills_another(journal: Journal) -> None:
    line = Line(there=Commit(1, 2), empty=EMPTY)
    assert distribute(journal, line) == [False, True]
    assert line.fillers == ["there"]


@pytest.mark.parametrize("changed", [False, True])
def test_who_applies_a_commit_has_it_and_gets_no_other(
    journal: Journal, changed: bool
) -> None:
    """It would refuse that: nobody sends to a copy that changes."""
    line = Line(one=Commit(1, 2))
    line.applying.add("one")
    _, (report,) = distributed(journal, line, changed=changed)
    assert not line.sent
    assert report.holders == (set() if changed else {"one"})
    # A last sync asks again soon.
    assert report.filling == report.unheard == ({"one"} if changed else set())
    assert not report.faults
