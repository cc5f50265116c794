"""What takes long goes on beside the rounds, and is told of when it has ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from backends.system.clock import Deadline, monotonic_s
from plugin.errors import PeerUnreachableError
from plugin.ownership.state import Commit
from plugin.replication import deliveries
from plugin.replication.beside import Beside
from plugin.replication.debts import Debts
from plugin.replication.deliveries import Deliveries, Delivery
from plugin.replication.landing import Landing
from plugin.replication.progress import Progress
from plugin.replication.report import Report
from plugin.replication.seeding import Seeding
from tests.support.host import wait_until

ENOUGH_S = 30.0
Send = Callable[[], Mapping[str, Any]]


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Return what lets end what hangs; nobody waits long for it."""
    monkeypatch.setattr(deliveries, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(deliveries, "_PATIENCE_SLOW_S", 0.01)
    ended = threading.Event()
    yield ended
    ended.set()


def quick() -> Mapping[str, Any]:
    return {"commit": [1, 1]}


def hang(hung: threading.Event) -> Mapping[str, Any]:
    hung.wait(ENOUGH_S)
    return quick()


def fail() -> Mapping[str, Any]:
    raise PeerUnreachableError("planned")


def delivery(
    node_id: str,
    send: Send,
    volume_id: str = "v",
    *,
    landing: Landing | None = None,
) -> Delivery:
    record: Any = SimpleNamespace(id=volume_id, name=volume_id)
    report = Report(Commit(1, 1))
    about: dict[str, Any] = {"base": None, "since": (1, 1), "filled": False}
    return Delivery(record, node_id, report, send=send, landing=landing, **about)


def test_who_is_slow_holds_up_nobody(hung: threading.Event) -> None:
    made = Deliveries()
    begun = [delivery("quick", quick), delivery("slow", partial(hang, hung))]
    begun.append(delivery("dead", fail))
    late = made.deliver(begun)
    assert [each.node_id for each in late] == ["slow"]
    assert begun[0].answer == quick()
    assert begun[2].error is not None
    assert made.busy("v", ["quick", "slow", "dead"]) == {"slow": ""}
    assert made.busy("other", ["quick", "slow"]) == {}
    assert made.is_under_way("v")
    assert not made.is_due("v")
    hung.set()
    assert late[0].wait(Deadline(ENOUGH_S))
    assert made.is_due("v")
    made.begin_round("v")  # which may reach nobody: then the next one takes it out
    assert not made.is_due("v")
    assert made.take_ended("other") == []
    assert made.take_ended("v") == late
    assert made.busy("v", ["slow"]) == {}
    assert made.take_ended("v") == []


def test_who_waits_for_its_group_is_no_load(hung: threading.Event) -> None:
    made = Deliveries()
    landing = Landing(["v", "group's"])

    def come() -> Mapping[str, Any]:
        landing.come("v", "node")
        return quick()

    begun = [
        delivery("node", come, landing=landing) for _ in range(deliveries._LATE_MAX)
    ]
    assert made.deliver(begun) == begun
    assert made.busy("v", ["node"]) == {"node": ""}
    # Others are sent to the node, and are waited for as ever.
    assert made.busy("other", ["node"]) == {}
    assert not made._slow
    made.deliver([delivery("node", partial(hang, hung))])
    assert made._slow == {"node"}
    made.hurry("v")  # it is unmounted, and has its last sync to come
    assert all(each.wait(Deadline(ENOUGH_S)) for each in begun)


def test_a_group_has_no_round_for_each_that_ends(hung: threading.Event) -> None:
    nobody: Any = None
    made = Deliveries()
    beside = Beside(Seeding(nobody, nobody), made, Progress())
    first = threading.Event()
    for name, event in (("a", first), ("b", hung)):
        made.deliver([delivery("node", partial(hang, event), name)])
    first.set()
    wait_until(lambda: not made.is_under_way("a"), timeout_s=ENOUGH_S, what="it ends")
    assert beside.are_due(["a"])
    assert not beside.are_due(["a", "b"])
    hung.set()
    wait_until(lambda: not made.is_under_way("b"), timeout_s=ENOUGH_S, what="it ends")
    assert beside.are_due(["a", "b"])


def test_a_node_gets_no_more_than_it_takes(hung: threading.Event) -> None:
    made = Deliveries()
    for number in range(deliveries._LATE_MAX):
        made.deliver([delivery("slow", partial(hang, hung), str(number))])
    assert made.busy("v", ["quick", "slow"]).keys() == {"slow"}
    assert "other volumes" in made.busy("v", ["slow"])["slow"]


def test_what_was_packed_goes_when_nobody_reads_it(hung: threading.Event) -> None:
    made, removed = Deliveries(), threading.Event()
    late = made.deliver([delivery("slow", partial(hang, hung))])
    made.after(late, removed.set)
    assert not removed.wait(0.2)
    hung.set()
    assert removed.wait(ENOUGH_S)


def test_what_ended_of_volumes_without_rounds_is_forgotten(
    hung: threading.Event,
) -> None:
    made = Deliveries()
    late = made.deliver([delivery("slow", partial(hang, hung), e) for e in "ab"])
    made.keep_only(["a"], since_s=monotonic_s() + 1)
    assert made.is_under_way("b")
    hung.set()
    for each in late:
        assert each.wait(Deadline(ENOUGH_S))
    made.keep_only(["a"], since_s=0.0)  # it may be of a last sync
    assert made.is_due("b")
    made.keep_only(["a"], since_s=monotonic_s() + 1)
    assert not made.is_due("b")
    assert made.is_due("a")


def test_what_is_owed_may_be_asked_for_while_other_volumes_change() -> None:
    debts, ended = Debts(), threading.Event()
    others = [str(number) for number in range(1000)]

    def change() -> None:
        while not ended.is_set():
            for each in others:
                debts.fill(each, ["node"])
            for each in others:
                debts.settle(each, ["node"])

    thread = threading.Thread(target=change)
    thread.start()
    try:
        debts.fill("v", ["node"])
        for _ in range(2000):
            assert debts.apart("v", {}) == {"node"}
    finally:
        ended.set()
        thread.join()
