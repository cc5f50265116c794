"""Which staged files are believed to belong to the commit that names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from backends.rsync.journal import arrivals as module
from backends.rsync.journal import staging
from backends.rsync.journal.arrivals import Arrivals
from backends.rsync.journal.delta import Header
from backends.rsync.journal.entries import Entry, Known
from backends.rsync.journal.staging import Staging
from backends.system import clock
from backends.system.clock import wall_ns
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
    assert arrivals.go_on((1, 6))
    # Nothing that comes now would be later than what began in the future.
    monkeypatch.setattr(module, "wall_ns", lambda: 500)
    assert not arrivals.go_on((1, 6))


def test_what_came_before_the_clock_was_put_back_goes_before_it_is_as_late_again(
    incoming: Incoming, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a commit that was never taken, with the size and times of the next one's."""
    begun_at_ns = clock.wall_ns() - 3_600 * 10**9, clock.boottime_ns() - 3_600 * 10**9
    real_ns, set_by_ns = (clock.wall_ns, clock.boottime_ns), -60 * 10**9
    set_clocks(monkeypatch, *(lambda each=each: each for each in begun_at_ns))
    incoming.note(VOLUME, tmp_path, WANTED, empty=False, clean=True)
    tree = Staging(tmp_path).tree()
    (tree / "directory").mkdir()
    came = tree / "directory" / "file"
    came.touch()
    # An hour has passed, and the clock is behind what it was when the file came.
    set_clocks(monkeypatch, lambda: real_ns[0]() + set_by_ns, real_ns[1])
    incoming.note(VOLUME, tmp_path, LATER, empty=False)
    assert not came.exists()


def test_what_has_come_stays_while_the_clock_goes_on(
    incoming: Incoming, tmp_path: Path
) -> None:
    incoming.note(VOLUME, tmp_path, WANTED, empty=False, clean=True)
    came = Staging(tmp_path).tree() / "file"
    came.touch()
    arrivals = incoming.of(VOLUME)
    incoming.note(VOLUME, tmp_path, LATER, empty=False)
    assert came.exists()
    assert incoming.of(VOLUME) is arrivals


def set_clocks(
    monkeypatch: pytest.MonkeyPatch, wall: Callable[[], int], boot: Callable[[], int]
) -> None:
    for each in (clock, module, staging):
        monkeypatch.setattr(each, "wall_ns", wall)
    monkeypatch.setattr(clock, "boottime_ns", boot)


def test_a_file_counts_if_it_came_with_the_commit_that_wrote_it_or_a_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000]
    monkeypatch.setattr(module, "wall_ns", lambda: now[0])
    arrivals = Arrivals.begun((1, 5))
    now[0] = 2000
    assert arrivals.go_on((1, 7))
    now[0] = 3000
    assert arrivals.go_on((1, 7))  # once more: what it is has not changed
    assert arrivals.include(*file(1500, (1, 5)))
    for commit in ((1, 6), (1, 7)):
        assert not arrivals.include(*file(1500, commit))
        assert arrivals.include(*file(2500, commit))
    assert not arrivals.include(*file(2500, (1, 8)))
    # An older commit, or an owner to come, knows nothing of these.
    assert not arrivals.go_on((1, 6))
    assert not arrivals.go_on((2, 1))


def test_where_nothing_lay_all_is_of_the_first_commit_whatever_the_clock_says() -> None:
    arrivals = Arrivals.begun((1, 5), clean=True)
    assert arrivals.include(*file(0, (1, 5)))
    assert not arrivals.include(*file(0, (1, 6)))


def test_nothing_counts_that_came_while_an_earlier_transfer_may_have_written(
    incoming: Incoming, tmp_path: Path
) -> None:
    incoming.note(VOLUME, tmp_path, WANTED, empty=False, clean=None)
    arrivals = incoming.of(VOLUME)
    assert arrivals is not None
    assert not arrivals.include(*file(wall_ns(), (1, 5)))
    incoming.note(VOLUME, tmp_path, LATER, empty=False)
    assert arrivals.include(*file(wall_ns(), (1, 5)))


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
    assert arrivals.compared == whole
    # The owner tells since when: what is newer has to have been sent.
    assert not arrivals.include(*file(0))
    delta = Header(VOLUME, None, (1, 5))
    arrivals = incoming.come_for(VOLUME, delta, (1, 4))
    assert arrivals.include(*file(0)) == whole
    assert not arrivals.include(*file(0, (1, 5)))
    # An owner of the version before does not tell.
    assert incoming.come_for(VOLUME, delta, None).include(*file(0, (1, 5))) == whole
    # The owner has to fill it again in either case, if it was started since.
    assert incoming.is_ahead(VOLUME)
    incoming.forget(VOLUME)
    assert not incoming.is_ahead(VOLUME)


def test_a_file_that_was_skipped_is_not_the_one_that_came_before(
    incoming: Incoming, tmp_path: Path
) -> None:
    """Its directory was moved away for a moment, say: rsync leaves what lies here."""
    incoming.note(VOLUME, tmp_path, Commit(1, AHEAD_SEQ), empty=False)
    incoming.note_all_ahead(VOLUME, skipped=True)
    incoming.note(VOLUME, tmp_path, WANTED, empty=True)
    arrivals = incoming.come_for(VOLUME, Header(VOLUME, None, (1, 5)), (1, 4))
    assert arrivals.include(*file(wall_ns()))
    assert not arrivals.include(*file(0))


def test_nothing_counts_if_some_was_skipped_and_nobody_knows_since_when(
    incoming: Incoming, tmp_path: Path
) -> None:
    ahead = Commit(1, AHEAD_SEQ)
    incoming.note(VOLUME, tmp_path, ahead, empty=False, clean=None)
    came = file(wall_ns())
    incoming.note_all_ahead(VOLUME, skipped=True)
    incoming.note(VOLUME, tmp_path, WANTED, empty=True)
    arrivals = incoming.come_for(VOLUME, Header(VOLUME, None, (1, 5)), (1, 4))
    assert not arrivals.include(*came)
