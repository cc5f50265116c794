"""A commit that is ours and could not be put in its place: told, and tried again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.system.clock import Deadline
from plugin.model import VolumeRecord
from plugin.replication import journals as module
from plugin.replication.journals import Journals
from tests.fault.two_nodes import World
from tests.support.host import wait_until
from tests.support.journal_trees import carry
from tests.support.namespaces import enter_private_mounts

ENOUGH_S = 30.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    enter_private_mounts()
    world = World(tmp_path / "world", "alpha")
    world.volumes.creation.create("v", {})
    yield world
    world.close()


def mark(member: Journal, record: VolumeRecord, directory: Path) -> None:
    """Have a commit with one file come from another copy, up to its marker."""
    (directory / "live").mkdir(parents=True)
    (directory / "live/file").write_text("of the owner")
    owner = Journal(directory, record.id)
    owner.record(owner.look(EVERYTHING), (1, 1))
    assert not carry(owner.pack(None, only=[b"file"]), member)
    owner.close()


def test_what_could_not_be_applied_is_applied_though_nobody_uses_the_copy(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sender was answered, and may have nothing more to send for months."""
    monkeypatch.setattr(module, "_APPLY_AGAIN_S", 0.5)
    record = world.volumes.views.existing("v").record
    journals = Journals(world.pool, world.ownership.copy_states)
    journals.repair()
    left, apply = [1, 2], Journal.apply

    def fail(journal: Journal) -> None:
        if left:
            left.pop()
            raise BackendError("the disk is full")
        apply(journal)

    monkeypatch.setattr(Journal, "apply", fail)
    with journals.using(record, Deadline(ENOUGH_S)) as journal:
        file = journal.live / "file"
        mark(journal, record, tmp_path / "owner")
        with pytest.raises(BackendError, match="full"):
            journals.put_in_place(record, journal)
        assert "the disk is full" in journals.unfit(record)
        assert not file.exists()
    wait_until(file.exists, timeout_s=ENOUGH_S, what="it is in place")
    wait_until(
        lambda: not journals.unfit(record), timeout_s=ENOUGH_S, what="nothing is told"
    )
    journals.close()


def test_what_a_crash_has_left_is_told_to_be_under_way(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its sender would begin a transfer that waits, and fails."""
    record = world.volumes.views.existing("v").record
    journals = Journals(world.pool, world.ownership.copy_states)
    with journals.using(record, Deadline(ENOUGH_S)) as journal:
        mark(journal, record, tmp_path / "owner")
    assert not journals.is_applying(record)
    told, apply = list[bool](), Journal.apply

    def tell(journal: Journal) -> None:
        told.append(journals.is_applying(record))
        apply(journal)

    monkeypatch.setattr(Journal, "apply", tell)
    with journals.using(record, Deadline(ENOUGH_S)):
        assert told == [True]
        assert not journals.is_applying(record)
    journals.close()
