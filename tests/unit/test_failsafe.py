"""While etcd is away: one member that is silent costs no volume of others its time."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from backends.system import clock
from plugin.errors import PeerRefusedError, PeerUnreachableError
from plugin.ownership.failsafe import Failsafe, Holds

HOLD_S = 10.0


class Asks:
    """Nodes that answer, are silent, refuse, or are slow."""

    def __init__(self, **kinds: str) -> None:
        self.kinds = kinds
        self.asked: Counter[str] = Counter()
        self.within_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def call(
        self, node_id: str, request: str, body: Mapping[str, Any], *, deadline_s: float
    ) -> Mapping[str, Any]:
        assert request == "hold"
        with self._lock:
            self.asked[node_id] += 1
            self.within_s[node_id] = deadline_s
        kind = self.kinds.get(node_id, "well")
        if kind == "silent":
            time.sleep(deadline_s)
            raise PeerUnreachableError("no answer")
        if kind == "refuses":
            raise PeerRefusedError(f"another node wants {body['volume']}")
        if kind == "slow":
            time.sleep(min(0.3, deadline_s))
        return {}


class Volumes:
    """What the node owns: volumes by name, with their other members."""

    def __init__(
        self,
        members: Mapping[str, Sequence[str]],
        asks: Asks,
        *,
        left_s: float = -1.0,
        ask_below_s: float = 5.0,
    ) -> None:
        ends_s = clock.boottime_s() + left_s
        ownership = SimpleNamespace(
            node_id="own",
            membership=SimpleNamespace(deadline_s=lambda: ends_s),
            heads=SimpleNamespace(
                read=lambda name: SimpleNamespace(
                    head=SimpleNamespace(members=("own", *members[name]))
                )
            ),
            is_shared=lambda _: False,
            still_owner=lambda _record, _epoch: True,
            knows_copy=lambda _: True,
        )
        self.failsafe = Failsafe(
            ownership, asks, Holds(HOLD_S), ask_below_s=ask_below_s
        )
        self.held = [
            SimpleNamespace(record=SimpleNamespace(id=name, name=name), epoch=1)
            for name in members
        ]

    def round(self) -> set[str]:
        """Return the volumes with time left after one more round."""
        self.failsafe.extend(self.held)
        now_s = clock.boottime_s()
        names = [each.record.id for each in self.held]
        return {each for each in names if self.failsafe.deadline_s(each) > now_s}


def test_a_silent_member_costs_others_nothing() -> None:
    silent = {f"s{number}": ["silent"] for number in range(20)}
    asks = Asks(silent="silent")
    volumes = Volumes({**silent, "well": ["beta"], "alone": []}, asks)
    assert volumes.round() == {"well", "alone"}
    # It is asked once in a round: it would not answer for the others either.
    assert asks.asked["silent"] == 1


def test_a_volume_does_not_wait_for_the_members_of_others() -> None:
    volumes = Volumes({"s": ["silent"], "well": ["beta"]}, Asks(silent="silent"))
    thread = threading.Thread(target=volumes.round)
    thread.start()
    end_s = time.monotonic() + 1.5  # a silent node is waited for for 2 s
    while volumes.failsafe.deadline_s("well") < 0:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert thread.is_alive()
    thread.join()


def test_asking_leaves_time_to_tell_the_guard() -> None:
    """With the shortest lease, members are asked two seconds before the deadline."""
    asks = Asks()
    volumes = Volumes({"v": ["beta"]}, asks, left_s=2.0, ask_below_s=2.0)
    assert volumes.failsafe.pause_s() <= 0
    assert volumes.round() == {"v"}
    assert asks.within_s["beta"] <= 1.0
    # Without a lease there is nothing to keep time for.
    volumes = Volumes({"v": ["beta"]}, asks, ask_below_s=2.0)
    volumes.round()
    assert 1.5 < asks.within_s["beta"] <= 2.0


def test_nobody_is_asked_while_the_lease_is_renewed() -> None:
    asks = Asks()
    volumes = Volumes({"v": ["beta"]}, asks, left_s=4.0, ask_below_s=2.0)
    assert 1.5 < volumes.failsafe.pause_s() <= 2.0
    assert volumes.round() == set()
    assert not asks.asked


def test_all_members_have_to_agree() -> None:
    asks = Asks(gamma="refuses")
    volumes = Volumes({"v": ["beta", "gamma"], "w": ["beta"]}, asks)
    assert volumes.round() == {"w"}


def test_a_slow_member_agrees_to_all_its_volumes_in_time() -> None:
    names = [f"v{number}" for number in range(15)]
    volumes = Volumes({each: ["slow"] for each in names}, Asks(slow="slow"))
    had: set[str] = set()
    for _ in range(4):
        had |= volumes.round()
    assert had == set(names)


@pytest.mark.parametrize("wanted", [True, False])
def test_who_was_asked_for_a_promise_agrees_no_more(wanted: bool) -> None:
    volumes = Volumes({"v": ["beta"]}, Asks())
    holds = volumes.failsafe._holds
    if wanted:
        with pytest.raises(PeerRefusedError):
            holds.agree("v")
            holds.require_free("v")
        assert volumes.round() == set()
    else:
        assert volumes.round() == {"v"}
