"""
SIGKILL of the daemon, the engine or both, at every step of a container's life.

After each: what is used stays mounted and is not removed, the next container reads
every line that was written, and in the end no mount, reference or file is left.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.host import wait_until
from tests.support.images import BUSYBOX_IMAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.daemon import Machine

RECONCILE_S = 0.5
SLOW_CREATE_S = 2
GRACE_S = 1.0
# Longer than the way from the answered Mount into the container.
GRACE_OF_A_SLOW_START_S = SLOW_CREATE_S + 1.5
SURVIVORS = {
    ("daemon", "between mount and start"),
    ("daemon", "during run"),
    ("live-restore engine", "during run"),
    ("both under live-restore", "during run"),
}

# Numbered lines, each on disk before the next; a SIGTERM is answered late, with a line.
WRITER = """
trap 'sleep 1.5; echo end >> /v/log; sync; exit 0' TERM
number=$(wc -l < /v/log 2>/dev/null || echo 0)
while :; do
    number=$((number + 1))
    echo $number >> /v/log
    sync
    sleep 0.1
done
"""
SLOW_RUNC = """#!/bin/sh
case " $* " in *" create "*)
    touch /run/creating
    tenths=0
    while [ ! -e /run/go-on ] && [ $tenths -lt {tenths} ]; do
        sleep 0.1
        tenths=$((tenths + 1))
    done
esac
exec runc "$@"
"""


class Life:
    """One container's life on one machine, up to a step."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.engine = machine.engine
        self._call: threading.Thread | None = None

    def create(self, *options: str) -> None:
        self.engine.docker(
            *("create", "--name", "held", "--network", "none", "--stop-signal", "TERM"),
            *("--volume-driver", "remora", "-v", "data:/v", *options),
            *(BUSYBOX_IMAGE, "sh", "-c", WRITER),
        )

    def run(self) -> None:
        self.create()
        self.engine.docker("start", "held")
        wait_until(lambda: self.lines() >= 3, timeout_s=10, what="three lines")

    def start_slowly(self, *, create_s: int = SLOW_CREATE_S) -> None:
        """Leave the container between its Mount and its first process for a while."""
        runtime = self.machine.host.path("/etc/slow-runc")
        runtime.write_text(SLOW_RUNC.format(tenths=10 * create_s))
        runtime.chmod(0o755)
        self.machine.host.path("/etc/docker/daemon.json").write_text(
            '{"runtimes": {"slow": {"path": "/etc/slow-runc"}}}'
        )
        self.engine.restart()
        self.create("--runtime", "slow")
        self._begin("start", "held")
        creating = self.machine.host.path("/run/creating")
        wait_until(creating.exists, timeout_s=10, what="runc is called")
        assert self.machine.mounted("data")

    def begin_stop(self) -> None:
        self.run()
        self._begin("stop", "-t", "5", "held")
        time.sleep(0.5)

    def stop(self) -> None:
        self.run()
        self.engine.docker("stop", "-t", "5", "held")

    def _begin(self, *args: str) -> None:
        self._call = threading.Thread(
            target=lambda: self.engine.docker(*args, check=False)
        )
        self._call.start()

    def join(self) -> None:
        """Wait for the call that the crash met; it may have failed."""
        if self._call is not None:
            self._call.join(timeout=60)
            assert not self._call.is_alive()

    def lines(self) -> int:
        """Return how many lines are on disk, read past Docker and the daemon."""
        return self.text().count("\n")

    def text(self) -> str:
        log = self.machine.host.path(self.machine.volume("data")["path"]) / "log"
        return log.read_text() if log.exists() else ""

    def running(self) -> bool:
        return self.engine.inspect("container", "held")["State"]["Running"]


STEPS: dict[str, Callable[[Life], None]] = {
    "after create": Life.create,
    "between mount and start": Life.start_slowly,
    "during run": Life.run,
    "during stop": Life.begin_stop,
    "before rm": Life.stop,
}
VICTIMS = ("daemon", "engine", "live-restore engine", "both")
CASES = [(step, victim) for step in STEPS for victim in VICTIMS]
CASES.append(("during run", "both under live-restore"))


def crash(machine: Machine, victim: str) -> None:
    """Kill *victim* and start it again, as systemd would."""
    if victim != "daemon":
        machine.engine.kill()
    if "engine" not in victim:
        machine.daemon.crash()
    if victim != "daemon":
        machine.engine.start_again()


@pytest.mark.parametrize(("step", "victim"), CASES)
def test_crash(make_machine: Callable[..., Machine], step: str, victim: str) -> None:
    slow = step == "between mount and start"
    grace_s = GRACE_OF_A_SLOW_START_S if slow else GRACE_S
    machine = make_machine(
        live_restore="live-restore" in victim,
        disuse_grace_s=str(grace_s),
        reconcile_interval_s=RECONCILE_S,
    )
    life = Life(machine)
    STEPS[step](life)
    before = life.text()
    crash(machine, victim)
    life.join()
    assert life.text().startswith(before)
    if (victim, step) in SURVIVORS:
        assert life.running()
    if life.running() and step != "during stop":
        check_that_it_is_kept(life, grace_s)
    machine.engine.docker("rm", "-f", "held")
    check_that_nothing_is_lost(life)
    machine.assert_nothing_mounted(within_s=grace_s + RECONCILE_S + 5)
    machine.engine.docker("volume", "rm", "data")
    assert machine.daemon.call("List", {}) == {"Volumes": []}
    assert machine.host.run(["ls", "/var/lib/remora/pool/volumes"]).stdout == ""


def test_a_mount_that_was_dropped_too_early_fails_the_start(
    make_machine: Callable[..., Machine],
) -> None:
    """No grace at all: the engine must get an error, never an empty directory."""
    machine = make_machine(disuse_grace_s="0", reconcile_interval_s=0.2)
    machine.engine.shell("data", "echo 1 > /v/log")
    life = Life(machine)
    life.start_slowly(create_s=30)
    machine.daemon.crash()
    wait_until(lambda: not machine.mount_points(), timeout_s=10, what="it is dropped")
    machine.host.path("/run/go-on").touch()
    life.join()
    state = machine.engine.inspect("container", "held")["State"]
    assert not state["Running"]
    assert "no such file or directory" in state["Error"]
    machine.engine.docker("rm", "-f", "held")
    machine.assert_nothing_mounted(within_s=3)
    assert machine.engine.shell("data", "cat /v/log") == "1"


def check_that_it_is_kept(life: Life, grace_s: float) -> None:
    """Fail unless the running container's volume stays mounted and unremovable."""
    time.sleep(grace_s + 3 * RECONCILE_S)
    assert life.running()
    assert life.machine.mounted("data")
    error = life.machine.daemon.call("Remove", {"Name": "data"})["Err"]
    assert error.startswith("volume-busy: ")
    count = life.lines()
    wait_until(lambda: life.lines() > count, timeout_s=5, what="a line after the crash")


def check_that_nothing_is_lost(life: Life) -> None:
    """Fail unless a new container reads each line of the log, in order."""
    expected = life.text()
    numbers = [line for line in expected.splitlines() if line != "end"]
    assert numbers == [str(number) for number in range(1, len(numbers) + 1)]
    assert life.engine.shell("data", "cat /v/log 2>/dev/null || :") == expected.strip()
