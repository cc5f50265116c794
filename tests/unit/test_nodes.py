"""Membership on stores without a server: who is let in, and what is told of nodes."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from backends.system import clock
from plugin.daemon.node import Node, forget_identity, lock_state
from plugin.errors import NodeConflictError, NodeNotFoundError, StoreError
from plugin.membership.lease import LEASE_MARGIN_S
from plugin.store.base import Compare, Operation, Outcome, Put
from plugin.store.sqlite import SqliteStore
from tests.support.etcd import wait_until
from tests.support.members import Members
from tests.support.memory_store import Memory, MemoryStore

TTL_S = 9.0


@pytest.fixture
def members() -> Iterator[Members]:
    memory = Memory()
    made = Members(lambda: MemoryStore(memory), ttl_s=TTL_S)
    yield made
    made.close()


def test_a_node_is_known_to_the_others(members: Members) -> None:
    alpha = members.started("alpha")
    beta = members.started("beta", addresses=("10.0.0.2", "fd00::2"))
    for each in (alpha, beta):
        assert [view.record.name for view in each.directory.all()] == ["alpha", "beta"]
        assert [view.state for view in each.directory.all()] == ["ready", "ready"]
        assert each.fault() is None
        assert each.lease
    record = alpha.directory.find("beta").record
    assert record.id == alpha.directory.find(record.id).record.id == beta.own.id
    assert record.addresses == ("10.0.0.2", "fd00::2")
    assert (record.pool_total_bytes, record.pool_available_bytes) == (1000, 600)


def test_the_deadline_comes_before_the_leases_end(members: Members) -> None:
    before_s = clock.boottime_s()
    alpha = members.started("alpha")
    assert alpha.deadline_s() >= before_s + TTL_S - LEASE_MARGIN_S
    assert alpha.deadline_s() <= clock.boottime_s() + TTL_S - LEASE_MARGIN_S


def test_a_name_belongs_to_one_node(members: Members) -> None:
    alpha = members.started("alpha", addresses=("10.0.0.1",))
    with pytest.raises(NodeConflictError) as refused:
        members.started("alpha")
    assert str(refused.value) == (
        f"node-conflict: the node name 'alpha' belongs to node {alpha.own.id} "
        "('alpha' at 10.0.0.1) (hint: set node_name in [cluster] to another one; or, "
        "if that node is gone for good: remora node rm alpha)"
    )
    assert len(alpha.directory.all()) == 1
    # Even while its owner does not run.
    members.crash(alpha)
    with pytest.raises(NodeConflictError):
        members.started("alpha")


def test_a_node_may_change_its_name(members: Members) -> None:
    alpha = members.started("alpha")
    alpha.directory.set_drained("alpha", drained=True)
    joined_at = alpha.directory.find("alpha").record.joined_at
    renamed = members.restarted(alpha, name="omega")
    [view] = renamed.directory.all()
    assert (view.record.name, view.record.joined_at) == ("omega", joined_at)
    assert view.record.drained  # a restart does not take it back
    assert members.started("alpha").fault() is None


def test_a_copied_disk_is_refused(members: Members) -> None:
    alpha = members.started("alpha", addresses=("10.0.0.1",))
    lease = alpha.lease
    clone = members.copied(alpha, machine_id="another machine", boot_id="its boot")
    with pytest.raises(NodeConflictError, match="running on another machine") as found:
        clone.start()
    assert "remora node new-identity" in found.value.hint
    assert clone.lease == 0
    assert clone.deadline_s() == -math.inf
    # The one that was there first has lost nothing.
    assert alpha.directory.find("alpha").alive
    assert members.store.keep_alive(lease)


def test_a_new_identity_lets_a_copied_disk_in(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.set_fact("pool_id", "its pool")
    node.set_fact("lease", "boot 7")
    lock = lock_state(tmp_path)
    with pytest.raises(StoreError, match="another remora daemon uses"):
        forget_identity(tmp_path)
    os.close(lock)
    old = node.id
    node.close()
    (tmp_path / "peer").mkdir()
    (tmp_path / "peer/host_key").touch()
    assert forget_identity(tmp_path) == old
    assert list((tmp_path / "peer").iterdir()) == []
    again = Node(tmp_path)
    assert again.id != old
    assert (again.fact("pool_id"), again.fact("lease")) == ("its pool", None)
    again.close()


def test_a_machine_copied_whole_never_gets_in(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine-id is the same, so that only time tells it from a reboot."""
    alpha = members.started("alpha")
    clone = members.copied(alpha, boot_id="another boot")
    clone.start()
    assert "last boot has not ended yet" in str(clone.fault())
    monkeypatch.setattr("plugin.membership.registration._DEAD_AFTER_TTLS", 0)
    wait_until(lambda: "another machine" in str(clone.fault()), "the conflict")
    assert clone.lease == 0
    assert alpha.directory.find("alpha").alive


def test_after_a_reboot_the_old_lease_is_waited_out(members: Members) -> None:
    alpha = members.started("alpha")
    lease = alpha.lease
    members.crash(alpha)
    booted = members.copied(alpha, boot_id="the next boot")
    booted.start()
    assert booted.lease == 0
    # The old lease is not taken over, not even if it is all that is left.
    members.delete(f"alive/{alpha.own.id}")
    wait_until(lambda: booted.fault() is None, "the new boot")
    assert booted.lease not in (0, lease)
    assert members.store.keep_alive(lease)


class Forgetful(MemoryStore):
    """A store that ends no lease unless it is told that it should have."""

    forgotten = 0

    def end_forgotten_lease(self, lease: int, deadline_s: float) -> bool:
        if lease != self.forgotten:
            return False
        self.revoke_lease(lease)
        return True


def test_a_boot_whose_lease_the_store_forgets_does_not_hinder_the_next() -> None:
    store = Forgetful()
    members = Members(lambda: store, ttl_s=3600)
    try:
        alpha, beta = members.started("alpha"), members.started("beta")
        assert beta.living([alpha.own.id, "nobody"]) == [alpha.own.id]
        members.crash(alpha)
        booted = members.copied(alpha, boot_id="the next boot")
        booted.start()
        assert "last boot has not ended yet" in str(booted.fault())
        store.forgotten = alpha.lease
        wait_until(lambda: booted.fault() is None, "the new boot")
        members.crash(booted)
        store.forgotten = booted.lease
        assert beta.living([alpha.own.id]) == []
        assert beta.directory.find("alpha").state == "down"
        again = members.restarted(beta)
        members.crash(again)
        store.forgotten = again.lease
        last = members.restarted(again)
        wait_until(lambda: last.fault() is None, "the restarted daemon")
        assert last.lease not in (0, again.lease), "its own lease was over"
        members.crash(last)
        store.forgotten = last.lease
        gamma = members.started("gamma")
        assert gamma.remove("beta") == "beta"
    finally:
        members.close()


def test_a_restarted_daemon_goes_on_with_its_lease(members: Members) -> None:
    alpha = members.started("alpha")
    members.store.transact([], [Put("lock", b"alpha's", alpha.lease)])
    again = members.restarted(alpha)
    assert again.lease == alpha.lease
    assert members.store.get("lock") is not None
    members.crash(again)
    members.store.revoke_lease(again.lease)  # as if it was down for longer
    later = members.restarted(again)
    assert later.lease not in (0, again.lease)
    assert members.store.get("lock") is None


def test_a_second_daemon_takes_over_and_the_first_lets_go(members: Members) -> None:
    alpha = members.started("alpha")
    copy = members.copied(alpha)
    copy.start()
    assert copy.lease == alpha.lease
    wait_until(lambda: alpha.lease == 0, "that the first lets go")
    assert "another daemon of this machine is node 'alpha'" in str(alpha.fault())
    heard = members.listen(alpha)
    for _ in range(3):  # and does not take it back
        heard.clear()
        assert heard.wait(60)
        assert alpha.deadline_s() == -math.inf
    assert copy.fault() is None
    assert copy.lease


def test_versions_that_do_not_overlap_are_refused(
    members: Members, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = members.started("alpha")
    for name in ("PROTOCOL", "PROTOCOL_OLDEST"):
        for module in ("nodes", "registration"):
            monkeypatch.setattr(f"plugin.membership.{module}.{name}", 2)
    with pytest.raises(NodeConflictError, match="speaks protocol 1 to 1; this one"):
        members.started("beta")
    members.crash(alpha)
    members.store.revoke_lease(alpha.lease)
    assert members.started("beta").fault() is None  # what does not run is no hindrance


class Raced(MemoryStore):
    """A store in which another node is quicker, once."""

    quicker: Sequence[Operation] = ()

    def transact(
        self, conditions: Sequence[Compare], operations: Sequence[Operation]
    ) -> Outcome:
        quicker, self.quicker = self.quicker, ()
        if quicker:
            super().transact([], quicker)
        return super().transact(conditions, operations)


def test_who_is_beaten_between_reading_and_writing_changes_nothing() -> None:
    store = Raced()
    members = Members(lambda: store, ttl_s=TTL_S)
    try:
        store.quicker = [Put("node_names/alpha", b"another node")]
        alpha = members.started("alpha")
        assert alpha.lease == 0
        assert store.prefix("nodes/")[0] == store.prefix("alive/")[0] == []
        wait_until(lambda: "belongs to" in str(alpha.fault()), "the conflict")
        beta = members.started("beta")
        store.quicker = [Put(f"nodes/{beta.own.id}", b"{}")]
        with pytest.raises(NodeNotFoundError):  # not what it was written for
            beta.directory.set_drained("beta", drained=True)
        assert store.get(f"nodes/{beta.own.id}").value == b"{}"
    finally:
        members.close()


class Refusing(MemoryStore):
    """A store that does not answer while `down`."""

    down = True

    def refresh(self, deadline_s: float) -> None:
        if self.down:
            raise StoreError("etcd did not answer")

    def transact(
        self, conditions: Sequence[Compare], operations: Sequence[Operation]
    ) -> Outcome:
        self.refresh(0)
        return super().transact(conditions, operations)


def test_a_node_starts_while_the_store_is_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Refusing()
    members = Members(lambda: store, ttl_s=TTL_S)
    try:
        with caplog.at_level(logging.INFO, "plugin.membership"):
            alpha = members.started("alpha")
            assert str(alpha.fault()).startswith("store-unavailable: etcd did not")
            assert (alpha.lease, alpha.deadline_s()) == (0, -math.inf)
            heard = members.listen(alpha)
            for _ in range(2):  # it is tried again and again,
                heard.clear()
                assert heard.wait(60)
            store.down = False
            wait_until(lambda: alpha.fault() is None, "the registration")
        assert alpha.lease
        # and told of once.
        assert [record.getMessage() for record in caplog.records] == [
            "store-unavailable: etcd did not answer",
            "registered",
        ]
    finally:
        members.close()


def test_a_conflict_that_is_found_later_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Refusing()
    members = Members(lambda: store, ttl_s=TTL_S)
    try:
        alpha = members.started("alpha")
        with caplog.at_level(logging.ERROR, "plugin.membership"):
            store.down = False
            store.transact([], [Put("node_names/alpha", b"another node")])
            wait_until(lambda: "belongs to" in str(alpha.fault()), "the conflict")
        assert (alpha.lease, alpha.deadline_s()) == (0, -math.inf)
        assert "belongs to node another node" in caplog.text
        assert not any(key.startswith("alive/") for key in members.all_keys())
    finally:
        members.close()


def test_a_lost_lease_is_told_and_replaced(members: Members) -> None:
    alpha = members.started("alpha")
    lease = alpha.lease
    seen: list[tuple[int, float]] = []
    alpha.add_listener(lambda: seen.append((alpha.lease, alpha.deadline_s())))
    alpha.add_listener(lambda: 1 / 0)  # hurts nobody else
    members.store.revoke_lease(lease)
    assert alpha.deadline_s() == -math.inf
    assert not alpha.directory.all()[0].alive
    wait_until(lambda: alpha.lease not in (0, lease), "a new lease")
    wait_until(lambda: alpha.fault() is None, "the registration")
    assert (0, -math.inf) in seen
    assert alpha.directory.all()[0].alive


def test_a_node_alone_needs_no_lease(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db")
    members = Members(lambda: store, ttl_s=TTL_S, alone=True)
    try:
        alpha = members.started("alpha")
        assert (alpha.alone, alpha.lease, alpha.deadline_s()) == (True, 0, math.inf)
        assert alpha.fault() is None
        [view] = alpha.directory.all()
        assert (view.record.name, view.state) == ("alpha", "ready")
        assert alpha.directory.set_drained("alpha", drained=True).state == "drained"
        assert alpha.drained
        with pytest.raises(NodeConflictError, match="is alive"):
            alpha.remove("alpha")
        # Its node.db was lost: nobody else can have the name.
        members.crash(alpha)
        other = members.started("alpha")
        assert [each.record.id for each in other.directory.all()] == [other.own.id]
        assert other.directory.find("alpha").alive
        assert store.prefix("alive/")[0] == []
    finally:
        members.close()
