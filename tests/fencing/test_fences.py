"""What is fenced and thawed again, without a guard process around it."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backends.system import clock
from plugin.fencing import fences as fences_module
from plugin.fencing import processes, writers
from plugin.fencing.fences import Fences
from plugin.fencing.held import HeldVolume
from tests.fencing.world import FLEE, WAIT_S, WRITE, Volume, container
from tests.support.host import wait_until

TURNS = 5
LOOK_S = 0.05


def is_stopped(group: int) -> bool:
    """Return whether a process of *group* is there and stopped."""
    found = [processes.look(pid) for pid in processes.ids()]
    return any(each and each.group == group and each.stopped for each in found)


def is_gone(group: int) -> bool:
    """Return whether no process of *group* is left."""
    found = [processes.look(pid) for pid in processes.ids()]
    return not any(each and each.group == group for each in found)


@pytest.mark.timeout(900)
def test_who_was_stopped_last_goes_on_as_well(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A scan may end right after it has stopped a process that forks and ends.

    The volume is held again before the next scan: nobody else would let it go on.
    """
    # As if the time for a scan were over just then.
    monkeypatch.setattr(fences_module, "_ROUNDS_MAX", 2)
    fences = Fences(str(tmp_path), log=lambda _: None)
    with container(volume, FLEE) as process:
        volume.wait_writing()
        # The first of the chain came from this process, which the guard would spare.
        wait_until(lambda: process.poll() is not None, timeout_s=WAIT_S, what="its end")

        def is_caught() -> bool:
            """Let the deadline pass and come back; whoever is stopped must go on."""
            fences.hold([volume.held(-1)])
            fences.act()
            time.sleep(0.05)
            caught = is_stopped(process.pid)
            fences.hold([volume.held(60)])
            volume.wait_writing()
            return caught

        # It is a matter of luck, and on a busy machine of many attempts.
        for _ in range(TURNS):
            wait_until(is_caught, timeout_s=4 * WAIT_S, what="the process is stopped")


def test_a_deadline_that_the_daemon_does_not_know_yet_is_the_one_told_before(
    tmp_path: Path,
) -> None:
    def told(deadline_s: float, *, as_before: bool = False) -> HeldVolume:
        return HeldVolume("a", "8:1", "/", "/x", deadline_s, as_before=as_before)

    fences = Fences(str(tmp_path), log=print)
    fences.hold([told(1e9)])
    # Another guard goes on with it, for a daemon that knows nothing.
    fences = Fences(str(tmp_path), log=print)
    for _ in range(2):
        fences.hold([told(0.0, as_before=True)])
        assert fences.next_s() == 1e9
    fences.hold([told(5.0)])
    assert fences.next_s() == 5.0
    # Whatever was never told is not to run.
    fences.hold([])
    fences.hold([told(0.0, as_before=True)])
    assert fences.next_s() == 0.0


def test_what_an_earlier_epoch_stopped_never_goes_on_and_a_later_one_is_spared(
    volume: Volume, tmp_path: Path
) -> None:
    """The daemon could not tell the guard that the volume was unmounted in between."""
    fences = Fences(str(tmp_path), log=print)
    # The guard spares its own children: these are orphans.
    script = f"({WRITE}) &"
    for epoch, killed in ((1, False), (3, True)):
        with container(volume, script) as old:
            old.wait(WAIT_S)
            volume.wait_writing()
            fences.hold([volume.held(-1, epoch=epoch)])
            fences.act()
            if killed:
                fences.kill([volume.id])
            fences.hold([volume.held(60, epoch=epoch + 1)])
            wait_until(partial(is_gone, old.pid), timeout_s=WAIT_S, what="its end")
            assert set(fences.states().values()) == {"running"}
    with container(volume, script):
        fences.act()
        volume.wait_writing()


def test_what_was_killed_takes_little_of_the_machine(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many processes a look takes long; nothing else runs before the guard."""
    looks: list[float] = []
    real_find = writers.find

    def find(*arguments: Any, **how: Any) -> dict[str, writers.Writers]:
        began_s = time.process_time()
        while time.process_time() < began_s + LOOK_S:
            pass
        looks.append(LOOK_S)
        return real_find(*arguments, **how)

    fences = Fences(str(tmp_path), log=print)
    fences.hold([volume.held(60)])
    fences.kill([volume.id])
    fences.act()
    assert set(fences.states().values()) == {"killed"}
    monkeypatch.setattr(fences_module, "_SCAN_INTERVAL_KILLED_S", 0.0)
    monkeypatch.setattr(fences_module.writers, "find", find)
    wait_until(lambda: fences.act() or looks, timeout_s=WAIT_S, what="the next look")
    rest_s = (fences.next_s() or 0.0) - clock.boottime_s()
    # What the daemon asks for again makes no difference.
    fences.kill([volume.id])
    fences.act()
    assert len(looks) <= 2
    assert rest_s > 10 * sum(looks)
