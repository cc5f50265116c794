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
from plugin.ownership.holders import Holders
from plugin.peers.channel import Peers
from plugin.peers.sharing import SharedSsh
from plugin.replication.journals import Journals
from plugin.replication.looking import Looking
from plugin.replication.moments import Moments
from plugin.replication.pauses import Pauses
from plugin.replication.placement import Placement
from plugin.replication.progress import Progress
from plugin.replication.sending import Sending
from plugin.replication.syncing import Syncing
from plugin.replication.transfer import RsyncTransfer
from tests.fault.two_nodes import World
from tests.support.namespaces import enter_private_mounts


def syncing_of(world: World, journals: Journals, sockets: Path) -> Syncing:
    peers = Peers(SharedSsh(world.home, sockets=sockets))
    sending = Sending(peers, RsyncTransfer(peers, Progress()), node_name="alpha")
    return Syncing(
        world.ownership,
        journals,
        sending,
        held=list,
        records=list,
        placement=Placement(
            world.ownership,
            Holders(world.ownership, None),
            find=lambda _: None,
            replace_after_s=None,
            interval_s=60,
        ),
        moments=Moments(
            *(Looking(journals, interval_s=600), Pauses()),
            Pausing(Guard(world.home / "guard")),
        ),
    )


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
        syncing = syncing_of(world, journals, Path(sockets))
        syncing._advance(record, epoch, journal, anew=False)
        assert journal.manifest.get(b"000") is not None
        (live / "000").unlink()
        with pytest.raises(NotOwnerError):
            syncing._advance(record, epoch + 1, journal, anew=False)
        syncing._advance(record, epoch, journal, anew=False)
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
            return Paused(frozenset())

        @contextmanager
        def paused(self, volume_id: str, paused: Paused) -> Iterator[None]:
            del volume_id, paused
            (live / "late").write_text("written before they stood still")
            yield
            raise NotPausedError("they did not stand still for long enough")

    broken = Broken(Guard(tmp_path))
    moments = Moments(Looking(journals, interval_s=600), Pauses(), broken)
    with journals.using(record, Deadline(30)) as journal:
        for number in range(1, 4):
            (live / "early").write_text(str(number))
            changes = moments.looking.look(record, journal)
            journal.record(moments.take(record, journal, changes), (1, number))
            assert journal.quality() == "fuzzy"
            if number == 1:
                assert journal.manifest.get(b"late") is None
        assert journal.manifest.get(b"late") is not None
    assert not list(world.pool.pool.volumes.glob("*/outbox"))
    journals.close()
