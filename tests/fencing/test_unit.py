"""The guard within the limits of the service's unit, and how the unit lets it live."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fencing.test_guard import freeze_at_deadline, state_of
from tests.fencing.test_lives import the_guard
from tests.fencing.world import WAIT_S, WRITE, Daemon, Volume, container
from tests.support.host import REPOSITORY

UNIT = (REPOSITORY / "systemd/remora.service").read_text()
SOMEBODY = 1000
Start = Callable[..., Daemon]


def setting(name: str) -> str:
    """Return the values of a setting of the unit."""
    return " ".join(re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE))


def limited(*, without: str = "") -> list[str]:
    """Return what starts a program with the unit's limits, one capability less."""
    bounding = {each.removeprefix("CAP_").lower() for each in capabilities()}
    allowed = ",+".join(["-all", *sorted(bounding - {without})])
    return ["setpriv", "--no-new-privs", "--bounding-set", allowed, "--"]


def capabilities() -> list[str]:
    return setting("CapabilityBoundingSet").split()


def test_the_guard_outlives_the_service() -> None:
    assert setting("KillMode") == "process"


def test_the_guard_is_small(daemon: Daemon) -> None:
    """All of it is locked in memory."""
    status = Path(f"/proc/{the_guard(daemon)}/status").read_text()
    sizes_kib = dict(re.findall(r"^(Vm\w+):\s+(\d+) kB$", status, re.MULTILINE))
    assert int(sizes_kib["VmRSS"]) < 16 * 1024
    assert int(sizes_kib["VmSize"]) < 32 * 1024


@pytest.mark.parametrize("without", ["", "ipc_lock"])
def test_a_capability_lets_it_be_locked(
    start: Start, volume: Volume, without: str
) -> None:
    limits = ["prlimit", "--memlock=65536", "--", *limited(without=without)]
    daemon = start(prefix=limits)
    daemon.hold(volume.held(60))
    status = Path(f"/proc/{the_guard(daemon)}/status").read_text()
    [locked_kib] = re.findall(r"^VmLck:\s+(\d+) kB$", status, re.MULTILINE)
    assert (int(locked_kib) > 0) == (not without)
    assert ("not locked" in daemon.guard_log()) == bool(without)


def test_writers_of_any_user_are_stopped(start: Start, volume: Volume) -> None:
    volume.live.chmod(0o777)
    daemon = start(prefix=limited())
    with container(volume, WRITE, user=SOMEBODY) as process:
        volume.wait_writing()
        freeze_at_deadline(daemon, volume)
        daemon.hold(volume.held(60))
        volume.wait_writing()
        daemon.ask("kill", id=volume.id)
        daemon.wait_state(volume, "killed")
        assert process.wait(timeout=WAIT_S) == -signal.SIGKILL


def test_what_cannot_be_stopped_is_said(start: Start, volume: Volume) -> None:
    """Without CAP_KILL, and with no freezer for the process: nothing is pretended."""
    volume.live.chmod(0o777)
    daemon = start(prefix=limited(without="kill"))
    with container(volume, WRITE, user=SOMEBODY) as process:
        volume.wait_writing()
        daemon.hold(volume.held(0))
        time.sleep(2)
        assert state_of(process.pid) != "T"
        assert "does not stand still" in daemon.guard_log()
        daemon.ask("kill", id=volume.id)
        assert daemon.states() == {volume.id: "stopping"}
