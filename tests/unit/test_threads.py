"""Threads that are used again, and end when nothing comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from backends.errors import VolumeBusyError
from backends.system import aside
from backends.system.aside import Threads
from tests.support.host import wait_until
from tests.unit.test_no_thread import no_thread

WITHIN_S = 20.0


def alive(name: str) -> int:
    """Return how many threads of that name there are."""
    return [each.name for each in threading.enumerate()].count(name)


@contextmanager
def held(threads: Threads, count: int) -> Iterator[None]:
    """Keep *count* threads at work."""
    go_on, at_work = threading.Event(), threading.Barrier(count + 1)

    def work() -> None:
        at_work.wait(WITHIN_S)
        go_on.wait(WITHIN_S)

    outcomes = [threads.begun(work) for _ in range(count)]
    at_work.wait(WITHIN_S)
    try:
        yield
    finally:
        go_on.set()
        for each in outcomes:
            each.result(WITHIN_S)


def test_a_thread_that_is_free_is_used_again() -> None:
    threads = Threads("again")
    who = threading.get_ident
    first = threads.begun(who).result(WITHIN_S)
    wait_until(lambda: threads._free, timeout_s=WITHIN_S, what="it is free")
    assert threads.begun(who).result(WITHIN_S) == first
    with held(threads, 3):
        assert alive("again") == 3


def test_an_error_is_the_outcome_and_ends_no_thread() -> None:
    threads = Threads("error", threads_max=1)
    with pytest.raises(ValueError, match="x"):
        threads.begun(partial(int, "x")).result(WITHIN_S)
    assert threads.begun(lambda: "done").result(WITHIN_S) == "done"


def test_what_is_too_much_waits_and_nothing_is_lost() -> None:
    done: list[int] = []
    threads = Threads("bounded", threads_max=2)
    with held(threads, 2):
        later = [threads.begun(partial(done.append, each)) for each in range(5)]
        assert alive("bounded") == 2
        assert done == []
    for each in later:
        each.result(WITHIN_S)
    assert done == [0, 1, 2, 3, 4]


def test_idle_threads_end_but_for_those_that_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aside, "_IDLE_S", 0.01)
    threads = Threads("idle", kept=1)
    with held(threads, 4):
        assert alive("idle") == 4
    wait_until(lambda: alive("idle") == 1, timeout_s=WITHIN_S, what="three have ended")
    for _ in range(200):  # also work that comes just as a thread wants to end
        assert threads.begun(lambda: "done").result(WITHIN_S) == "done"


def test_a_machine_without_threads_is_served_by_those_there_are() -> None:
    kept = Threads("kept", threads_max=2, kept=1)
    with held(kept, 1):
        with no_thread():
            later = kept.begun(lambda: "done")
        assert not later.done()
    assert later.result(WITHIN_S) == "done"


def test_work_that_may_not_wait_hears_of_it() -> None:
    threads = Threads("unbounded")
    with held(threads, 1), no_thread():
        refused = threads.begun(lambda: "done")
    assert isinstance(refused.exception(WITHIN_S), VolumeBusyError)
    with no_thread():  # one is free by now
        wait_until(lambda: threads._free, timeout_s=WITHIN_S, what="one is free")
        assert threads.begun(lambda: "done").result(WITHIN_S) == "done"


class SlowGuard:
    """A lock after which its holder is slow: others come between its steps."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        time.sleep(0.01)


def test_many_callers_at_once_start_no_more_than_may_be() -> None:
    """Each of them has seen that there is room for one more."""
    most, callers = 2, 16
    threads, done = Threads("work", threads_max=most), threading.Semaphore(0)
    threads._guard = SlowGuard()  # type: ignore[assignment]
    names: set[int] = set()

    def work() -> None:
        names.add(threading.get_ident())
        done.release()

    for _ in range(callers):
        threading.Thread(target=threads.run, args=[work]).start()
    for _ in range(callers):
        assert done.acquire(timeout=WITHIN_S)
    assert len(names) <= most
