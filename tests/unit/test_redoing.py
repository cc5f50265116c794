"""A sender is answered before its commit is applied, but for errors, and too many."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest

from backends.errors import BackendError
from plugin.replication.redoing import _AFTERWARDS_MAX, Redoing
from tests.protocol.node import wait_until

ENOUGH_S = 30.0


class Applying:
    """Answers before it does anything, which waits for ``gate``; it may *fail* then."""

    def __init__(self, redoing: Redoing, *, fail: bool = False) -> None:
        self.redoing = redoing
        self.fail = fail
        self.gate = threading.Event()
        self.ended = threading.Event()

    def __call__(self, answer: Callable[[str], None]) -> str:
        with self.redoing.afterwards("volume", partial(answer, "marked")):
            self.gate.wait(ENOUGH_S)
        self.ended.set()
        if self.fail:
            raise BackendError("the disk is broken")
        return "applied"


@pytest.mark.parametrize("fail", [False, True])
def test_an_answer_comes_before_the_commit_is_applied(fail: bool) -> None:
    redoing = Redoing()
    work = Applying(redoing, fail=fail)
    assert redoing.answered(work) == "marked"
    assert redoing.is_under_way("volume")
    work.gate.set()
    wait_until(
        lambda: not redoing.is_under_way("volume"), "it ends", timeout_s=ENOUGH_S
    )


def test_what_is_refused_is_raised() -> None:
    def work(_answer: Callable[[str], None]) -> str:
        raise BackendError("it has not been sent")

    with pytest.raises(BackendError, match="has not been sent"):
        Redoing().answered(work)


def test_a_small_commit_is_applied_before_the_answer() -> None:
    redoing = Redoing()

    def work(_answer: Callable[[str], None]) -> str:
        with redoing.afterwards("volume", None):
            assert not redoing.is_under_way("volume")
        return "applied"

    assert redoing.answered(work) == "applied"


def test_no_more_than_a_few_are_answered_before() -> None:
    """A sender is not to be faster than the disk."""
    redoing = Redoing()
    some = [Applying(redoing) for _ in range(_AFTERWARDS_MAX)]
    assert {redoing.answered(each) for each in some} == {"marked"}
    last = Applying(redoing)
    last.gate.set()
    assert redoing.answered(last) == "applied"
    for each in some:
        each.gate.set()
    assert all(each.ended.wait(ENOUGH_S) for each in some)
    another = Applying(redoing)
    another.gate.set()
    wait_until(lambda: not redoing.is_under_way("volume"), "free", timeout_s=ENOUGH_S)
    assert redoing.answered(another) == "marked"
