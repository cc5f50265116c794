"""Writers stop at the deadline, and go on or die; nobody else is touched."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fencing.world import (
    FENCED_WITHIN_S,
    FLEE,
    FORK,
    HEADLESS,
    INSIDE,
    WAIT_S,
    WRITE,
    Daemon,
    Volume,
    container,
)
from tests.support.host import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPTS = {"writing": WRITE, "forking": FORK}
ALONE = {**SCRIPTS, "headless": HEADLESS}
HOLD_S = 1.0


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def is_frozen(group: Path) -> bool:
    """Return whether the control group is to be frozen."""
    if (group / "freezer.state").exists():
        return (group / "freezer.self_freezing").read_text().strip() == "1"
    return (group / "cgroup.freeze").read_text().strip() == "1"


def freeze(group: Path) -> None:
    """Freeze the control group, as `docker pause` does."""
    if (group / "freezer.state").exists():
        (group / "freezer.state").write_text("FROZEN")
    else:
        (group / "cgroup.freeze").write_text("1")


def pids_of(group: Path) -> list[int]:
    return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]


@contextlib.contextmanager
def bystander(group: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that does not know of any volume."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        if group is not None:
            (group / "cgroup.procs").write_text(str(process.pid))
        yield process
    finally:
        process.kill()
        process.wait(timeout=WAIT_S)


def freeze_at_deadline(daemon: Daemon, volume: Volume) -> None:
    """Let *volume*'s time pass; return when its writer is seen to be quiet."""
    held = volume.held(HOLD_S)
    assert daemon.hold(held) == {volume.id: "running"}
    daemon.wait_state(volume, "frozen")
    volume.assert_quiet_since(held.deadline_s + FENCED_WITHIN_S)


# One process after the other


@pytest.mark.parametrize("script", ALONE)
def test_frozen_at_the_deadline_and_thawed(
    daemon: Daemon, volume: Volume, script: str
) -> None:
    with container(volume, ALONE[script]) as process, bystander() as other:
        volume.wait_writing()
        freeze_at_deadline(daemon, volume)
        assert script == "headless" or state_of(process.pid) == "T"
        assert state_of(other.pid) == "S"
        assert daemon.hold(volume.held(60)) == {volume.id: "running"}
        volume.wait_writing()
        assert process.poll() is None


def test_a_deadline_that_is_renewed_never_stops_anybody(
    daemon: Daemon, volume: Volume
) -> None:
    with container(volume, WRITE):
        volume.wait_writing()
        for _ in range(8):
            assert daemon.hold(volume.held(60)) == {volume.id: "running"}
            volume.wait_writing()
        assert "stops" not in daemon.guard_log()


@pytest.mark.parametrize("script", ALONE)
def test_killed_without_another_write(
    daemon: Daemon, volume: Volume, script: str
) -> None:
    with container(volume, ALONE[script]) as process:
        volume.wait_writing()
        freeze_at_deadline(daemon, volume)
        written = volume.stamps()
        daemon.ask("kill", id=volume.id)
        daemon.wait_state(volume, "killed")
        assert process.wait(timeout=WAIT_S) == -signal.SIGKILL
        assert volume.stamps() == written


def test_a_writer_that_runs_is_killed_when_the_epoch_is_taken(
    daemon: Daemon, volume: Volume
) -> None:
    with container(volume, FORK) as process:
        volume.wait_writing()
        daemon.hold(volume.held(60))
        daemon.ask("kill", id=volume.id)
        daemon.wait_state(volume, "killed")
        assert process.wait(timeout=WAIT_S) == -signal.SIGKILL
    # The node's deadline says nothing of it: it is killed until it is let go.
    assert daemon.hold(volume.held(60)) == {volume.id: "killed"}
    with container(volume, WRITE) as process:
        assert process.wait(timeout=WAIT_S) == -signal.SIGKILL
    # The guard looks a few times before it believes that nobody is left.
    wait_until(lambda: daemon.hold() == {}, timeout_s=WAIT_S, what="it is let go")
    assert daemon.hold(volume.held(60)) == {volume.id: "running"}
    with container(volume, WRITE) as process:
        volume.wait_writing()
        assert process.poll() is None


def test_a_volume_that_is_not_held_any_more_is_killed_in_the_end(
    daemon: Daemon, volume: Volume
) -> None:
    """Its daemon has forgotten it; to thaw it then would be to let anybody write."""
    with container(volume, WRITE) as process:
        volume.wait_writing()
        daemon.hold(volume.held(0, freeze_max_s=3.0))
        assert daemon.hold() == {volume.id: "frozen"}
        assert process.wait(timeout=WAIT_S) == -signal.SIGKILL
    wait_until(lambda: daemon.states() == {}, timeout_s=WAIT_S, what="it is dropped")


@pytest.mark.parametrize("policy", ["freeze", "kill", "none"])
def test_policies(daemon: Daemon, volume: Volume, policy: str) -> None:
    with container(volume, WRITE) as process:
        volume.wait_writing()
        held = volume.held(HOLD_S, policy=policy, freeze_max_s=1.0)
        daemon.hold(held)
        if policy == "none":
            time.sleep(HOLD_S + FENCED_WITHIN_S)
            volume.wait_writing()
            assert daemon.states() == {volume.id: "running"}
            return
        daemon.wait_state(volume, "killed")
        assert process.wait(timeout=WAIT_S) == -signal.SIGKILL
        stamps = volume.stamps()
        assert stamps[-1] < held.deadline_s + FENCED_WITHIN_S


def test_whoever_comes_later_is_stopped_too(daemon: Daemon, volume: Volume) -> None:
    """As by `docker exec`, without a control group that would hold it."""
    with container(volume, WRITE) as process:
        volume.wait_writing()
        freeze_at_deadline(daemon, volume)
        command = ["nsenter", f"--mount=/proc/{process.pid}/ns/mnt", "busybox", "sh"]
        late = subprocess.Popen([*command, "-c", WRITE, "sh", f"{INSIDE}/late"])
        try:
            wait_until(
                lambda: state_of(late.pid) == "T", timeout_s=WAIT_S, what="it stops"
            )
            daemon.hold(volume.held(60))
            volume.wait_writing("late")
        finally:
            late.kill()
            late.wait(timeout=WAIT_S)


def test_processes_that_run_away(daemon: Daemon, volume: Volume) -> None:
    """Outside of a control group of theirs; one that forks and ends is never found."""
    with container(volume, FLEE):
        volume.wait_writing()
        daemon.hold(volume.held(HOLD_S))

        def quiet() -> bool:
            before = len(volume.stamps())
            time.sleep(1.0)
            return len(volume.stamps()) == before

        wait_until(quiet, timeout_s=WAIT_S, what="it stops")
        daemon.hold(volume.held(60))
        volume.wait_writing()
        daemon.ask("kill", id=volume.id)
        wait_until(quiet, timeout_s=WAIT_S, what="it is killed")
        daemon.wait_state(volume, "killed")


def test_in_our_own_namespace_only_who_has_a_file_open(
    daemon: Daemon, volume: Volume
) -> None:
    """A shell in the daemon's mount point; the machine's other processes go on."""
    # Its files are open for moments only; that it works here is what shows it.
    command = ["busybox", "sh", "-c", WRITE, "sh", f"{volume.target}/stamps"]
    process = subprocess.Popen(command, cwd=volume.target, start_new_session=True)
    try:
        with bystander() as other:
            volume.wait_writing()
            freeze_at_deadline(daemon, volume)
            assert state_of(process.pid) == "T"
            assert state_of(other.pid) == "S"
            daemon.ask("forget", id=volume.id)
            volume.wait_writing()
            assert daemon.states() == {}
    finally:
        process.kill()
        process.wait(timeout=WAIT_S)


def test_a_process_that_was_stopped_before_stays_stopped(
    daemon: Daemon, volume: Volume
) -> None:
    with container(volume, WRITE) as process:
        volume.wait_writing()
        os.kill(process.pid, signal.SIGSTOP)
        wait_until(
            lambda: state_of(process.pid) == "T", timeout_s=WAIT_S, what="it stops"
        )
        freeze_at_deadline(daemon, volume)
        daemon.hold(volume.held(60))
        volume.assert_quiet_since(volume.stamps()[-1])
        assert state_of(process.pid) == "T"


# Control groups


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_group_of_writers_is_frozen_whole(
    daemon: Daemon, volume: Volume, group: Path, script: str
) -> None:
    with container(volume, SCRIPTS[script], join=group) as process:
        volume.wait_writing()
        freeze_at_deadline(daemon, volume)
        assert is_frozen(group)
        assert "T" not in {state_of(pid) for pid in pids_of(group)}
        daemon.hold(volume.held(60))
        assert not is_frozen(group)
        volume.wait_writing()
        assert process.poll() is None


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_group_is_killed_without_another_write(
    daemon: Daemon, volume: Volume, group: Path, script: str
) -> None:
    with container(volume, SCRIPTS[script], join=group) as process:
        volume.wait_writing()
        freeze_at_deadline(daemon, volume)
        written = volume.stamps()
        daemon.ask("kill", id=volume.id)
        daemon.wait_state(volume, "killed")
        assert process.wait(timeout=WAIT_S) == -signal.SIGKILL
        assert volume.stamps() == written
        assert pids_of(group) == []
        assert not is_frozen(group)


def test_others_in_the_group_are_not_touched(
    daemon: Daemon, volume: Volume, group: Path
) -> None:
    with bystander(group) as other, container(volume, FORK, join=group) as process:
        volume.wait_writing()
        freeze_at_deadline(daemon, volume)
        assert not is_frozen(group)
        assert state_of(process.pid) == "T"
        assert state_of(other.pid) == "S"
        daemon.ask("kill", id=volume.id)
        daemon.wait_state(volume, "killed")
        assert process.wait(timeout=WAIT_S) == -signal.SIGKILL
        assert other.poll() is None


def test_a_group_with_another_below_it(
    daemon: Daemon, volume: Volume, group: Path
) -> None:
    """The one below would be frozen along, but holds somebody else."""
    below = group / "below"
    below.mkdir()
    try:
        with bystander(below) as other, container(volume, WRITE, join=group):
            volume.wait_writing()
            freeze_at_deadline(daemon, volume)
            assert not is_frozen(group)
            assert state_of(other.pid) == "S"
    finally:
        wait_until(lambda: not pids_of(below), timeout_s=WAIT_S, what="it is empty")
        below.rmdir()


def test_a_paused_container_stays_paused(
    daemon: Daemon, volume: Volume, group: Path
) -> None:
    with container(volume, WRITE, join=group):
        volume.wait_writing()
        freeze(group)
        freeze_at_deadline(daemon, volume)
        daemon.hold(volume.held(60))
        assert is_frozen(group)
        # Frozen or not before: when it has to die, it dies.
        daemon.ask("kill", id=volume.id)
        daemon.wait_state(volume, "killed")
        assert pids_of(group) == []


def test_a_writer_of_two_volumes_goes_on_with_the_second(
    daemon: Daemon, volume: Volume, group: Path, directory: Path
) -> None:
    (directory / "2").mkdir()
    second = Volume.make(directory / "2")
    point = directory / "second"
    point.mkdir()
    script = f"mount --bind {second.target} {point}; {WRITE}"
    with container(volume, script, join=group):
        volume.wait_writing()
        daemon.hold(volume.held(HOLD_S), second.held(HOLD_S))
        daemon.wait_state(volume, "frozen")
        daemon.wait_state(second, "frozen")
        states = daemon.hold(volume.held(60), second.held(-1))
        assert states == {volume.id: "running", second.id: "frozen"}
        assert is_frozen(group)
        states = daemon.hold(volume.held(60), second.held(60))
        assert set(states.values()) == {"running"}
        volume.wait_writing()
