"""What became of a transaction or a lease when answers are lost, late or wrong."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from backends.system import clock
from plugin.errors import StoreError
from plugin.store.base import Compare, Put
from plugin.store.etcd.errors import UnknownOutcomeError
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from tests.support import etcd
from tests.support.etcd_proxy import LOST, Body, Proxy, proxy

pytestmark = [pytest.mark.xdist_group("etcd"), pytest.mark.long]
BURST = 8


@pytest.fixture
def gateway(etcd_single: etcd.Cluster) -> Iterator[Proxy]:
    """Yield a proxy of a healthy member."""
    etcd_single.heal()
    with proxy(etcd_single.endpoints[0]) as made:
        yield made


@pytest.fixture
def store(gateway: Proxy) -> Iterator[EtcdStore]:
    """Yield a store behind the proxy, with a slot already made."""
    made = EtcdStore(EtcdSettings((gateway.endpoint,), prefix=f"/{uuid.uuid4()}/"))
    made.transact([], [Put("first", b"")])
    gateway.requests.clear()
    yield made
    made.close()


def writes(path: str, body: Body) -> bool:
    """Return whether this is a transaction of records, and not one about a slot."""
    return path == "/v3/kv/txn" and len(body.get("success", [])) > 1


def resolves(path: str, body: Body) -> bool:
    """Return whether this asks what became of a transaction."""
    return path == "/v3/kv/txn" and len(body.get("success", [])) == 1


def test_a_lost_answer_is_found_and_nothing_is_done_twice(
    store: EtcdStore, gateway: Proxy
) -> None:
    def lose_answers(path: str, body: Body) -> Body | None:
        answer = gateway.forward(path, body)
        return LOST if writes(path, body) else answer

    gateway.rule = lose_answers
    outcome = store.transact([Compare("n", 0)], [Put("n", b"1")])
    assert outcome.succeeded
    assert len(gateway.writes()) == 1
    record = store.get("n")
    assert record is not None
    assert record.mod_revision == record.create_revision == outcome.revision
    gateway.rule = gateway.forward
    assert store.transact([Compare("n", outcome.revision)], [Put("n", b"2")]).succeeded


def test_a_lost_refusal_is_asked_again(store: EtcdStore, gateway: Proxy) -> None:
    def lose_first_answer(path: str, body: Body) -> Body | None:
        answer = gateway.forward(path, body)
        return LOST if writes(path, body) and len(gateway.writes()) == 1 else answer

    gateway.rule = lose_first_answer
    assert not store.transact([Compare("n", 7)], [Put("n", b"1")]).succeeded
    assert len(gateway.writes()) == 2
    assert store.get("n") is None


def test_a_transaction_that_comes_too_late_does_nothing(
    store: EtcdStore, gateway: Proxy
) -> None:
    """As from the queue of a member that was stopped."""
    held: list[Body] = []

    def hold_first(path: str, body: Body) -> Body | None:
        if writes(path, body) and not held:
            held.append(body)
            return LOST
        return gateway.forward(path, body)

    gateway.rule = hold_first
    done = store.transact([], [Put("n", b"1")])
    assert done.succeeded
    later = store.transact([], [Put("n", b"2")])
    assert "succeeded" not in gateway.forward("/v3/kv/txn", held[0])
    record = store.get("n")
    assert record is not None
    assert (record.value, record.mod_revision) == (b"2", later.revision)


def test_nothing_late_is_done_though_its_slot_has_ended(
    store: EtcdStore, gateway: Proxy
) -> None:
    held: list[Body] = []

    def hold_first(path: str, body: Body) -> Body | None:
        if writes(path, body) and not held:
            held.append(body)
            return LOST
        return gateway.forward(path, body)

    gateway.rule = hold_first
    store.transact([], [Put("n", b"1")])
    slot = held[0]["compare"][-1]["key"]
    gateway.forward("/v3/kv/deleterange", {"key": slot})
    assert "succeeded" not in gateway.forward("/v3/kv/txn", held[0])
    # The store notices, makes another slot and goes on.
    assert store.transact([], [Put("n", b"2")]).succeeded
    assert not store.transact([Compare("n", 1)], [Put("n", b"3")]).succeeded


def test_of_slots_that_have_ended_one_is_tried(
    store: EtcdStore, gateway: Proxy
) -> None:
    """After a burst and a quiet time none of them is left: each would cost a call."""
    together = threading.Barrier(BURST)
    slots: set[str] = set()

    def hold_together(path: str, body: Body) -> Body | None:
        if writes(path, body):
            slots.add(body["compare"][-1]["key"])
            if len(slots) <= BURST:
                together.wait(10)
        return gateway.forward(path, body)

    gateway.rule = hold_together
    with ThreadPoolExecutor(BURST) as pool:
        list(pool.map(lambda n: store.transact([], [Put(f"n{n}", b"")]), range(BURST)))
    for slot in slots:
        gateway.forward("/v3/kv/deleterange", {"key": slot})
    tries: list[str] = []

    def count(path: str, body: Body) -> Body | None:
        if writes(path, body):
            tries.append(path)
        return gateway.forward(path, body)

    gateway.rule = count
    assert store.transact([], [Put("n", b"")]).succeeded
    assert len(tries) == 2


def test_nobody_to_tell_the_outcome_is_said_to_be_unknown(
    store: EtcdStore, gateway: Proxy
) -> None:
    gateway.rule = lambda path, body: LOST
    began_s = clock.monotonic_s()
    with pytest.raises(UnknownOutcomeError, match="may or may not"):
        store.transact([], [Put("n", b"1")])
    assert clock.monotonic_s() - began_s < 15
    gateway.rule = gateway.forward
    assert store.transact([], [Put("n", b"2")]).succeeded


def test_a_resolution_whose_answer_is_lost_is_repeated(
    store: EtcdStore, gateway: Proxy
) -> None:
    lost: list[Body] = []

    def lose(path: str, body: Body) -> Body | None:
        if writes(path, body) and not lost:
            lost.append(body)
            return LOST
        answer = gateway.forward(path, body)
        if resolves(path, body) and len(lost) == 1:
            lost.append(body)
            return LOST
        return answer

    gateway.rule = lose
    assert store.transact([Compare("n", 0)], [Put("n", b"1")]).succeeded
    assert len(lost) == 2


def test_a_grant_whose_answer_is_lost_is_the_same_lease(
    store: EtcdStore, gateway: Proxy
) -> None:
    def lose_first_grant(path: str, body: Body) -> Body | None:
        answer = gateway.forward(path, body)
        grants = [each for each, _ in gateway.requests if each == "/v3/lease/grant"]
        return LOST if path == "/v3/lease/grant" and len(grants) == 1 else answer

    gateway.rule = lose_first_grant
    lease = store.grant_lease(30)
    assert store.keep_alive(lease)
    assert store.transact([], [Put("mine", b"", lease)]).succeeded


def test_a_lease_ends_on_our_clock_while_nobody_answers(
    store: EtcdStore, gateway: Proxy
) -> None:
    def grant_for_long(path: str, body: Body) -> Body:
        return gateway.forward(path, {**body, "TTL": "60"})

    gateway.rule = grant_for_long
    before_s = clock.boottime_s()
    lease = store.grant_lease(3)
    ends_s = store.lease_ends_s(lease)
    assert ends_s is not None
    assert before_s + 3 <= ends_s <= clock.boottime_s() + 3
    gateway.rule = lambda path, body: LOST
    while clock.boottime_s() < ends_s:
        try:
            assert not store.keep_alive(lease)
        except StoreError:
            assert clock.boottime_s() < ends_s + 5
        clock.pause(0.1)
    gateway.rule = gateway.forward
    gateway.requests.clear()
    assert not store.keep_alive(lease)
    with pytest.raises(StoreError, match="lease"):
        store.transact([], [Put("mine", b"", lease)])
    assert gateway.requests == []
    answer = gateway.forward("/v3/lease/keepalive", {"ID": str(lease)})
    assert "TTL" in answer["result"], "etcd has it still, and we do not use it"


def test_a_keepalive_counts_from_when_it_was_sent(
    store: EtcdStore, gateway: Proxy
) -> None:
    lease = store.grant_lease(30)
    came_s = []

    def slow(path: str, body: Body) -> Body | None:
        came_s.append(clock.boottime_s())
        answer = gateway.forward(path, body)
        clock.pause(0.5)
        return answer

    gateway.rule = slow
    assert store.keep_alive(lease)
    ends_s = store.lease_ends_s(lease)
    assert ends_s is not None
    # Not later than 30 s after it was sent, though the answer took half a second.
    assert ends_s - 30 <= came_s[0]


def test_a_leader_of_another_term_keeps_no_lease(
    store: EtcdStore, gateway: Proxy
) -> None:
    """A leader that was stopped answers before it knows that it is none any more."""
    lease = store.grant_lease(30)
    ends_s = store.lease_ends_s(lease)

    def of_old(path: str, body: Body) -> Body | None:
        answer = gateway.forward(path, body)
        if path == "/v3/lease/keepalive":
            answer["result"]["header"]["raft_term"] = "1"
        return answer

    gateway.rule = of_old
    with pytest.raises(StoreError, match="leader"):
        store.keep_alive(lease)
    assert store.lease_ends_s(lease) == ends_s
    gateway.rule = gateway.forward
    assert store.keep_alive(lease)


def test_a_lease_that_etcd_has_forgotten_to_end_is_ended(
    store: EtcdStore, gateway: Proxy
) -> None:
    lease = store.grant_lease(30)
    assert store.transact([], [Put("held", b"", lease)]).succeeded
    shown = {"TTL": "-2", "raft_term": ""}

    def overdue(path: str, body: Body) -> Body | None:
        answer = gateway.forward(path, body)
        if path == "/v3/lease/timetolive":
            answer["TTL"] = shown["TTL"]
            answer["header"]["raft_term"] = (
                shown["raft_term"] or answer["header"]["raft_term"]
            )
        return answer

    assert not store.end_forgotten_lease(lease, 5)
    gateway.rule = overdue
    assert not store.end_forgotten_lease(lease, 5), "etcd may be about to end it"
    shown.update(TTL="-3", raft_term="1")
    assert not store.end_forgotten_lease(lease, 5), "another leader may have renewed it"
    shown["raft_term"] = ""

    def known_late(path: str, body: Body) -> Body | None:
        asked = [each for each, _ in gateway.requests].count("/v3/lease/timetolive")
        return (overdue if asked == 1 else gateway.forward)(path, body)

    gateway.rule = known_late
    gateway.requests.clear()
    assert not store.end_forgotten_lease(lease, 5), "an old leader was asked first"
    assert store.get("held") is not None
    gateway.rule = overdue
    assert store.end_forgotten_lease(lease, 5)
    assert store.get("held") is None
    gateway.rule = gateway.forward
    assert not store.end_forgotten_lease(lease, 5)
    gateway.rule = lambda path, body: LOST
    began_s = clock.boottime_s()
    with pytest.raises(StoreError):
        store.end_forgotten_lease(lease, 1)
    assert clock.boottime_s() - began_s < 10


def test_a_lease_that_etcd_has_lost_is_lost(store: EtcdStore, gateway: Proxy) -> None:
    lease = store.grant_lease(30)
    gateway.forward("/v3/lease/revoke", {"ID": str(lease)})
    assert not store.keep_alive(lease)
    assert not store.keep_alive(lease)
    with pytest.raises(StoreError, match="lease"):
        store.transact([], [Put("mine", b"", lease)])
