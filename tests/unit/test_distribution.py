"""What was copied in an earlier round is not copied again under the same number."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.rsync.journal import kept_files
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.system.clock import monotonic_s
from plugin.errors import PeerUnreachableError
from plugin.ownership.state import EMPTY, Commit, Epoch, Lineage
from plugin.replication import seeding
from plugin.replication.landing import Landing
from plugin.replication.missing_paths import encoded_paths
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


def distribute(
    journal: Journal,
    line: Line,
    *,
    changed: bool = False,
    landing: Landing | None = None,
) -> list[bool]:
    """Return which commits had to be new, whether or not files have *changed*."""
    return distributed(journal, line, changed=changed, landing=landing)[0]


def distributed(
    journal: Journal, line: Line, *, changed: bool, landing: Landing | None = None
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
        landing=landing,
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


def test_no_moment_holds_what_nobody_is_sent(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It might be too much for one, and the others would get none."""
    line = Line(there=Commit(1, 2), behind=Commit(1, 1))
    line.applying.add("behind")
    expected: list[set[tuple[int, int]]] = []
    monkeypatch.setattr(journal.moments, "expect", expected.append)
    distribute(journal, line, changed=True)
    assert expected == [{(1, 2)}]


class Bringing(Line):
    """Brings, and notes what members are asked."""

    def __init__(self, **commits: Commit) -> None:
        super().__init__(**commits)
        self.done: list[str] = []

    def send(self, node_id: str, *, commit: Commit, **_: object) -> int:
        del commit
        self.done.append(f"sent to {node_id}")
        return 0

    def call(self, node_id: str, *_: object, **__: object) -> dict[str, object]:
        self.done.append(f"commit on {node_id}")
        return {"commit": [1, 3]}


def test_it_becomes_a_members_when_others_of_its_moment_have_come(
    journal: Journal,
) -> None:
    line = Bringing(one=Commit(1, 2))

    class Watched(Landing):
        def come(self, volume_id: str, node_id: str) -> None:
            line.done.append("waits")
            super().come(volume_id, node_id)

    landing = Watched([VOLUME, "other"], wait_s=0.5)
    landing.begin("other", ["one"])
    distribute(journal, line, changed=True, landing=landing)
    assert line.done == ["sent to one", "waits", "commit on one"]


def test_nobody_waits_for_what_has_broken_off(journal: Journal) -> None:
    landing = Landing([VOLUME, "other"])
    landing.begin("other", ["one"])
    distribute(journal, Line(one=Commit(1, 2)), changed=True, landing=landing)
    began_s = monotonic_s()
    landing.come("other", "one")
    assert monotonic_s() - began_s < 5


class Lacking(Line):
    """Brings, and notes what; the member lacks a file until that comes."""

    def __init__(self, **commits: Commit) -> None:
        super().__init__(**commits)
        self.names: list[bytes] = []

    def send(self, node_id: str, *, commit: Commit, **more: Any) -> int:
        del node_id, commit
        self.names += more["names"]
        return 0

    def call(self, *_: object, **__: object) -> dict[str, object]:
        if b"tree/0" not in self.names[-1]:
            return {"missing": encoded_paths([b"0"])}
        return {"commit": [1, 6]}


def test_what_has_changed_meanwhile_is_not_lacked(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were written just before the look count as changed once more."""
    monkeypatch.setattr(kept_files, "_REFUSED_MAX", 3)
    for number in range(9):
        (journal.live / f"{number}").write_text("kept")
    journal.record(journal.look(EVERYTHING), (1, 3))
    for number in range(9):
        os.chown(journal.live / f"{number}", 7, 8)
    line = Lacking(one=Commit(1, 3))
    assert distribute(journal, line, changed=True) == [False, True, True]
    brought = b"".join(line.names).split(b"\0")
    assert [name for name in brought if b"/" in name] == [b"tree/0"]
