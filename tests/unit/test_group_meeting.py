"""Volumes of a group meet for a moment; who does not come is gone on without."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from backends.errors import BackendError, RemoraError
from backends.system.aside import begun
from plugin.fencing.held import HeldVolume
from plugin.fencing.pausing import NotPausedError, Paused
from plugin.replication.landing import Landing
from plugin.replication.meeting import Meeting

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
        self.is_still = True
        yield
        self.is_still = False
        paused.took_s = 0.01


def meeting(pausing: Pausing, *names: str, wait_s: float = WAIT_S) -> Meeting:
    return Meeting(pausing, names, wait_s=wait_s)  # type: ignore[arg-type]


def found(name: str) -> Paused:
    return Paused([HeldVolume(name, "", "", "", 0.0)], frozenset())


def part(at: Meeting, pausing: Pausing, name: str, taken: Callable[[], None]) -> str:
    """Go through a whole round; return its moment, or why it has none."""
    try:
        assert at.is_due(name, is_changed=True)
        with at.paused(name, found(name)):
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
    assert at.took_s == 0.01


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
    assert "did not wait" in part(at, pausing, "c", nothing)


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
    assert found["a"] == at.moment  # the guard says otherwise, see Pausing
    assert "did not wait" in found["b"]
    assert not pausing.is_still


def test_without_a_pause_nobody_has_a_moment() -> None:
    pausing = Pausing(refuses=True)
    at = meeting(pausing, *"ab")
    found = outcomes(at, pausing, a=nothing, b=nothing)
    assert all("not now" in each for each in found.values())
    assert at.moment == ""


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
