"""What members know of each other, and what is done to their records."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from backends.base import Snapshot
from plugin.daemon.foundation import _data_only_on
from plugin.errors import NodeConflictError, NodeNotFoundError
from plugin.membership.quarantine_records import QuarantineRecord, QuarantineRecords
from plugin.membership.snapshot_records import SnapshotRecords
from plugin.model import VolumeRecord
from plugin.ownership.heads import Heads, put_head
from plugin.ownership.state import Commit, Head
from plugin.store.base import Put
from plugin.volumes.catalogue import Catalogue
from tests.support.etcd import wait_until
from tests.support.ids import id_of
from tests.support.members import Members
from tests.support.memory_store import Memory, MemoryStore

TTL_S = 9.0


@pytest.fixture
def members() -> Iterator[Members]:
    memory = Memory()
    made = Members(lambda: MemoryStore(memory), ttl_s=TTL_S)
    yield made
    made.close()


def test_fields_of_a_newer_version_stay(members: Members) -> None:
    alpha = members.started("alpha")
    beta = members.started("beta")
    key = f"nodes/{beta.own.id}"
    stored = members.store.get(key)
    assert stored is not None
    newer = {**msgspec.json.decode(stored.value), "colour": "blue"}
    members.store.transact([], [Put(key, msgspec.json.encode(newer))])
    assert alpha.directory.set_drained("beta", drained=True).record.drained
    assert beta.drained
    changed = members.store.get(key)
    assert changed is not None
    assert msgspec.json.decode(changed.value)["colour"] == "blue"
    assert not alpha.directory.set_drained(beta.own.id, drained=False).record.drained


def test_a_spoilt_record_hides_no_other(members: Members) -> None:
    alpha = members.started("alpha")
    members.store.transact([], [Put("nodes/x", b"{"), Put("node_names/x", b"\xff")])
    assert [each.record.name for each in alpha.directory.all()] == ["alpha"]
    assert members.started("beta").fault() is None
    with pytest.raises(NodeConflictError, match="the node name 'x' belongs"):
        members.started("x")


def test_a_node_whose_record_cannot_be_read_is_removed_by_its_id(
    members: Members,
) -> None:
    alpha = members.started("alpha")
    beta = members.started("beta")
    members.store.transact([], [Put(f"nodes/{beta.own.id}", b"{")])
    with pytest.raises(NodeConflictError, match="'beta' is alive"):
        alpha.remove(beta.own.id)
    members.crash(beta)
    members.store.revoke_lease(beta.lease)
    wait_until(lambda: not alpha.directory.lease_of(beta.own.id), "it is dead")
    assert alpha.remove(beta.own.id) == "beta"
    assert alpha.directory.ids() == [alpha.own.id]
    assert alpha.directory.name_of(beta.own.id) == "beta"
    assert members.started("beta").fault() is None  # the name is free


def test_an_unknown_node_is_told_with_those_there_are(members: Members) -> None:
    members.started("beta")
    alpha = members.started("alpha")
    with pytest.raises(NodeNotFoundError) as missing:
        alpha.directory.find("gamma")
    assert str(missing.value) == (
        "node-not-found: there is no node 'gamma' (hint: the nodes are: alpha, beta)"
    )
    with pytest.raises(NodeNotFoundError):
        alpha.directory.set_drained("gamma", drained=True)
    with pytest.raises(NodeNotFoundError):
        alpha.remove("gamma")


def test_removing_a_node(members: Members) -> None:
    alpha = members.started("alpha")
    beta = members.started("beta")
    for force in (False, True):
        with pytest.raises(NodeConflictError, match="'beta' is alive"):
            alpha.remove("beta", force=force)
    members.crash(beta)
    members.store.revoke_lease(beta.lease)
    assert alpha.directory.find("beta").state == "down"
    members.only_on[beta.own.id] = {
        "all of": [f"volume-{number}" for number in range(7)],
        "perhaps the last seconds of": ["db"],
    }
    with pytest.raises(NodeConflictError) as refused:
        alpha.remove("beta")
    assert "all of volume-0, volume-1" in refused.value.cause
    assert "and 2 more; perhaps the last seconds of db" in refused.value.cause
    alpha.remove("beta", force=True)
    assert [each.record.name for each in alpha.directory.all()] == ["alpha"]
    left = [key for key in members.all_keys() if beta.own.id in key or "beta" in key]
    assert left == [f"former_nodes/{beta.own.id}"]
    assert alpha.directory.name_of(beta.own.id) == "beta"
    assert alpha.directory.name_of("nobody") == "nobody"
    assert members.started("beta").fault() is None


def test_what_a_node_alone_has_is_told_by_how_much_it_is(members: Members) -> None:
    alpha, beta = (members.started(name).own.id for name in ("alpha", "beta"))
    quarantine_records = QuarantineRecords(members.store)
    heads = Heads(members.store, quarantine_records)

    def put(word: str, holders: tuple[str, ...], **values: Any) -> None:
        head = Head(committed=Commit(1, 2), holders=holders, **values)
        members.store.transact([], [put_head(id_of(word), head)])

    put("solo", (beta,), members=(beta,))
    put("ahead", (beta,), members=(alpha, beta))
    put("busy", (alpha, beta), members=(alpha, beta), owner=beta, phase="owned")
    put("safe", (alpha, beta), members=(alpha, beta), owner=beta)
    put("other", (alpha,), members=(alpha, beta))
    put("going", (beta,), members=(beta,), phase="removing")
    quarantine_records.note(
        id_of("safe"), beta, "1.1", QuarantineRecord(set_apart_at="")
    )
    SnapshotRecords(members.store).write(
        id_of("safe"), beta, [Snapshot("monday", "", 1, 2)]
    )
    assert heads.held_only_by(beta) == {
        "all of": [id_of("solo")],
        "the newest bytes of": [id_of("ahead")],
        "perhaps the last seconds of": [id_of("busy")],
        "bytes set apart of": [id_of("safe")],
        "snapshots of": [id_of("safe")],
    }
    # Who had died is counted no more; what was never synced is all that there is.
    members.delete(f"nodes/{alpha}")
    put("busy", (), members=(alpha, beta), owner=beta, phase="owned")
    assert set(heads.held_only_by(beta)["all of"]) == {
        id_of(each) for each in ("ahead", "busy", "safe", "solo")
    }


def test_what_was_filled_and_never_mounted_counts_as_well(members: Members) -> None:
    """It has no head yet, and its bytes are on the node that made it."""
    catalogue = Catalogue(members.store)
    heads = Heads(members.store, QuarantineRecords(members.store))
    for name, backend, filled, node in (
        ("imported", "rsync", True, "beta"),
        ("empty", "rsync", False, "beta"),
        ("shared", "nfs", True, "beta"),
        ("elsewhere", "rsync", True, "alpha"),
    ):
        record = VolumeRecord(
            id=id_of(name),
            name=name,
            backend=backend,
            requested={},
            options={},
            created_at="2026-01-02T03:04:05Z",
            phase="ready",
            node=node,
            filled=filled,
        )
        assert catalogue.insert(record)
    assert _data_only_on(catalogue, heads, "beta") == {"all of": ["imported"]}
    assert _data_only_on(catalogue, heads, "gamma") == {}


def test_a_record_that_somebody_deleted_comes_back(members: Members) -> None:
    alpha = members.started("alpha")
    keys = {f"nodes/{alpha.own.id}", f"alive/{alpha.own.id}"}
    members.delete(*keys)
    alpha.addresses_changed()
    wait_until(lambda: keys <= members.all_keys(), "the record")
    assert alpha.fault() is None


def test_changes_worth_telling_are_written(members: Members) -> None:
    alpha = members.started("alpha")
    sources = members.machines["alpha"]
    sources.available_bytes -= 5  # half a percent
    alpha.addresses_changed()
    sources.asked.clear()
    assert sources.asked.wait(60)
    assert alpha.directory.find("alpha").record.pool_available_bytes == 600
    sources.addresses = ("10.9.9.9",)
    alpha.addresses_changed()
    wait_until(
        lambda: alpha.directory.find("alpha").record.addresses == ("10.9.9.9",),
        "the address",
    )
    sources.available_bytes -= 100
    alpha.addresses_changed()
    wait_until(
        lambda: alpha.directory.find("alpha").record.pool_available_bytes == 495,
        "the capacity",
    )
    # What cannot be found out leaves what was known.
    sources.broken = True
    sources.asked.clear()
    alpha.addresses_changed()
    assert sources.asked.wait(60)
    assert alpha.directory.find("alpha").record.addresses == ("10.9.9.9",)


def test_clocks_far_off_are_told_once(
    members: Members, caplog: pytest.LogCaptureFixture
) -> None:
    alpha = members.started("alpha")
    beta = members.started("beta")
    with caplog.at_level(logging.INFO, "plugin.membership.directory"):
        for offset_s in (0.2, -3600.0, -3601.0, 1.0, 7.0):
            alpha.directory.note_clock(beta.own.id, offset_s)
        alpha.directory.note_clock("nobody", 99.0)
    assert [record.getMessage() for record in caplog.records] == [
        "the clock of node 'beta' is 3600 s behind this node's",
        "the clock of node 'beta' is right again",
        "the clock of node 'beta' is 7 s ahead of this node's",
    ]
    assert alpha.directory.find("beta").clock_offset_s == 7.0
    assert alpha.directory.clock_warnings() == [
        "the clock of node 'beta' is 7 s ahead of this node's"
    ]
    assert alpha.directory.find("alpha").clock_offset_s is None
