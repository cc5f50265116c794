"""Deaths and successions of daemon and guard: whoever is left fences, and undoes it."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from plugin.errors import FencingError
from plugin.fencing import freezer, memory
from plugin.fencing.client import Guard
from plugin.fencing.freezer import Target
from plugin.fencing.held import socket_address
from tests.fencing.test_guard import bystander, is_frozen, state_of
from tests.fencing.world import (
    FENCED_WITHIN_S,
    FORK,
    WAIT_S,
    WRITE,
    Daemon,
    Volume,
    container,
    guard_pids,
    now_s,
)
from tests.support.host import wait_until

LEASE_S = 2.0
Start = Callable[[], Daemon]


def written_deadline_s(daemon: Daemon, volume: Volume) -> float:
    """Return the last deadline that the guard was told."""
    content = json.loads((daemon.run_dir / memory.FILE_NAME).read_text())
    [held] = [each for each in content["held"] if each["id"] == volume.id]
    return held["deadline_s"]


def the_guard(daemon: Daemon) -> int:
    """Return the one guard that runs; one that starts may run beside it for moments."""
    found: list[int] = []

    def one() -> bool:
        found[:] = guard_pids(daemon.run_dir)
        return len(found) == 1

    wait_until(one, timeout_s=WAIT_S, what="one guard", evidence=lambda: found)
    return found[0]


def kill_guard(daemon: Daemon) -> int:
    """Kill the guard, return which it was."""
    pid = the_guard(daemon)
    os.kill(pid, signal.SIGKILL)
    return pid


def say_hello(run_dir: Path, *, version: str) -> dict:
    """Return what the guard answers to a daemon of *version*."""
    with socket.socket(socket.AF_UNIX) as connection:
        with socket_address(str(run_dir)) as address:
            connection.connect(address)
        connection.settimeout(WAIT_S)
        hello = {"op": "hello", "version": version}
        connection.sendall(json.dumps(hello).encode() + b"\n")
        return json.loads(connection.recv(1 << 16))


def go_when_spoken_to(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    connection.recv(1)
    listener.close()
    connection.close()


def wait_stopped(process_id: int) -> None:
    wait_until(
        lambda: state_of(process_id) == "T", timeout_s=WAIT_S, what="it is stopped"
    )


@pytest.mark.parametrize("death", ["SIGKILL", "SIGSTOP"])
def test_a_daemon_that_is_no_more_or_stands_still(
    start: Start, volume: Volume, death: str
) -> None:
    """The lease is renewed until then; the guard needs nobody to tell it the end."""
    daemon = start()
    with container(volume, WRITE) as process:
        daemon.renew(volume.held(0), ttl_s=LEASE_S)
        begin = now_s()
        # Longer than one lease: it is the renewals that let it write.
        wait_until(
            lambda: (volume.stamps() or [0])[-1] > begin + LEASE_S + FENCED_WITHIN_S,
            timeout_s=WAIT_S,
            what="it writes on",
        )
        os.kill(daemon.process.pid, signal.Signals[death])
        wait_stopped(process.pid)
        volume.assert_quiet_since(written_deadline_s(daemon, volume) + FENCED_WITHIN_S)
        # The next daemon finds the same guard, and what it has frozen.
        guard = the_guard(daemon)
        successor = start()
        assert the_guard(successor) == guard
        assert successor.states() == {volume.id: "frozen"}
        if death == "SIGKILL":
            successor.hold(volume.held(60))
            volume.wait_writing()


def test_a_guard_that_is_killed_is_replaced(daemon: Daemon, volume: Volume) -> None:
    with container(volume, FORK) as process:
        held = volume.held(4.0)
        daemon.hold(held)
        killed = kill_guard(daemon)
        # Nobody asks the daemon for anything meanwhile.
        wait_stopped(process.pid)
        volume.assert_quiet_since(held.deadline_s + FENCED_WITHIN_S)
        assert the_guard(daemon) != killed


def test_a_guard_that_goes_as_a_daemon_comes(directory: Path, start: Start) -> None:
    """Its socket takes the daemon's connection still, and nobody answers."""
    run_dir = directory / "run"
    run_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        with socket_address(str(run_dir)) as address:
            listener.bind(address)
        listener.listen()
        going = threading.Thread(target=go_when_spoken_to, args=(listener,))
        going.start()
        assert start().states() == {}
        going.join(WAIT_S)
        assert not going.is_alive()


def test_a_thread_that_comes_too_late_is_told(daemon: Daemon) -> None:
    """Its daemon is about to end: what it would write to is somebody else's by now."""
    guard = Guard(daemon.run_dir)
    guard.start()
    guard.close()
    with pytest.raises(FencingError, match="has left its guard"):
        guard.hold([])


def test_nothing_stays_frozen_when_its_guard_is_killed(
    daemon: Daemon, volume: Volume, group: Path
) -> None:
    with container(volume, WRITE, join=group):
        volume.wait_writing()
        daemon.hold(volume.held(0))
        assert daemon.states() == {volume.id: "frozen"}
        kill_guard(daemon)
        daemon.wait_state(volume, "frozen")
        assert is_frozen(group)
        assert daemon.hold(volume.held(60)) == {volume.id: "running"}
        volume.wait_writing()


@pytest.mark.parametrize("end", ["thawed", "killed"])
@pytest.mark.parametrize("whole", [True, False])
def test_both_are_killed(
    start: Start, volume: Volume, group: Path, end: str, whole: bool
) -> None:
    """As when a managed plugin's container ends: the next pair knows what was done."""
    first = start()
    with container(volume, WRITE, join=group if whole else None) as process:
        volume.wait_writing()
        first.hold(volume.held(0, freeze_max_s=6.0 if end == "killed" else 600.0))
        assert first.states() == {volume.id: "frozen"}
        first.kill_now()
        kill_guard(first)
        volume.assert_quiet_since(volume.stamps()[-1])
        second = start()
        assert second.states() == {volume.id: "frozen"}
        if end == "thawed":
            assert second.hold(volume.held(60)) == {volume.id: "running"}
            volume.wait_writing()
            assert process.poll() is None
        else:
            # The time counts from when it was frozen, whoever did it.
            assert process.wait(timeout=WAIT_S) == -signal.SIGKILL
            second.wait_state(volume, "killed")


def test_a_guard_that_starts_goes_on_with_what_is_held(
    start: Start, volume: Volume
) -> None:
    """Its daemon may have nothing to say before its lease has ended."""
    first = start()
    with container(volume, WRITE) as process:
        held = volume.held(4.0)
        first.hold(held)
        first.kill_now()
        kill_guard(first)
        second = start()
        assert second.states() == {volume.id: "running"}
        wait_stopped(process.pid)
        volume.assert_quiet_since(held.deadline_s + FENCED_WITHIN_S)


def test_another_version_takes_over(start: Start, volume: Volume) -> None:
    first = start()
    with container(volume, WRITE) as process:
        volume.wait_writing()
        first.hold(volume.held(0))
        guard = the_guard(first)
        first.kill_now()
        assert say_hello(first.run_dir, version="other")["same"] is False
        second = start()
        assert the_guard(second) != guard
        assert state_of(process.pid) == "T"
        assert second.hold(volume.held(60)) == {volume.id: "running"}
        volume.wait_writing()


def test_a_guard_of_nothing_ends(start: Start, volume: Volume) -> None:
    daemon = start()
    daemon.hold(volume.held(60))
    guard = the_guard(daemon)
    daemon.kill_now()
    second = start()
    assert the_guard(second) == guard
    second.hold()
    second.kill_now()
    wait_until(lambda: not guard_pids(second.run_dir), timeout_s=WAIT_S, what="it ends")


def test_what_another_boot_has_frozen_is_forgotten(
    start: Start, volume: Volume
) -> None:
    daemon = start()
    daemon.hold(volume.held(0))
    daemon.kill_now()
    kill_guard(daemon)
    path = daemon.run_dir / memory.FILE_NAME
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"boot_id": "of another boot"}))
    assert start().states() == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot_id": 1}'])
def test_a_damaged_file_is_no_reason_not_to_guard(
    start: Start, volume: Volume, directory: Path, text: str
) -> None:
    (directory / "run").mkdir()
    (directory / "run" / memory.FILE_NAME).write_text(text)
    assert start().hold(volume.held(60)) == {volume.id: "running"}


def test_a_process_with_the_id_of_one_that_is_gone() -> None:
    with bystander() as other:
        started = freezer.processes.started(other.pid)
        former = Target("process", "", other.pid, started - 1)
        assert freezer.stop([former]) == []
        freezer.kill([former])
        assert state_of(other.pid) in "SR"
        os.kill(other.pid, signal.SIGSTOP)
        wait_stopped(other.pid)
        freezer.thaw([former])
        assert state_of(other.pid) == "T"
        freezer.thaw([Target("process", "", other.pid, started)])
        wait_until(
            lambda: state_of(other.pid) == "S", timeout_s=WAIT_S, what="it goes on"
        )


def test_a_group_with_the_name_of_one_that_is_gone(group: Path) -> None:
    with bystander(group) as other:
        kind = "v1" if (group / "freezer.state").exists() else "v2"
        former = Target(kind, str(group), 0, group.stat().st_ino + 1)
        freezer.stop([former])
        assert not is_frozen(group)
        freezer.kill([former])
        assert other.poll() is None
