"""Volumes of a group meet for a moment; who does not come is gone on without."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from backends.errors import BackendError, RemoraError
from backends.system.aside import begun
from plugin.fencing.freezer import Target
from plugin.fencing.held import PAUSE_MAX_S, HeldVolume
from plugin.fencing.pausing import NotPausedError, NotStillError, Paused
from plugin.replication.landing import Landing
from plugin.replication.meeting import Meeting
from tests.support.host import wait_until

WAIT_S = 30.0
SHORT_S = 0.2


class Pausing:
    """Notes what is paused, and whether it goes on."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.at_once: list[set[str]] = []
        self.is_still = False

    @contextmanager
    def paused(self, paused: Paused) -> Iterator[None]:
        if self.refuses:
            raise NotPausedError("not now")
        self.at_once.append({each.id for each in paused.volumes})
        self.is_still, began_s = True, time.monotonic()
        yield
        self.is_still = False
        paused.took_s = 0.01
        if time.monotonic() - began_s >= PAUSE_MAX_S:
            raise NotPausedError("the guard has let them go on")


def meeting(pausing: Pausing, *names: str, wait_s: float = WAIT_S) -> Meeting:
    return Meeting(pausing, names, wait_s=wait_s)  # type: ignore[arg-type]


def found(name: str, *targets: Target) -> Paused:
    return Paused([HeldVolume(name, "", "", "", 0.0)], {*targets})


def part(
    at: Meeting,
    pausing: Pausing,
    name: str,
    taken: Callable[[], None],
    targets: Collection[Target] = (),
) -> str:
    """Go through a whole round; return its moment, or why it has none."""
    try:
        assert at.is_due(name, is_changed=True)
        with at.paused(name, found(name, *targets)):
            assert pausing.is_still
            taken()
    except RemoraError as error:
        return str(error)
    return at.moment


def outcomes(
    at: Meeting, pausing: Pausing, **parts: Callable[[], None]
) -> dict[str, str]:
    begun_all = {
        name: begun(lambda n=name, t=taken: part(at, pausing, n, t), name=name)
        for name, taken in parts.items()
    }
    return {name: each.result(WAIT_S) for name, each in begun_all.items()}


def nothing() -> None:
    pass


def test_all_stand_still_once() -> None:
    pausing = Pausing()
    at = meeting(pausing, *"abc")
    found = outcomes(at, pausing, a=nothing, b=nothing, c=nothing)
    assert {*found.values()} == {at.moment}
    assert at.moment
    assert pausing.at_once == [{*"abc"}]
    assert {at.stood_s(each) for each in "abc"} == {0.01}


def test_of_one_alone_no_moment_is_told() -> None:
    pausing = Pausing()
    at = meeting(pausing, "a")
    assert outcomes(at, pausing, a=nothing) == {"a": ""}
    assert not at.is_of_several


def test_nobody_stands_still_if_nothing_has_changed() -> None:
    at = meeting(Pausing(), "a", "b")
    first = begun(lambda: at.is_due("a", is_changed=False), name="a")
    assert not at.is_due("b", is_changed=False)
    assert not first.result(WAIT_S)
    assert not at.was_due


def test_who_has_changed_says_so_for_all() -> None:
    at = meeting(Pausing(), "a", "b")
    first = begun(lambda: at.is_due("a", is_changed=False), name="a")
    assert at.is_due("b", is_changed=True)
    assert first.result(WAIT_S)


def test_who_leaves_is_not_waited_for() -> None:
    pausing = Pausing()
    at = meeting(pausing, *"abc")
    at.leave("c")
    at.leave("c")
    found = outcomes(at, pausing, a=nothing, b=nothing)
    assert {*found.values()} == {at.moment}
    assert pausing.at_once == [{"a", "b"}]


def test_who_is_late_goes_on_alone() -> None:
    pausing = Pausing()
    at = meeting(pausing, *"abc", wait_s=SHORT_S)
    found = outcomes(at, pausing, a=nothing, b=nothing)
    assert {*found.values()} == {at.moment}
    assert pausing.at_once == [{"a", "b"}]
    assert at.is_due("c", is_changed=True)
    assert not at.is_due("c", is_changed=False)
    assert not at.awaits("c")
    assert at.late == {"c"}
    assert "did not wait" in part(at, pausing, "c", nothing)
    assert at.stood_s("c") == 0.0  # it is not why there is to be a rest


def test_who_is_let_go_waits_for_nobody() -> None:
    at = meeting(Pausing(), "a", "b")
    waiting = begun(lambda: at.is_due("a", is_changed=True), name="a")
    wait_until(lambda: not at.is_first("a"), timeout_s=WAIT_S, what="it waits")
    at.leave("a")
    assert waiting.result(5)
    assert not at.awaits("a")


def test_a_pause_ends_though_all_are_let_go() -> None:
    pausing = Pausing()
    at = meeting(pausing, *"ab")

    def leaves() -> None:
        at.leave("a")
        at.leave("b")

    outcomes(at, pausing, a=leaves, b=nothing)
    assert pausing.at_once == [{"a", "b"}]
    assert not pausing.is_still


def test_who_fails_within_keeps_nobody_from_it() -> None:
    def fails() -> None:
        raise BackendError("no room")

    pausing = Pausing()
    at = meeting(pausing, *"ab")
    found = outcomes(at, pausing, a=nothing, b=fails)
    assert found["a"] == at.moment
    assert "no room" in found["b"]
    assert not pausing.is_still


def test_who_hangs_within_keeps_nobody_frozen() -> None:
    pausing = Pausing()
    at = meeting(pausing, *"ab")
    found = outcomes(at, pausing, a=nothing, b=lambda: time.sleep(1.5))
    # Before the guard has let them go on: then it would be nobody's moment.
    assert found["a"] == at.moment != ""
    assert "did not wait" in found["b"]
    assert not pausing.is_still


def test_without_a_pause_nobody_has_a_moment() -> None:
    pausing = Pausing(refuses=True)
    at = meeting(pausing, *"ab")
    found = outcomes(at, pausing, a=nothing, b=nothing)
    assert all("not now" in each for each in found.values())
    assert at.moment == ""


def test_who_does_not_stand_still_is_gone_on_without() -> None:
    class Restless(Pausing):
        @contextmanager
        def paused(self, paused: Paused) -> Iterator[None]:
            paused.took_s = 0.3
            if stuck in paused.targets:
                raise NotStillError({stuck})
            with super().paused(paused):
                yield

    stuck = Target("v2", "stuck", 0, 1)
    targets = {"a": [Target("v2", "other", 0, 2)], "b": [stuck]}
    for names in ("ab", "b"):
        pausing = Restless()
        at = meeting(pausing, *names)
        begun_all = {
            each: begun(
                partial(part, at, pausing, each, nothing, targets[each]),
                name=each,
            )
            for each in names
        }
        told = {each: begun_all[each].result(WAIT_S) for each in names}
        assert "do not stand still" in told["b"]
        # It is the one that is to be left alone for a while.
        assert at.stood_s("b") == 0.3
        assert not pausing.is_still
        if "a" in names:
            assert pausing.at_once == [{"a"}]
            assert at.stood_s("a") == 0.01


def test_a_fault_of_ours_is_one_for_all() -> None:
    class Broken(Pausing):
        def paused(self, paused: Paused) -> Any:
            del paused
            raise ZeroDivisionError

    pausing = Broken()
    at = meeting(pausing, *"ab")
    first = begun(lambda: part(at, pausing, "a", nothing), name="a")
    second = begun(lambda: part(at, pausing, "b", nothing), name="b")
    told = {type(each.exception(WAIT_S)) for each in (first, second)}
    assert ZeroDivisionError in told
    assert told != {ZeroDivisionError}  # one says it, the other has a reason
    assert at.moment == ""


def test_a_commit_lands_when_all_have_come() -> None:
    landing = Landing(["a", "b", "c"])
    landing.begin("a", ["beta", "gamma"])
    coming = begun(lambda: landing.come("a", "beta"), name="a")
    landing.begin("b", ["beta"])
    assert not coming.done()
    landing.leave("c")  # it has nothing to bring
    time.sleep(SHORT_S)
    assert not coming.done()
    landing.come("b", "beta")
    coming.result(WAIT_S)
    landing.come("a", "gamma")


def test_what_breaks_off_or_takes_long_is_not_waited_for() -> None:
    landing = Landing(["a", "b"], wait_s=SHORT_S)
    for each in ("a", "b"):
        landing.begin(each, ["beta", "gamma"])
    landing.end("b", "beta")
    began_s = time.monotonic()
    landing.come("a", "beta")
    assert time.monotonic() - began_s < SHORT_S
    landing.come("a", "gamma")
    assert time.monotonic() - began_s >= SHORT_S


def test_what_is_let_go_lands_at_once() -> None:
    landing = Landing(["a", "b"])
    landing.begin("a", ["beta"])
    coming = begun(lambda: landing.come("a", "beta"), name="a")
    landing.hurry("a")
    coming.result(5)
