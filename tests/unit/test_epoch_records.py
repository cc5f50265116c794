"""A volume's epochs in one record, beside nodes of older versions, and tombs' ends."""

from __future__ import annotations

import msgspec
import pytest

from plugin.membership.nodes import NODES
from plugin.membership.quarantine_records import QuarantineRecord, QuarantineRecords
from plugin.ownership.heads import (
    EPOCHS_MAX,
    Heads,
    begun_epoch,
    put_epoch,
    put_tomb,
)
from plugin.ownership.state import EMPTY, Choice, Commit, Epoch, Head, Tomb
from plugin.store.base import Put
from tests.support.ids import id_of
from tests.support.memory_store import MemoryStore

ID = id_of("volume")
X, Y = id_of("x"), id_of("y")


class OldEpoch(msgspec.Struct, frozen=True):
    """The record as the version before this one reads and writes it."""

    base: Commit
    owner: str
    began_at: str = ""
    lost: Commit | None = None
    before_released_at: str = ""


class Nodes:
    """What nodes of both versions do with the epochs of one volume."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.heads = Heads(self.store, QuarantineRecords(self.store))

    def begin(self, number: int, owner: str, *, base: Commit | None = None) -> None:
        """Begin an epoch as this version does."""
        base = Commit(number - 1, 1) if base is None else base
        lineage = self.heads.lineage(ID)
        head = Head(epoch=number, released_at=f"release {number - 1}")
        epoch = begun_epoch(head, Choice(base, (), base), owner, lineage)
        self.store.transact(
            [], [put_epoch(ID, number, epoch), *self.heads.drop_epochs(ID)]
        )

    def begin_old(self, number: int, owner: str) -> None:
        """Begin an epoch as the version before this one does."""
        epoch = msgspec.json.encode(OldEpoch(Commit(number - 1, 1), owner, "then"))
        self.store.transact([], [Put(f"v/{ID}/epochs/{number:010}", epoch)])

    def seen_by_old(self) -> dict[int, OldEpoch]:
        return {
            int(each.key[-10:]): msgspec.json.decode(each.value, type=OldEpoch)
            for each in self.store.prefix(f"v/{ID}/epochs/")[0]
        }


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


def test_there_is_one_record_and_it_says_what_many_said(nodes: Nodes) -> None:
    for number in range(1, 8):
        nodes.begin(number, f"node{number % 3}")
    assert len(nodes.store.prefix(f"v/{ID}/")[0]) == 1
    lineage = nodes.heads.lineage(ID)
    assert sorted(lineage.epochs) == list(range(1, 8))
    for number, epoch in lineage.epochs.items():
        assert epoch.base == epoch.lost == Commit(number - 1, 1)
        assert epoch.owner == f"node{number % 3}"
        assert epoch.before_released_at == f"release {number - 1}"
        assert epoch.began_at
    assert lineage.contains(Commit(2, 1), at=7)
    assert not lineage.contains(Commit(2, 2), at=7)


def test_records_of_older_versions_are_taken_in(nodes: Nodes) -> None:
    for number in range(1, 65):
        nodes.begin_old(number, f"old{number}")
    before = nodes.heads.lineage(ID).epochs
    nodes.begin(65, "new")
    assert len(nodes.store.prefix(f"v/{ID}/")[0]) == 1
    after = nodes.heads.lineage(ID).epochs
    assert {**before, 65: after[65]}.items() >= after.items()
    assert len(after) == EPOCHS_MAX


def test_more_records_than_a_transaction_takes_go_by_and_by(nodes: Nodes) -> None:
    """Older versions kept a record for each Mount of a volume that nodes share."""
    for number in range(1, 351):
        nodes.begin_old(number, "old")
    assert len(nodes.heads.drop_epochs(ID)) <= 100
    nodes.begin(351, "new")
    assert len(nodes.store.prefix(f"v/{ID}/epochs/")[0]) == 251
    assert nodes.heads.lineage(ID).owners() == {"old", "new"}
    nodes.heads.shorten_epochs(ID)
    left = nodes.store.prefix(f"v/{ID}/epochs/")[0]
    assert len(left) == len(nodes.heads.drop_epochs(ID)) == 100
    nodes.heads.shorten_epochs(ID)
    assert nodes.store.prefix(f"v/{ID}/epochs/")[0] == left


def test_nodes_of_both_versions_begin_epochs_in_turn(nodes: Nodes) -> None:
    for number in range(1, 10, 3):
        nodes.begin(number, "new")
        nodes.begin_old(number + 1, "old")
        # The older node knows the epoch that was begun last, and its base.
        seen = nodes.seen_by_old()
        assert (seen[number].base, seen[number].owner) == (Commit(number - 1, 1), "new")
        nodes.begin_old(number + 2, "old")
    lineage = nodes.heads.lineage(ID)
    assert sorted(lineage.epochs) == list(range(1, 10))
    assert lineage.contains(Commit(1, 1), at=9)
    assert lineage.owners() == {"old", "new"}


def test_who_owned_an_empty_volume_is_never_forgotten(nodes: Nodes) -> None:
    nodes.begin(1, "first", base=EMPTY)
    for number in range(2, 3 * EPOCHS_MAX):
        nodes.begin(number, "second", base=EMPTY)
    assert nodes.heads.lineage(ID).owners() == {"first", "second"}
    assert len(nodes.heads.lineage(ID).epochs) <= EPOCHS_MAX + 1


def test_a_record_of_64_epochs_is_small(nodes: Nodes) -> None:
    for number in range(1, 100):
        nodes.begin(number, "0b1c6d0e-58f8-4f83-a5a4-6d4b9a1b8b39")
    record = nodes.store.get(f"v/{ID}/epochs/{99:010}")
    assert record is not None
    assert len(record.value) < 10_000


TOMB = Tomb(name="gone", backend="rsync", removed_at="", pending=("a", "b"))


def test_a_tomb_ends_with_the_last_node_that_acknowledges(nodes: Nodes) -> None:
    store, heads = nodes.store, nodes.heads
    store.transact([], [put_tomb(X, TOMB), put_tomb(Y, TOMB)])
    heads.acknowledge([X, Y, "unknown"], "a")
    assert heads.tombs()[X].pending == heads.tombs()[Y].pending == ("b",)
    revision = store.prefix("")[1]
    heads.acknowledge([X, Y], "a")
    assert store.prefix("")[1] == revision  # nothing to say
    heads.acknowledge([X], "b")
    assert set(heads.tombs()) == {Y}
    # Older versions strike themselves off, and leave the rest to us.
    done = msgspec.structs.replace(TOMB, pending=())
    store.transact([], [put_tomb(Y, done)])
    heads.acknowledge([Y], "a")
    assert heads.tombs() == {}


def test_a_tomb_of_an_older_version_waits_for_all_nodes(nodes: Nodes) -> None:
    """It names members alone, and other nodes may have copies."""
    done = msgspec.structs.replace(TOMB, pending=())
    records = [Put(NODES + each, b"{}") for each in ("a", "b", "c")]
    nodes.store.transact([], [*records, put_tomb(X, done)])
    for number, each in enumerate(("a", "b", "c")):
        assert len(nodes.heads.tombs()[X].pending) == (3 - number if number else 0)
        nodes.heads.acknowledge([X], each)
    assert nodes.heads.tombs() == {}


def test_a_tomb_stays_while_bytes_are_set_apart(nodes: Nodes) -> None:
    store, heads = nodes.store, nodes.heads
    store.transact([], [Put(NODES + "a", b"{}"), put_tomb(X, TOMB)])
    apart = QuarantineRecords(store)
    apart.note(X, "a", "1.1", QuarantineRecord(set_apart_at=""))
    for node in ("a", "b"):
        heads.acknowledge([X], node)
    assert heads.tombs()[X].pending == ()
    apart.drop(X, "a", "1.1")
    heads.acknowledge([X], "a")
    assert heads.tombs() == {}


def test_a_node_looks_only_at_tombs_that_ask_something_of_it(nodes: Nodes) -> None:
    ours = msgspec.structs.replace(TOMB, pending=("node-a", "node-b"))
    done = msgspec.structs.replace(TOMB, pending=())
    theirs = msgspec.structs.replace(TOMB, pending=("node-b",))
    tombs = {"ours": ours, "done": done, "theirs": theirs, "copied": theirs}
    nodes.store.transact(
        [], [put_tomb(id_of(key), tomb) for key, tomb in tombs.items()]
    )
    found = nodes.heads.tombs_for("node-a", [id_of("copied"), "of no tomb"])
    assert set(found) == {id_of(each) for each in ("ours", "done", "copied")}


def test_tombs_of_thousands_end_by_and_by(nodes: Nodes) -> None:
    """A transaction takes 128 operations."""
    tombs = {id_of(f"{number}") for number in range(120)}
    one = msgspec.structs.replace(TOMB, pending=("a",))
    nodes.store.transact([], [put_tomb(each, one) for each in tombs])
    left = []
    for _ in range(4):
        nodes.heads.acknowledge(nodes.heads.tombs(), "a")
        left.append(len(nodes.heads.tombs()))
    assert left == [70, 20, 0, 0]


def test_epochs_of_today_are_what_they_were() -> None:
    old = msgspec.json.encode(OldEpoch(Commit(1, 2), "a", "then", Commit(1, 3), "done"))
    assert msgspec.json.decode(old, type=Epoch) == Epoch(
        Commit(1, 2), "a", "then", Commit(1, 3), "done"
    )
