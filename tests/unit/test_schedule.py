"""No volume keeps another from its turn, whatever its own rounds take."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest

from plugin.replication import schedule as schedule_module
from plugin.replication.schedule import Schedule
from tests.support.host import wait_until

LONG_AFTER_S = 0.2


@pytest.fixture
def schedule() -> Iterator[Schedule]:
    made = Schedule(long_after_s=LONG_AFTER_S)
    made.start()
    yield made
    made.stop()


class Rounds:
    """Counts rounds by volume; those of *stuck* end when the test does."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.ending = threading.Event()
        self._lock = threading.Lock()

    def quick(self, key: str) -> None:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(0.002)
        with self._lock:
            self.at_once -= 1
            self.done[key] += 1

    def stuck(self, key: str) -> None:
        self.done[key] += 1
        self.ending.wait(60)


@pytest.fixture
def rounds() -> Iterator[Rounds]:
    made = Rounds()
    yield made
    made.ending.set()


def test_many_volumes_all_have_their_turns(schedule: Schedule, rounds: Rounds) -> None:
    keys = [f"v{number}" for number in range(200)]
    for key in keys:
        schedule.want(key, 0.5, lambda key=key: rounds.quick(key))
    wait_until(lambda: min(rounds.done[k] for k in keys) >= 3, timeout_s=30, what="3")
    # None is served twice as often as another.
    assert max(rounds.done.values()) <= 2 * min(rounds.done.values())
    assert rounds.most_at_once <= schedule_module._SHORT_MAX


@pytest.mark.parametrize("stuck", [4, 10, 16])
def test_rounds_without_end_hinder_no_other(
    schedule: Schedule, rounds: Rounds, stuck: int
) -> None:
    for number in range(stuck):
        schedule.want(f"s{number}", 0.1, lambda: rounds.stuck("stuck"))
    keys = [f"v{number}" for number in range(40)]
    for key in keys:
        schedule.want(key, 0.1, lambda key=key: rounds.quick(key))
    wait_until(lambda: min(rounds.done[k] for k in keys) >= 3, timeout_s=30, what="3")
    assert rounds.done["stuck"] == stuck


def test_what_is_known_to_take_long_has_slots_of_its_own(
    schedule: Schedule, rounds: Rounds
) -> None:
    slow = threading.Event()

    def take_long(key: str) -> None:
        with rounds._lock:
            rounds.at_once += 1
            rounds.most_at_once = max(rounds.most_at_once, rounds.at_once)
        if slow.is_set():
            time.sleep(0.05)
        else:
            time.sleep(1.5 * LONG_AFTER_S)
        with rounds._lock:
            rounds.at_once -= 1
            rounds.done[key] += 1

    for number in range(3):
        schedule.want(f"s{number}", 0.05, lambda: take_long("slow"))
    wait_until(lambda: rounds.done["slow"] >= 6, timeout_s=30, what="slow ones go on")
    slow.set()
    wait_until(lambda: rounds.done["slow"] >= 20, timeout_s=30, what="and are quick")
    assert rounds.most_at_once <= 3


def test_a_volume_is_in_one_round_at_a_time(schedule: Schedule, rounds: Rounds) -> None:
    for _ in range(50):
        schedule.want("v", 0.0, lambda: rounds.quick("v"), at_once=True)
        time.sleep(0.005)
    assert rounds.most_at_once == 1
    assert rounds.done["v"] > 5


def test_what_is_forgotten_is_done_no_more(schedule: Schedule, rounds: Rounds) -> None:
    for key in ("kept", "gone"):
        schedule.want(key, 0.05, lambda key=key: rounds.quick(key))
    wait_until(lambda: rounds.done["gone"] >= 2, timeout_s=20, what="both are done")
    wait_until(
        lambda: schedule.keep_only({"kept"}) or "gone" not in schedule._entries,
        timeout_s=20,
        what="one is forgotten",
    )
    before = rounds.done.copy()
    wait_until(
        lambda: rounds.done["kept"] >= before["kept"] + 3, timeout_s=20, what="3 more"
    )
    assert rounds.done["gone"] == before["gone"]


def test_a_round_that_fails_comes_again(schedule: Schedule, rounds: Rounds) -> None:
    def fail() -> None:
        rounds.done["v"] += 1
        raise RuntimeError("planned")

    schedule.want("v", 0.05, fail)
    wait_until(lambda: rounds.done["v"] >= 3, timeout_s=20, what="it is tried again")


def test_it_goes_on_when_no_thread_can_begin(
    schedule: Schedule, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start
    refused: list[str] = []

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "round" and len(refused) < 5:
            refused.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for key in ("one", "two"):
        schedule.want(key, 0.05, lambda key=key: rounds.quick(key))
    wait_until(
        lambda: min(rounds.done[key] for key in ("one", "two")) >= 3,
        timeout_s=20,
        what="both have turns again",
    )
    assert len(refused) == 5


def test_a_round_under_way_of_what_is_forgotten_is_the_last(
    schedule: Schedule, rounds: Rounds
) -> None:
    schedule.want("gone", 0.0, lambda: rounds.stuck("gone"))
    wait_until(lambda: rounds.done["gone"] == 1, timeout_s=20, what="it has begun")
    schedule.keep_only(())
    schedule.want("kept", 0.05, lambda: rounds.quick("kept"))
    rounds.ending.set()
    wait_until(lambda: rounds.done["kept"] >= 5, timeout_s=20, what="others go on")
    assert rounds.done["gone"] == 1


def test_volumes_that_are_not_due_wake_nobody(
    schedule: Schedule, rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand volumes are wanted again each second: none is looked at for that."""
    looks: list[float] = []
    real_next = schedule._next

    def look(now_s: float) -> object:
        looks.append(now_s)
        return real_next(now_s)

    monkeypatch.setattr(schedule, "_next", look)
    keys = [f"v{number}" for number in range(200)]

    def want_all() -> None:
        for key in keys:
            schedule.want(key, 3600, partial(rounds.quick, key))

    want_all()
    wait_until(lambda: len(rounds.done) == len(keys), timeout_s=30, what="first turns")
    looks.clear()
    for _ in range(20):
        want_all()
        time.sleep(0.005)
    # It looks once a second by itself.
    assert len(looks) < 10
