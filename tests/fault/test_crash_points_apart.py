"""
SIGKILL between any two steps by which bytes are set apart, and by which they go.

Whatever the step, the next start finds the bytes in one place, never an empty volume
that counts as a commit, and makes the cluster's record agree with the disk.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backends.errors import BackendError
from backends.rsync.backend import RsyncBackend
from backends.system.clock import Deadline
from plugin.membership.nodes import NODES
from plugin.model import VolumeRecord
from plugin.ownership.state import EMPTY, Commit, CopyState
from plugin.replication import quarantine
from plugin.replication.journals import Journals
from plugin.store.base import Put
from tests.fault.world import World
from tests.support.fuse import lives

# What the copy was when its bytes were set apart: sealed, or written to in epoch 3.
SEALED = CopyState(promised=4, commit=Commit(3, 7), next_seq=8)
LIVE = CopyState(promised=3, commit=Commit(3, 6), live_epoch=3, next_seq=7)


class Node(World):
    """A node whose copy of `v` is to be set apart."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.backend = self.ownership.registry.get("rsync")
        assert isinstance(self.backend, RsyncBackend)
        self.quarantine = self.backend.quarantine
        self.journals = Journals(self.backend, self.ownership.copy_states)
        self.membership = self.ownership.membership
        self.membership.start()

    @property
    def record(self) -> VolumeRecord:
        return self.volumes.views.existing("v").record

    @property
    def replica(self) -> CopyState:
        found = self.ownership.copy_state(self.record)
        assert found is not None
        return found

    def prepare(self, replica: CopyState) -> None:
        self.volumes.creation.create("v", {"mode": "0750"})
        (self.home / "live/file").write_text("precious")
        with self.ownership.copy_states.changing(self.record.id):
            self.ownership.copy_states.write(self.record.id, replica)
        assert self.store.get(NODES + self.ownership.node_id) is not None

    @property
    def home(self) -> Path:
        return self.backend.pool.home(self.record.volume())

    def set_apart(self) -> None:
        """Do what `Receiving` does with bytes that no other copy has."""
        with self.journals.using(self.record, Deadline(30)) as journal:
            journal.keep_apart("3.7")
            self.journals.begin_empty(self.record, journal)
            quarantine.note(self.ownership, self.quarantine, self.record.id)

    def discard(self) -> None:
        tree = self.quarantine.find(self.record.id, "3.7")
        assert tree is not None
        self.quarantine.discard(tree)
        quarantine.forget(self.ownership, self.record.id, "3.7")

    def recover(self) -> None:
        """Do what a daemon does at its start."""
        self.journals._for_each(self.journals._repair)
        quarantine.mend(self.ownership, self.quarantine)

    def recorded(self) -> list[str]:
        return [each.commit for each in self.ownership.quarantine_records.all()]

    def close(self) -> None:
        self.membership.stop()
        super().close()


def prepare(directory: Path, replica: CopyState) -> None:
    node = Node(directory)
    node.prepare(replica)
    node.close()


@pytest.mark.parametrize("replica", [SEALED, LIVE])
def test_bytes_are_in_one_place_whenever_the_daemon_dies(
    replica: CopyState, disk: Path
) -> None:
    outcomes = set()
    for directory, _ in lives(
        disk, lambda at: prepare(at, replica), Node, Node.set_apart
    ):
        node = Node(directory)
        before = (node.home / "live").exists()
        live, tree = node.home / "live/file", node.home / "quarantine/3.7/file"
        # It votes with what it has, whoever asks before it is repaired.
        assert (node.replica.commit == EMPTY) == tree.exists()
        with node.journals.using(node.record, Deadline(30)):
            pass
        node.recover()
        assert live.exists() != tree.exists()
        if tree.exists():
            assert (node.replica.commit, node.replica.live_epoch) == (EMPTY, 0)
            assert node.replica.promised == replica.promised
            assert live.parent.stat().st_mode & 0o7777 == 0o750
            assert node.recorded() == ["3.7"]
        else:
            assert node.replica == replica
            assert node.recorded() == []
        outcomes.add((before, tree.exists()))
        with node.journals.using(node.record, Deadline(30)) as journal:
            assert journal.commit() == (0, 0)
        node.close()
    assert outcomes == {(True, False), (False, True), (True, True)}


def set_apart_already(directory: Path) -> None:
    node = Node(directory)
    node.prepare(SEALED)
    node.set_apart()
    node.close()


def test_what_is_discarded_is_discarded_and_forgotten_or_neither(disk: Path) -> None:
    outcomes = set()
    for directory, _ in lives(disk, set_apart_already, Node, Node.discard):
        node = Node(directory)
        node.recover()
        tree = node.home / "quarantine/3.7/file"
        assert node.recorded() == (["3.7"] if tree.exists() else [])
        outcomes.add(tree.exists())
        node.close()
    assert outcomes == {True, False}


def test_a_live_that_somebody_moved_away_is_no_empty_copy(tmp_path: Path) -> None:
    """Only what was set apart explains why it is missing."""
    node = Node(tmp_path)
    node.prepare(SEALED)
    (node.home / "live").rename(node.home / "moved")
    for _ in range(2):
        with (
            pytest.raises(BackendError, match="is missing"),
            node.journals.using(node.record, Deadline(30)),
        ):
            pytest.fail("it was used")
        node.recover()  # which logs it
        assert node.replica == SEALED
        assert not (node.home / "live").exists()
        # Something older that was set apart explains nothing either.
        (node.home / "quarantine/2.1").mkdir(parents=True, exist_ok=True)
    (node.home / "moved").rename(node.home / "live")
    with node.journals.using(node.record, Deadline(30)):
        pass
    node.close()


def test_records_follow_the_disk(tmp_path: Path) -> None:
    """Of a node that was away, or whose records are from an older dump."""
    node = Node(tmp_path)
    node.prepare(SEALED)
    node.set_apart()
    own, volume_id = node.ownership.node_id, node.record.id
    quarantine_records = node.ownership.quarantine_records
    [known] = quarantine_records.of(volume_id)
    assert (known.node_id, known.commit) == (own, "3.7")
    assert (known.quarantined.files, known.quarantined.size_bytes) == (1, 8)
    quarantine_records.drop(volume_id, own, "3.7")
    quarantine_records.note(volume_id, own, "2.2", known.quarantined)
    (node.home / "quarantine/3.7").rename(node.home / "quarantine/3.9")
    node.recover()
    assert node.recorded() == ["3.9"]
    # Without the pool nobody knows, and nothing is forgotten.
    node.backend.pool.path.rename(tmp_path / "away")
    with pytest.raises(BackendError):
        quarantine.mend(node.ownership, node.quarantine)
    assert node.recorded() == ["3.9"]
    (tmp_path / "away").rename(node.backend.pool.path)
    node.close()


def test_a_cluster_that_does_not_answer_hears_of_it_later(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.prepare(SEALED)
    record = node.record
    with node.journals.using(record, Deadline(30)) as journal:
        journal.keep_apart("3.7")
        node.journals.begin_empty(record, journal)
        node.membership.stop()
        node.store.close()
        quarantine.note(node.ownership, node.quarantine, record.id)
    assert not quarantine.forget(node.ownership, record.id, "3.7")
    node.node.close()
    node = Node(tmp_path)
    assert node.recorded() == []
    quarantine.mend(node.ownership, node.quarantine)
    assert node.recorded() == ["3.7"]
    node.close()


def test_a_node_that_is_removed_takes_its_records_along(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.prepare(SEALED)
    heads, store = node.ownership.heads, node.store
    other = msgspec.json.decode(store.get(NODES + node.ownership.node_id).value)
    other |= {"id": "other", "name": "other"}
    store.transact([], [Put(f"{NODES}other", msgspec.json.encode(other))])
    node.set_apart()
    [known] = node.ownership.quarantine_records.all()
    node.ownership.quarantine_records.note(
        node.record.id, "other", "9.9", known.quarantined
    )
    node.ownership.quarantine_records.note(
        node.record.id, "stranger", "8.8", known.quarantined
    )
    assert heads.held_only_by("other") == {"bytes set apart of": [node.record.id]}
    assert sorted(node.recorded()) == ["3.7", "9.9"]  # a stranger's count no more
    directory = node.ownership.nodes
    directory.remove("other", force=True)
    assert node.recorded() == ["3.7"]
    assert store.get(f"v/{node.record.id}/conflicts/other/9.9") is None
    node.close()
