"""What a look has found, and could not be recorded, is found again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.system.clock import Deadline
from plugin.errors import NotOwnerError
from plugin.fencing.client import Guard
from plugin.fencing.pausing import NotPausedError, Paused, Pausing
from plugin.replication.committing import Committing
from plugin.replication.journals import Journals
from plugin.replication.looking import Looking
from plugin.replication.moments import Moments
from plugin.replication.pauses import Pauses
from tests.fault.two_nodes import World
from tests.support.namespaces import enter_private_mounts


def test_a_commit_that_fails_loses_no_change(tmp_path: Path) -> None:
    enter_private_mounts()
    world = World(tmp_path, "alpha")
    world.volumes.creation.create("v", {})
    live = world.mount()
    record = world.volumes.views.existing("v").record
    epoch = world.head().epoch
    # More than those that are looked at in every round, because they changed lately.
    for number in range(600):
        (live / f"{number:03}").write_text("there")
    journals = Journals(world.pool, world.ownership.copy_states)
    # The path of a socket must be short.
    with (
        tempfile.TemporaryDirectory(prefix="rp") as sockets,
        journals.using(record, Deadline(30)) as journal,
    ):
        moments = Moments(
            *(Looking(journals, interval_s=600), Pauses()),
            Pausing(Guard(Path(sockets) / "guard")),
        )
        committing = Committing(world.ownership, moments)

        def advance(epoch: int) -> None:
            meeting = moments.meeting_of(record.id)
            committing.advance(record, epoch, journal, meeting, anew=False)

        advance(epoch)
        assert journal.manifest.get(b"000") is not None
        (live / "000").unlink()
        with pytest.raises(NotOwnerError):
            advance(epoch + 1)
        advance(epoch)
        assert journal.manifest.get(b"000") is None
    journals.close()
    world.close()


def test_a_pause_that_fails_loses_no_change(tmp_path: Path) -> None:
    enter_private_mounts()
    world = World(tmp_path, "alpha")
    world.volumes.creation.create("v", {"consistency": "pause"})
    live = world.mount()
    record = world.volumes.views.existing("v").record
    journals = Journals(world.pool, world.ownership.copy_states)

    class Broken(Pausing):
        def find(self, volume_id: str) -> Paused:
            del volume_id
            return Paused((), frozenset())

        @contextmanager
        def paused(self, paused: Paused) -> Iterator[None]:
            del paused
            (live / "late").write_text("written before they stood still")
            yield
            raise NotPausedError("they did not stand still for long enough")

    broken = Broken(Guard(tmp_path))
    moments = Moments(Looking(journals, interval_s=600), Pauses(), broken)
    with journals.using(record, Deadline(30)) as journal:
        for number in range(1, 4):
            (live / "early").write_text(str(number))
            changes = moments.looking.look(record, journal)
            meeting = moments.meeting_of(record.id)
            changes = moments.take(record, journal, changes, meeting)
            journal.record(changes, (1, number))
            assert journal.quality() == "fuzzy"
            if number == 1:
                assert journal.manifest.get(b"late") is None
        assert journal.manifest.get(b"late") is not None
    assert not list(world.pool.pool.volumes.glob("*/outbox"))
    journals.close()
