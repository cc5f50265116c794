"""Writers stand still for a commit, and go on whatever becomes of who wanted that."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from backends.system import libc
from plugin.errors import FencingError
from plugin.fencing import cgroups
from plugin.fencing.fences import Fences
from plugin.fencing.freezer import Target
from plugin.fencing.held import socket_address
from plugin.fencing.pausing import Paused
from tests.fencing.test_guard import bystander, freeze, is_frozen
from tests.fencing.test_lives import kill_guard, the_guard
from tests.fencing.world import FORK, WAIT_S, WRITE, Daemon, Volume, container
from tests.support.host import wait_until

Start = Callable[[], Daemon]
ONLY_V2 = pytest.mark.parametrize("group", ["v2"], indirect=True)


@contextmanager
def writing(
    daemon: Daemon, volume: Volume, group: Path | None, script: str = WRITE
) -> Iterator[subprocess.Popen[bytes]]:
    """Have a container write to *volume*, which *daemon* holds."""
    daemon.hold(volume.held(3600))
    with container(volume, script, join=group) as process:
        volume.wait_writing()
        yield process


def wait_thawed(group: Path) -> None:
    wait_until(lambda: not is_frozen(group), timeout_s=WAIT_S, what="it goes on")


@ONLY_V2
@pytest.mark.parametrize("script", [WRITE, FORK])
def test_nobody_writes_until_it_ends(
    daemon: Daemon, volume: Volume, group: Path, script: str
) -> None:
    with writing(daemon, volume, group, script):
        assert daemon.ask("pause", id=volume.id) == ""
        assert is_frozen(group)
        written = volume.stamps()
        assert volume.stamps() == written
        assert daemon.ask("resume") == ""
        assert not is_frozen(group)
        volume.wait_writing()


@ONLY_V2
def test_it_does_not_last_and_that_is_told(
    daemon: Daemon, volume: Volume, group: Path
) -> None:
    with writing(daemon, volume, group) as process:
        assert daemon.ask("pause", id=volume.id) == ""
        wait_thawed(group)
        volume.wait_writing()
        assert "did not stand still for long enough" in daemon.ask("resume")
        assert process.poll() is None


@ONLY_V2
def test_whoever_is_killed_nobody_stays_frozen(
    start: Start, volume: Volume, group: Path
) -> None:
    daemon = start()
    with writing(daemon, volume, group) as process:
        # The guard lives: it sees at once that the daemon has gone.
        assert daemon.ask("pause", id=volume.id) == ""
        daemon.kill_now()
        wait_thawed(group)
        assert "paused too long" not in daemon.guard_log()
        # The daemon lives: another guard knows of the pause.
        daemon = start()
        daemon.hold(volume.held(3600))
        assert daemon.ask("pause", id=volume.id) == ""
        kill_guard(daemon)
        wait_thawed(group)
        assert the_guard(daemon)
        daemon.ask("resume")
        # Both are gone: so is it when they are back.
        assert daemon.ask("pause", id=volume.id) == ""
        guard = the_guard(daemon)
        os.kill(daemon.process.pid, 19)  # it replaces no guard any more
        os.kill(guard, 9)
        daemon.kill_now()
        start()
        wait_thawed(group)
        volume.wait_writing()
        assert process.poll() is None


@ONLY_V2
def test_a_guard_that_hands_over_leaves_nobody_paused(
    daemon: Daemon, volume: Volume, group: Path
) -> None:
    with writing(daemon, volume, group):
        assert daemon.ask("pause", id=volume.id) == ""
        # A daemon of before there were pauses, whose guard would not know of them.
        with (
            socket_address(str(daemon.run_dir)) as address,
            socket.socket(socket.AF_UNIX) as other,
        ):
            other.connect(address)
            other.sendall(b'{"op": "hello", "version": "another"}\n')
            assert b'"same": false' in other.recv(1 << 20)
            assert not is_frozen(group)


@ONLY_V2
def test_nobody_is_paused_while_writers_of_another_volume_are_looked_for(
    volume: Volume, group: Path, tmp_path: Path
) -> None:
    fences = Fences(str(tmp_path), log=lambda _: None)
    other = Volume.make(tmp_path / "other")
    with bystander(group):
        target = Target("v2", str(group), 0, cgroups.identity(str(group)))
        fences.hold([volume.held(60), other.held(60)])
        assert not fences.pause(volume.id, [target])
        assert is_frozen(group)
        fences.hold([volume.held(60), other.held(-1)])
        fences.act()
        assert not is_frozen(group)
        assert not fences.resume(volume.id)


@ONLY_V2
def test_a_container_that_its_user_paused_stays_so(
    daemon: Daemon, volume: Volume, group: Path
) -> None:
    with writing(daemon, volume, group):
        freeze(group)
        assert daemon.ask("pause", id=volume.id) == ""
        assert daemon.ask("resume") == ""
        assert is_frozen(group)


@ONLY_V2
def test_a_deadline_that_passes_meanwhile_is_kept(
    daemon: Daemon, volume: Volume, group: Path
) -> None:
    with writing(daemon, volume, group):
        assert daemon.ask("pause", id=volume.id) == ""
        daemon.hold(volume.held(-1))
        daemon.ask("resume")
        assert is_frozen(group)
        assert "do not stand still" in daemon.ask("pause", id=volume.id)
        daemon.hold(volume.held(3600))
        assert not is_frozen(group)
        volume.wait_writing()


@ONLY_V2
def test_another_writer_that_began_meanwhile(
    daemon: Daemon, volume: Volume, group: Path
) -> None:
    with writing(daemon, volume, group):
        assert daemon.ask("pause", id=volume.id) == ""
        with container(volume, WRITE):
            volume.wait_writing()
            assert daemon.ask("resume") != ""


@ONLY_V2
def test_who_cannot_be_frozen_alone_is_not(
    daemon: Daemon, volume: Volume, group: Path
) -> None:
    daemon.hold(volume.held(3600))
    assert "no container is known" in daemon.ask("pause", id=volume.id)
    with writing(daemon, volume, None):
        assert "no control group of its own" in daemon.ask("pause", id=volume.id)
    with bystander(group), writing(daemon, volume, group):
        assert "shares one with others" in daemon.ask("pause", id=volume.id)
        assert not is_frozen(group)
    daemon.hold()
    assert "not held here" in daemon.ask("pause", id=volume.id)


@pytest.mark.parametrize("group", ["v1"], indirect=True)
def test_control_groups_of_version_1_are_not_frozen(
    daemon: Daemon, volume: Volume, group: Path
) -> None:
    with writing(daemon, volume, group):
        assert "version 1" in daemon.ask("pause", id=volume.id)
        assert not is_frozen(group)


@ONLY_V2
def test_files_that_stay_open_are_known(volume: Volume, group: Path) -> None:
    """One that is open, and one that can only be stored into."""
    for name in ("open", "mapped", "closed"):
        (volume.live / name).write_bytes(b"x" * 4096)
    script = (
        "import mmap, os, sys, time; os.chdir(sys.argv[1]);"
        "mapped = os.open('mapped', os.O_RDWR); page = mmap.mmap(mapped, 4096);"
        "os.close(mapped); opened = os.open('open', os.O_RDWR);"
        "os.write(opened, b'ready'); time.sleep(600)"
    )
    process = subprocess.Popen(["python3", "-S", "-c", script, volume.live])
    try:
        (group / "cgroup.procs").write_text(str(process.pid))
        opened = volume.live / "open"
        wait_until(
            lambda: b"ready" in opened.read_bytes(), timeout_s=WAIT_S, what="it is open"
        )
        paused = Paused((), {Target("v2", str(group), 0, 0)})
        found = paused.inodes()
    finally:
        process.kill()
        process.wait()
    inodes = {each.name: each.stat().st_ino for each in volume.live.iterdir()}
    assert {name for name in inodes if inodes[name] in found} == {"open", "mapped"}


@ONLY_V2
def test_which_files_are_open_is_asked_of_no_server(
    tmp_path: Path, group: Path
) -> None:
    """Here of a filesystem that answers nobody, like one whose server is dead."""
    silent = tmp_path / "silent"
    silent.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR)
    options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % device
    libc.mount(b"silent", os.fsencode(silent), b"fuse", 0, options)
    script = (
        "import os, sys, time; os.open(sys.argv[1], os.O_PATH);"
        "print(flush=True); time.sleep(600)"
    )
    # Whoever asks it gets an error when it goes: this test ends in any case.
    end = threading.Timer(10, os.close, [device])
    with subprocess.Popen(
        ["python3", "-S", "-c", script, silent], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (group / "cgroup.procs").write_text(str(process.pid))
        end.start()
        with suppress(FencingError):
            Paused((), {Target("v2", str(group), 0, 0)}).inodes()
        in_time = end.is_alive()
        process.kill()
    end.cancel()
    end.join()
    if in_time:
        os.close(device)
    libc.call("umount2", os.fsencode(silent), libc.MNT_DETACH)
    assert in_time
