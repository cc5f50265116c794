"""Which staged files are believed to belong to the commit that names them."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.rsync.journal import arrivals as module
from backends.rsync.journal.arrivals import Arrivals
from backends.rsync.journal.entries import Entry, Known
from plugin.ownership.state import Commit
from plugin.replication.incoming import Incoming
from plugin.replication.transfer import AHEAD_SEQ

VOLUME = "volume"
WANTED = Commit(1, 5)
LATER = Commit(1, 6)


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
def incoming() -> Incoming:
    return Incoming()


def test_what_came_of_a_commit_stays_for_the_next_holder(
    incoming: Incoming, tmp_path: Path
) -> None:
    incoming.pull(VOLUME, WANTED)
    incoming.note(VOLUME, tmp_path, WANTED, empty=False)
    arrivals = incoming.of(VOLUME)
    assert arrivals is not None
    incoming.pull(VOLUME, WANTED)
    incoming.note(VOLUME, tmp_path, WANTED, empty=False)
    assert incoming.of(VOLUME) is arrivals
    # What came of another one may be the same but for its content.
    incoming.pull(VOLUME, LATER)
    assert incoming.of(VOLUME) is None


@pytest.mark.parametrize("whole", [True, False])
def test_files_ahead_are_believed_if_rsync_has_gone_through_all(
    incoming: Incoming, tmp_path: Path, whole: bool
) -> None:
    incoming.note(VOLUME, tmp_path, Commit(1, AHEAD_SEQ), empty=False)
    if whole:
        incoming.note_all_ahead(VOLUME)
    arrivals = incoming.of(VOLUME)
    assert arrivals is not None
    assert arrivals.include(*file(0)) == whole
    # The owner has to fill it again in either case, if it was started since.
    assert incoming.is_ahead(VOLUME)
    incoming.forget(VOLUME)
    assert not incoming.is_ahead(VOLUME)
