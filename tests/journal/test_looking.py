"""All names are looked at with pauses, in which hints are followed if there are any."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.system import fanotify
from backends.system.clock import Deadline
from plugin.model import VolumeRecord
from plugin.replication import looking as module
from plugin.replication.journals import Journals
from plugin.replication.looking import Looking
from tests.fault.two_nodes import World
from tests.support.namespaces import enter_private_mounts, loop_filesystem


def found(looking: Looking, record: VolumeRecord, journal: Journal) -> set[bytes]:
    """Return the files that a look finds changed, and make them the next commit."""
    changes = looking.look(record, journal)
    epoch, number = journal.commit()
    journal.record(changes, (epoch, number + 1))
    return {e.entry.path for e in changes.changed if e.entry.kind == "file"}


def test_without_events_no_round_looks_at_all_names_at_once_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EPERM, "planned")

    monkeypatch.setattr(fanotify, "open_queue", refuse)
    monkeypatch.setattr(module, "_SCAN_PAUSE_PER_LOOK", 1_000_000)
    enter_private_mounts()
    world = World(tmp_path, "alpha")
    world.volumes.creation.create("v", {})
    live = world.mount()
    record = world.volumes.views.existing("v").record
    journals = Journals(world.pool, world.ownership.copy_states)
    looking = Looking(journals, interval_s=0)
    (live / "known").write_text("one")
    with journals.using(record, Deadline(30)) as journal:
        assert found(looking, record, journal) == {b"known"}
        (live / "known").write_text("more")
        (live / "new").write_text("more")
        # What changed lately is looked at in each round, and nothing is forgotten.
        assert found(looking, record, journal) == {b"known"}
        monkeypatch.setattr(module, "_SCAN_PAUSE_PER_LOOK", 0)
        looking.missed(record)
        assert b"new" in found(looking, record, journal)
        (live / "newer").write_text("more")
        assert b"newer" in found(looking, record, journal)
        # Nobody has watched in between: the next look is at everything at once.
        monkeypatch.setattr(module, "_SCAN_PAUSE_PER_LOOK", 1_000_000)
        looking.missed(record)
        found(looking, record, journal)
        (live / "last").write_text("more")
        looking.forget(record)
        assert b"last" in found(looking, record, journal)
    journals.close()
    world.close()


def test_hints_are_followed_while_the_look_at_all_names_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SCAN_PAUSE_PER_LOOK", 1_000_000)
    enter_private_mounts()
    with loop_filesystem(tmp_path, "ext4", size="64M") as pool:
        world = World(pool, "alpha")
        world.volumes.creation.create("v", {})
        live = world.mount()
        record = world.volumes.views.existing("v").record
        journals = Journals(world.pool, world.ownership.copy_states)
        looking = Looking(journals, interval_s=60)
        (live / "tmp" / "a").mkdir(parents=True)
        (live / "tmp" / "a" / "deep").write_text("one")
        with journals.using(record, Deadline(30)) as journal:
            assert found(looking, record, journal) == {b"tmp/a/deep"}
            # A renamed directory is looked at below its new name alone.
            (live / "tmp" / "a").rename(live / "tmp" / "b")
            (live / "new").write_text("two")
            assert found(looking, record, journal) == {b"new", b"tmp/b/deep"}
            assert b"tmp/a/deep" not in {e.entry.path for e in journal.manifest.all()}
            # Events were lost.
            journals.give_back(record, EVERYTHING)
            for name in ("newer", "newest"):
                (live / name).write_text("three")
                assert name.encode() in found(looking, record, journal)
        journals.close()
        world.close()
