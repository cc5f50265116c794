"""
SIGKILL of the daemon at random moments while containers come and go all the time.

Eight loops of create, run, cp, stop and rm, each with a volume of its own and all with
one shared volume. REMORA_CHAOS_KILLS and REMORA_SEED choose how many kills and which
ones; a failure shows its seed.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.support.chance import seed
from tests.support.host import wait_until
from tests.support.images import BUSYBOX_IMAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.daemon import Machine

pytestmark = [pytest.mark.xdist_group("engine-chaos"), pytest.mark.timeout(1200)]

KILLS, KILLS_LONG = int(os.environ.get("REMORA_CHAOS_KILLS", "50")), 300
LOOPS = 8
GRACE_S = 5.0
PAUSE_MAX_S = 1.0
# A command that a kill met is tried again by the engine for 15 s, and then by us.
STEP_DEADLINE_S = 120.0
OTHERS_WAIT_MAX_S = 5.0


@dataclass
class Tally:
    """What the loops did; the lists are shared between threads, append is atomic."""

    rounds: list[int] = field(default_factory=list)
    failed_commands: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Loop(threading.Thread):
    """The life of containers on one volume; checks what it can at every step."""

    def __init__(self, number: int, machine: Machine, tally: Tally, drawn: int) -> None:
        super().__init__(name=f"loop-{number}")
        self.machine = machine
        self.tally = tally
        self.random = random.Random(drawn + number)
        self.ending = threading.Event()
        self.container = f"container-{number}"
        self.volume = f"own-{number}"
        self.volume_ids: dict[str, str] = {}
        self.acknowledged: dict[str, list[str]] = {self.volume: [], "shared": []}
        self.serial = 0

    def run(self) -> None:
        try:
            while not self.ending.is_set():
                self.round()
                self.tally.rounds.append(1)
        except Exception as error:  # noqa: BLE001 - told by the test itself
            self.tally.faults.append(f"{self.name}: {error!r}\n{self.evidence()}")

    def evidence(self) -> str:
        """Return what the daemon logged of this loop's own volume, and its starts."""
        lines = self.machine.daemon.log.read_text(errors="replace").splitlines()
        words = (f'"{self.volume}"', '"serving"', '"Activate"')
        return "\n".join([x for x in lines if any(w in x for w in words)][-40:])

    def round(self) -> None:
        self.until_done("volume", "create", "-d", "remora", self.volume)
        self.start_container()
        self.learn_ids()
        self.check_logs()
        self.write()
        self.check_in_use()
        self.copy()
        self.pause()
        self.write()
        self.check_in_use()
        if self.random.random() < 0.7:
            self.until_done("stop", self.container)
        self.remove_container()
        if self.random.random() < 0.2:
            self.until_done("volume", "rm", self.volume)
            self.acknowledged[self.volume] = []
            self.volume_ids.pop(self.volume)

    # Steps

    def patience(self) -> Callable[[str], None]:
        """Return a function that raises when a step has been tried for too long."""
        end = time.monotonic() + STEP_DEADLINE_S

        def check(what: str) -> None:
            # Once something is wrong nobody has to be patient any more.
            if self.tally.faults or time.monotonic() > end:
                raise AssertionError(f"never done: {what}")

        return check

    def docker(self, *args: str) -> subprocess.CompletedProcess[str]:
        done = self.machine.engine.docker(*args, check=False, timeout_s=STEP_DEADLINE_S)
        if done.returncode != 0:
            self.tally.failed_commands.append(f"{args[0]}: {done.stderr.strip()}")
        return done

    def until_done(self, *args: str) -> str:
        check = self.patience()
        while True:
            done = self.docker(*args)
            # A removal whose answer was lost is told as an error, but it was done.
            if done.returncode == 0 or "No such volume" in done.stderr:
                return done.stdout
            check(f"{args}: {done.stderr}")
            time.sleep(0.2)

    def start_container(self) -> None:
        check = self.patience()
        while True:
            done = self.docker(
                *("run", "-d", "--name", self.container, "--network", "none"),
                *("--volume-driver", "remora", "-v", f"{self.volume}:/{self.volume}"),
                *("-v", "shared:/shared", BUSYBOX_IMAGE),
            )
            if done.returncode == 0:
                return
            check(f"start: {done.stderr}")
            self.remove_container()

    def remove_container(self) -> None:
        check = self.patience()
        while self.docker("rm", "-f", self.container).returncode != 0:
            if not self.docker("ps", "-aq", "-f", f"name=^{self.container}$").stdout:
                return
            check(f"rm {self.container}")
            time.sleep(0.2)

    def learn_ids(self) -> None:
        """Ask for the volumes' ids while the daemon is up."""

        def learn() -> bool:
            try:
                for name in (self.volume, "shared"):
                    if name not in self.volume_ids:
                        self.volume_ids[name] = self.machine.volume(name)["id"]
            except OSError:
                return False
            return True

        wait_until(learn, timeout_s=30, what="the daemon is there", interval_s=0.1)

    def write(self) -> None:
        for volume, tokens in self.acknowledged.items():
            self.serial += 1
            token = f"{self.name}.{self.serial}"
            script = f"echo {token} >> /{volume}/{self.name}.log && sync"
            done = self.docker("exec", self.container, "sh", "-c", script)
            if done.returncode != 0:
                raise AssertionError(f"cannot write in {volume}: {done.stderr}")
            tokens.append(token)

    def check_logs(self) -> None:
        """Fail unless this container reads what the ones before it have written."""
        for volume, tokens in self.acknowledged.items():
            path = f"/{volume}/{self.name}.log"
            script = f"cat {path} 2>/dev/null || :"
            done = self.docker("exec", self.container, "sh", "-c", script)
            if done.stdout.split() != tokens:
                raise AssertionError(f"{path}: {done.stdout.split()} is not {tokens}")

    def check_in_use(self) -> None:
        """Fail unless the running container's volumes are mounted and unremovable."""
        mounts = self.machine.mount_points()
        for volume, volume_id in self.volume_ids.items():
            if f"/var/lib/remora/mounts/{volume_id}" not in mounts:
                raise AssertionError(f"{volume} was unmounted under its container")
            try:
                answer = self.machine.daemon.call("Remove", {"Name": volume})
            except OSError:
                continue  # killed
            if not answer.get("Err"):
                raise AssertionError(f"{volume} was removed under its container")

    def copy(self) -> None:
        copy = self.machine.host.work / f"{self.name}.copy"
        source = f"{self.container}:/{self.volume}/{self.name}.log"
        done = self.docker("cp", source, str(copy))
        if done.returncode == 0:
            tokens = copy.read_text().split()
            if tokens != self.acknowledged[self.volume]:
                raise AssertionError(f"cp brought {tokens}")

    def pause(self) -> None:
        self.ending.wait(self.random.random() * PAUSE_MAX_S)


def kill_at_random(
    machine: Machine, tally: Tally, kills: int, chance: random.Random
) -> None:
    """Kill and start the daemon; after each time see what others wait for."""
    for number in range(kills):
        time.sleep(chance.random() * PAUSE_MAX_S)
        machine.daemon.crash()
        # Other volumes' calls that the kill met are now tried again, for up to 15 s.
        name = f"another-{number}"
        for command in (
            ("create", "-d", "remora", name),
            ("inspect", name),
            ("rm", name),
        ):
            start = time.monotonic()
            machine.engine.docker("volume", *command)
            tally.waits_s.append(time.monotonic() - start)
        if tally.faults:
            return


@pytest.mark.parametrize(
    "kills", [KILLS, pytest.param(KILLS_LONG, marks=pytest.mark.long)]
)
def test_chaos(make_machine: Callable[..., Machine], kills: int) -> None:
    machine = make_machine(disuse_grace_s=str(GRACE_S), reconcile_interval_s=None)
    machine.engine.docker("volume", "create", "-d", "remora", "shared")
    tally, drawn = Tally(), seed()
    loops = [Loop(number, machine, tally, drawn) for number in range(LOOPS)]
    start = time.monotonic()
    for loop in loops:
        loop.start()
    try:
        kill_at_random(machine, tally, kills, random.Random(drawn - 1))
    except BaseException as error:
        tally.faults.append(repr(error))
        raise
    finally:
        for loop in loops:
            loop.ending.set()
        for loop in loops:
            loop.join(timeout=2 * STEP_DEADLINE_S)
    print(
        f"{kills} kills, {len(tally.rounds)} rounds in "
        f"{time.monotonic() - start:.0f} s, {len(tally.failed_commands)} commands "
        f"failed, longest wait of another volume {max(tally.waits_s):.2f} s"
    )
    assert not tally.faults, "\n".join(tally.faults)
    assert not any(loop.is_alive() for loop in loops)
    assert max(tally.waits_s) < OTHERS_WAIT_MAX_S
    check_the_end(machine, loops)


def check_the_end(machine: Machine, loops: list[Loop]) -> None:
    """Fail unless all is unmounted, and all that was written is there."""
    assert machine.engine.out("ps", "-aq") == ""
    machine.assert_nothing_mounted(within_s=GRACE_S + 15)
    own = {loop.volume for loop in loops if loop.volume in loop.volume_ids}
    listed = {row["Name"] for row in machine.daemon.call("List", {})["Volumes"]}
    assert listed == own | {"shared"}
    for loop in loops:
        for volume, tokens in loop.acknowledged.items():
            if tokens:
                read = machine.engine.shell(volume, f"cat /v/{loop.name}.log")
                assert read.split() == tokens
    kept = machine.host.run(["ls", "/var/lib/remora/pool/volumes"]).stdout.split()
    assert len(kept) == len(listed)
    machine.assert_nothing_mounted(within_s=2)
