"""
What the disk has lost counts as durable nowhere, whoever has heard of the error first.

The kernel tells of a lost write once, to each descriptor that was open by then. Here it
is told to somebody else, before anybody of ours asks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.rsync.journal.journal import Journal
from backends.system import clock
from backends.system.writeback import Writeback
from plugin.errors import NotOwnerError
from plugin.ownership.copy_states import CopyStates
from plugin.ownership.heads import drop_lock
from plugin.ownership.state import EMPTY, Commit, CopyState
from plugin.peers.sharing import AHEAD_SEQ
from plugin.replication.incoming import Incoming
from tests.fault.two_nodes import World
from tests.protocol.node import wait_until
from tests.support.journal_trees import VOLUME
from tests.support.namespaces import LosingDisk, enter_private_mounts, losing_disk

WRITTEN = os.urandom(100_000)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LosingDisk]:
    enter_private_mounts()
    with losing_disk(tmp_path) as disk:
        yield disk


def test_whoever_was_there_before_the_writes_hears_of_it_until_they_are_repaired(
    disk: LosingDisk,
) -> None:
    written = Writeback(disk.path)
    (disk.path / "tree").mkdir()
    file = disk.path / "tree/file"
    file.write_bytes(WRITTEN)
    times = file.stat().st_mtime_ns
    disk.lose()
    Writeback(disk.path).flush()  # it hears of nothing
    for _ in range(2):
        with pytest.raises(OSError, match=r"No space|lost"):
            written.flush()
    assert WRITTEN not in disk.image.read_bytes()
    written.repair(disk.path / "tree", whole=False)
    written.flush()
    assert WRITTEN in disk.image.read_bytes()
    assert file.stat().st_mtime_ns == times


@pytest.mark.parametrize("ahead_s", [(3600, 0, 0), (3600, 0, 3600)])
def test_writes_are_repaired_although_the_clock_was_set_meanwhile(
    disk: LosingDisk, monkeypatch: pytest.MonkeyPatch, ahead_s: tuple[int, int, int]
) -> None:
    """As time servers do after a boot: the clock was ahead at the begin, say."""
    real_ns = clock.wall_ns

    def set_clock(by_s: int) -> None:
        monkeypatch.setattr(clock, "wall_ns", lambda: real_ns() + by_s * 1_000_000_000)

    set_clock(ahead_s[0])
    states = CopyStates(lambda _: disk.path)
    live = CopyState(promised=1, commit=Commit(1, 0), live_epoch=1)
    with states.changing(VOLUME):
        states.write(VOLUME, live)
    (disk.path / "live").mkdir()
    # The file has the real time.
    (disk.path / "live/file").write_bytes(WRITTEN)
    set_clock(ahead_s[1])
    assert states.read(VOLUME, initial=EMPTY) == live
    disk.lose()
    set_clock(ahead_s[2])
    states.flush(VOLUME)
    assert WRITTEN in disk.image.read_bytes()


def test_a_copy_that_is_voted_for_is_on_the_disk(disk: LosingDisk) -> None:
    alpha, beta = World(disk.path, "alpha"), World(disk.path, "beta")
    alpha.meet(beta)
    alpha.volumes.creation.create("v", {})
    (alpha.mount() / "file").write_bytes(WRITTEN)
    disk.lose()
    record = alpha.volumes.views.existing("v").record
    alpha.store.transact([], [drop_lock(record.id)])
    # It asks alpha, which votes; the bytes it could fetch only in a real cluster.
    with suppress(NotOwnerError):
        beta.mount()
    copy = alpha.ownership.copy_state(record)
    assert copy is not None
    assert copy.promised == beta.head().epoch
    assert WRITTEN in disk.image.read_bytes()
    for each in (alpha, beta):
        each.close()


def test_what_was_sent_and_is_lost_has_to_be_sent_again(disk: LosingDisk) -> None:
    home = disk.path / "home"
    (home / "live").mkdir(parents=True)
    incoming = Incoming()
    with closing(Journal(home, VOLUME)) as journal:
        incoming.note(VOLUME, home, Commit(1, 1), empty=True)
        came = journal.staging.tree() / "file"
        came.write_bytes(WRITTEN)
        disk.lose()
        with pytest.raises(BackendError, match="the disk has lost what was sent"):
            incoming.flush(VOLUME, journal)
        assert not came.exists()
        incoming.note(VOLUME, home, Commit(1, 1), empty=True)
        came = journal.staging.tree() / "file"
        came.write_bytes(WRITTEN)
        incoming.flush(VOLUME, journal)
    assert WRITTEN in disk.image.read_bytes()


@pytest.mark.parametrize("is_lost", [False, True])
def test_files_sent_ahead_get_to_the_disk_before_their_commit(
    disk: LosingDisk, *, is_lost: bool
) -> None:
    home = disk.path / "home"
    (home / "live").mkdir(parents=True)
    incoming = Incoming()
    with closing(Journal(home, VOLUME)) as journal:
        incoming.note(VOLUME, home, Commit(1, AHEAD_SEQ), empty=True)
        (journal.staging.tree() / "file").write_bytes(WRITTEN)
        if is_lost:
            disk.lose()
        incoming.note_all_ahead(VOLUME)
        if is_lost:
            with pytest.raises(BackendError, match="the disk has lost what was sent"):
                incoming.flush(VOLUME, journal)
        else:
            wait_until(lambda: WRITTEN in disk.image.read_bytes(), "it is flushed")
