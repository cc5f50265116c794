"""Which staged files are believed to belong to the commit that names them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from backends.rsync.journal import arrivals as module
from backends.rsync.journal.arrivals import Arrivals
from backends.rsync.journal.entries import Entry, Known
from plugin.ownership.state import Commit
from plugin.replication.progress import Progress
from plugin.replication.receiving import Receiving
from plugin.replication.transfer import AHEAD_SEQ

VOLUME, NODE = "volume", "beta"
WANTED = Commit(1, 5)
LATER = Commit(1, 6)
JOURNAL: Any = SimpleNamespace(commit=lambda: (1, 3))


def file(came_ns: int, commit: tuple[int, int] = (1, 4)) -> tuple[Entry, Known]:
    entry = Entry(b"file", "file", 0o600, 0, 0, 1, commit=commit)
    return entry, Known(entry, 1, came_ns)


def test_what_came_before_the_clock_was_put_back_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "wall_ns", lambda: 1000)
    arrivals = Arrivals.begun((1, 5))
    monkeypatch.setattr(module, "wall_ns", lambda: 2000)
    assert arrivals.include(*file(1500))
    assert not arrivals.include(*file(500))
    assert not arrivals.include(*file(9000))
    assert arrivals.continues(Arrivals.begun((1, 6)))
    # Nothing that comes now would be later than what began in the future.
    monkeypatch.setattr(module, "wall_ns", lambda: 500)
    assert not arrivals.continues(Arrivals.begun((1, 5)))


@pytest.fixture
def receiving() -> Receiving:
    nothing: Any = SimpleNamespace(heads=None, node_id="own", events=None)
    return Receiving(
        *(nothing, nothing),
        find=lambda _: None,
        by_id=lambda _: None,
        room=nothing,
        stop_writers=lambda _: True,
        note_apart=lambda _: None,
        progress=Progress(),
        nice=0,
    )


def test_what_came_of_a_commit_stays_for_the_next_holder(receiving: Receiving) -> None:
    receiving.expect(VOLUME, NODE, WANTED)
    receiving._note_arrival(VOLUME, JOURNAL, WANTED)
    arrivals = receiving._arrivals[VOLUME]
    receiving.expect_nothing(VOLUME)
    receiving.expect(VOLUME, "gamma", WANTED)
    receiving._note_arrival(VOLUME, JOURNAL, WANTED)
    assert receiving._arrivals[VOLUME] is arrivals
    # What came of another one may be the same but for its content.
    receiving.expect(VOLUME, "gamma", LATER)
    assert VOLUME not in receiving._arrivals


@pytest.mark.parametrize(
    ("exit_status", "whole"), [(0, True), (24, True), (None, False)]
)
def test_files_ahead_are_believed_if_rsync_has_gone_through_all(
    receiving: Receiving, exit_status: int | None, *, whole: bool
) -> None:
    session = SimpleNamespace(number=0)
    receiving._sessions = SimpleNamespace(take_out=lambda *_: session)  # type: ignore[assignment]
    receiving._note_arrival(VOLUME, JOURNAL, Commit(1, AHEAD_SEQ))
    about: Any = {"volume": VOLUME, "epoch": 1, "seq": AHEAD_SEQ}
    receiving.end(NODE, **about, exit_status=exit_status)
    assert receiving._arrivals[VOLUME].include(*file(0)) == whole
