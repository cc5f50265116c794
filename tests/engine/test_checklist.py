"""
What the engine's odd moments must not do to a volume; each was seen with a real engine.

The numbers are those of the conformance list that the project keeps: 60 a lost pool, 61
a killed dockerd, 62 `docker cp`, 63 empty bodies, 64 a slow mount, 65 and 67 a daemon
that restarts or crashes, 68 live-restore without the plugin, 69 the empty name, 70
SIGTERM, 72 many connections. 66 (hostile names) stands in test_volumes.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import CONTROL_SOCKET, PLUGIN_SOCKET, References
from tests.support.host import wait_until
from tests.support.images import BUSYBOX_IMAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.daemon import Daemon, Machine
    from tests.support.engine import Engine

    MakeMachine = Callable[..., Machine]

pytestmark = pytest.mark.xdist_group("engine-checklist")

GRACE_S = 2
RECONCILE_S = 10  # the daemon's own interval; these tests do not shorten it
CONNECTIONS = 20
POOL = "/var/lib/remora/pool"


def write(engine: Engine, container: str, text: str) -> None:
    engine.docker("exec", container, "sh", "-c", f"echo {text} > /v/f; sync")


@contextmanager
def moved_away(machine: Machine, inside: str) -> Iterator[None]:
    """Rename the host's file or directory *inside* for a while."""
    path, away = machine.host.path(inside), machine.host.path(f"{inside}.away")
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)


def test_60_a_lost_pool_loses_no_metadata(machine: Machine, engine: Engine) -> None:
    engine.docker("volume", "create", "-d", "remora", "--label", "team=blue", "data")
    engine.hold("data", "held")
    write(engine, "held", "kept")
    with moved_away(machine, POOL):
        volume = engine.inspect("volume", "data")
        assert volume["Labels"] == {"team": "blue"}
        assert volume["Status"]["phase"] == "ready"
        error = machine.daemon.call("Remove", {"Name": "data"})["Err"]
        assert error.startswith(("volume-busy: ", "backend-failed: "))
        error = engine.error("volume", "create", "-d", "remora", "other")
        assert "backend-failed: the pool " in error
        assert not machine.host.path(POOL).exists(), "a pool was made in its place"
        assert machine.daemon.cli("doctor", check=False).returncode == 1
    assert engine.out("exec", "held", "cat", "/v/f") == "kept"
    assert engine.inspect("volume", "data")["Labels"] == {"team": "blue"}


def test_60_a_lost_pool_proves_no_disuse(machine: Machine, engine: Engine) -> None:
    """Whoever cannot be looked for may be there: nothing is unmounted or removed."""
    engine.hold("data", "held")
    write(engine, "held", "kept")
    mounts = machine.mount_points()
    with moved_away(machine, POOL):
        machine.daemon.crash()
        time.sleep(GRACE_S + 1)
        assert machine.mount_points() == mounts
        assert machine.daemon.call("Remove", {"Name": "data"}).get("Err")
        assert machine.volume("data")["phase"] == "ready"
    time.sleep(1)
    assert machine.mount_points() == mounts
    assert engine.out("exec", "held", "cat", "/v/f") == "kept"
    engine.docker("stop", "held")
    machine.assert_nothing_mounted(within_s=GRACE_S + 3)
    assert engine.shell("data", "cat /v/f") == "kept"


@pytest.mark.parametrize("afterwards", ["restarts and stops", "is removed"])
def test_61_a_killed_dockerd_leaks_no_mount(
    make_machine: MakeMachine, afterwards: str
) -> None:
    machine = make_machine(disuse_grace_s=str(GRACE_S), reconcile_interval_s=None)
    engine = machine.engine
    policy = "always" if afterwards == "restarts and stops" else "no"
    engine.hold("data", "held", "--restart", policy)
    write(engine, "held", "kept")
    engine.kill()
    engine.start_again()
    if policy == "always":
        wait_until(
            lambda: engine.inspect("container", "held")["State"]["Running"],
            timeout_s=10,
            what="the container runs again",
        )
        assert machine.references("data") == References(live=1, inherited=1)
        assert engine.out("exec", "held", "cat", "/v/f") == "kept"
        engine.docker("stop", "held")
    else:
        engine.docker("rm", "-f", "held")
    machine.assert_nothing_mounted(within_s=GRACE_S + RECONCILE_S + 3)
    assert engine.shell("data", "cat /v/f") == "kept"


def test_62_cp_takes_nothing_from_a_running_container(
    machine: Machine, engine: Engine
) -> None:
    engine.hold("data", "held")
    write(engine, "held", "kept")
    copy = machine.host.work / "copy"
    for _ in range(2):
        engine.docker("cp", "held:/v/f", str(copy))
        engine.docker("cp", str(copy), "held:/v/g")
    assert machine.references("data") == References(live=1, inherited=0)
    assert machine.mounted("data")
    write(engine, "held", "later")
    assert engine.out("exec", "held", "cat", "/v/g", "/v/f") == "kept\nlater"
    engine.docker("stop", "held")
    machine.assert_nothing_mounted()
    assert engine.shell("data", "cat /v/f") == "later"


def test_62_cp_after_a_live_restore(make_machine: MakeMachine) -> None:
    machine = make_machine(live_restore=True, disuse_grace_s=str(GRACE_S))
    engine = machine.engine
    engine.hold("data", "held")
    write(engine, "held", "kept")
    engine.kill()
    engine.start_again()
    copy = machine.host.work / "copy"
    # The engine Mounts and Unmounts with the running container's id.
    engine.docker("cp", "held:/v/f", str(copy))
    time.sleep(GRACE_S + 1)
    assert machine.mounted("data")
    assert machine.references("data").inherited == 1
    assert engine.out("exec", "held", "cat", "/v/f") == "kept"
    engine.docker("stop", "held")
    machine.assert_nothing_mounted(within_s=GRACE_S + 3)


def test_62_a_cp_that_fails_takes_nothing_from_a_running_container(
    machine: Machine, engine: Engine
) -> None:
    """The engine follows the failed Mount with an Unmount of each volume."""
    engine.hold("data", "held", "--volume-driver", "remora", "-v", "other:/w")
    write(engine, "held", "kept")
    mounts = sorted(machine.mount_points())
    assert len(mounts) == 2
    copy = str(machine.host.work / "copy")
    with moved_away(machine, "/var/lib/remora/pool/pool.json"):
        assert "backend-failed" in engine.error("cp", "held:/v/f", copy)
    assert sorted(machine.mount_points()) == mounts
    for name in ("data", "other"):
        error = machine.daemon.call("Remove", {"Name": name})["Err"]
        assert error.startswith("volume-busy: ")
    engine.docker("cp", "held:/v/f", copy)
    assert sorted(machine.mount_points()) == mounts
    engine.docker("stop", "held")
    machine.assert_nothing_mounted(within_s=GRACE_S + 3)


def test_63_empty_bodies_do_nothing(daemon: Daemon) -> None:
    assert daemon.call("Create", {"Name": "data"}) == {}
    for method in ("Create", "Mount", "Unmount", "Remove", "Path"):
        status, answer = daemon.raw(f"/VolumeDriver.{method}", b"")
        assert status == 200
        assert b'"Err"' in answer
        assert b"invalid-request" in answer
    # Any answer to Get would make the engine forget the volume.
    with pytest.raises(ConnectionError):
        daemon.raw("/VolumeDriver.Get", b"")
    (row,) = daemon.cli_json("ls")
    assert (row["name"], row["references"]) == ("data", {"live": 0, "inherited": 0})


@contextmanager
def slow_mounts(daemon: Daemon, *, delay_s: float) -> Iterator[None]:
    """Make every mount of the daemon take *delay_s* longer."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    slowly = f"inject=move_mount:delay_enter={int(delay_s * 1e6)}"
    argv = ["strace", "-f", "-p", str(daemon.pid), "-o", "/dev/null", "-e", slowly]
    tracer = subprocess.Popen(argv, stderr=subprocess.PIPE)
    try:
        assert b"attached" in tracer.stderr.readline()
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(timeout=30)
        tracer.stderr.close()


def test_64_a_mount_past_its_deadline_leaves_nothing(
    make_machine: MakeMachine,
) -> None:
    machine = make_machine(mount_deadline_s="1.5", reconcile_interval_s=None)
    engine = machine.engine
    engine.docker("volume", "create", "-d", "remora", "slow")
    with slow_mounts(machine.daemon, delay_s=8):
        start = time.monotonic()
        error = engine.error(
            *("run", "--network", "none", "--volume-driver", "remora"),
            *("-v", "slow:/v", BUSYBOX_IMAGE, "true"),
        )
        assert "deadline: 'slow'" in error
        assert time.monotonic() - start < 6
        # While it hangs, everything but that volume works.
        start = time.monotonic()
        engine.docker("volume", "create", "-d", "remora", "quick")
        engine.docker("volume", "rm", "quick")
        engine.docker("volume", "ls")
        assert time.monotonic() - start < 4
        # The mount comes at last, after its caller has gone, and is undone.
        time.sleep(6)
        machine.assert_nothing_mounted(within_s=6)
    assert engine.shell("slow", "echo fine") == "fine"


def test_64_slow_volumes_do_not_wait_for_each_other(
    machine: Machine, daemon: Daemon
) -> None:
    names = [f"slow-{number}" for number in range(5)]
    for name in names:
        assert daemon.call("Create", {"Name": name}) == {}
    answers: list[dict[str, str]] = []
    with slow_mounts(daemon, delay_s=2):
        start = time.monotonic()
        threads = [
            threading.Thread(
                target=lambda name=name: answers.append(
                    daemon.call("Mount", {"Name": name, "ID": "1"})
                )
            )
            for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        duration_s = time.monotonic() - start
    assert all("Mountpoint" in answer for answer in answers)
    assert 2 <= duration_s < 3 * 2, "they waited for each other"
    for name in names:
        assert daemon.call("Unmount", {"Name": name, "ID": "1"}) == {}
    machine.assert_nothing_mounted()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_65_67_a_daemon_that_comes_back_knows_its_mounts(
    machine: Machine, engine: Engine, daemon: Daemon, end: str
) -> None:
    engine.hold("data", "held")
    write(engine, "held", "kept")
    mounts = machine.mount_points()
    getattr(daemon, end)()
    assert machine.mount_points() == mounts
    write(engine, "held", "written without a daemon")
    daemon.start()
    time.sleep(GRACE_S + 1)
    assert machine.mount_points() == mounts
    assert machine.references("data") == References(live=0, inherited=1)
    assert engine.inspect("volume", "data")["Mountpoint"] == mounts[0]
    error = daemon.call("Remove", {"Name": "data"})["Err"]
    assert error.startswith("volume-busy: ")
    engine.docker("stop", "held")
    machine.assert_nothing_mounted()
    assert engine.shell("data", "cat /v/f") == "written without a daemon"


def test_65_an_unmount_lost_while_the_daemon_is_down(
    machine: Machine, engine: Engine, daemon: Daemon
) -> None:
    engine.hold("data", "held")
    write(engine, "held", "kept")
    daemon.kill()
    # The engine tries the dead socket for 15 s, logs it and goes on.
    engine.docker("stop", "held", timeout_s=60)
    assert len(machine.mount_points()) == 1
    daemon.start()
    machine.assert_nothing_mounted(within_s=GRACE_S + 3)
    engine.docker("start", "held")
    assert engine.out("exec", "held", "cat", "/v/f") == "kept"
    assert machine.references("data") == References(live=1, inherited=0)


def test_68_live_restore_with_the_plugin_down_at_start(
    make_machine: MakeMachine,
) -> None:
    machine = make_machine(live_restore=True, disuse_grace_s=str(GRACE_S))
    engine, daemon = machine.engine, machine.daemon
    engine.hold("data", "held")
    write(engine, "held", "kept")
    engine.kill()
    daemon.stop()
    engine.start_again()
    daemon.start()
    time.sleep(GRACE_S + 1)
    # The engine has lost the reference: it lets the removal through, we must not.
    error = engine.error("volume", "rm", "data", timeout_s=90)
    assert "volume-busy: 'data' is used by" in error
    assert machine.mounted("data")
    assert machine.volume("data")["phase"] == "ready"
    assert engine.out("exec", "held", "cat", "/v/f") == "kept"
    write(engine, "held", "later")
    engine.docker("stop", "held", timeout_s=90)
    machine.assert_nothing_mounted(within_s=GRACE_S + 3)
    assert engine.shell("data", "cat /v/f") == "later"
    engine.docker("rm", "held")
    engine.docker("volume", "rm", "data")


def test_69_the_empty_name_is_not_found(daemon: Daemon) -> None:
    assert daemon.call("Create", {"Name": "data"}) == {}
    for body in ({"Name": ""}, {}):
        answer = daemon.call("Get", body)
        assert "Volume" not in answer
        assert answer["Err"].split(":")[0] in {"volume-not-found", "invalid-request"}


def test_70_sigterm_ends_at_once_and_takes_the_sockets_away(
    machine: Machine, daemon: Daemon
) -> None:
    start = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - start < 5
    assert not machine.host.path(PLUGIN_SOCKET).exists()
    assert not machine.host.path(CONTROL_SOCKET).exists()
    assert "Traceback" not in "".join(machine.host.new_log_text().values())


def test_70_sigterm_lets_a_call_under_way_end(
    machine: Machine, engine: Engine, daemon: Daemon
) -> None:
    engine.docker("volume", "create", "-d", "remora", "data")
    answers: list[dict[str, str]] = []
    with slow_mounts(daemon, delay_s=2):
        call = threading.Thread(
            target=lambda: answers.append(
                daemon.call("Mount", {"Name": "data", "ID": "f" * 64})
            )
        )
        call.start()
        wait_until(
            lambda: machine.references("data").live, timeout_s=5, what="Mount begins"
        )
        assert daemon.stop() == 0
        call.join()
    assert answers == [{"Mountpoint": machine.mount_points()[0]}]
    daemon.start()
    assert machine.references("data") == References(live=0, inherited=1)
    machine.assert_nothing_mounted(within_s=GRACE_S + 3)


def test_72_parallel_connections_are_all_served(
    machine: Machine, daemon: Daemon
) -> None:
    path = str(machine.host.path(PLUGIN_SOCKET))
    request = (
        b"POST /VolumeDriver.List HTTP/1.1\r\nHost: \r\n"
        b"User-Agent: Go-http-client/1.1\r\nContent-Length: 2\r\n\r\n{}"
    )
    connections = [socket.socket(socket.AF_UNIX) for _ in range(3 * CONNECTIONS)]
    try:
        for connection in connections:
            connection.settimeout(5)
            connection.connect(path)
        # Some say nothing, some stop in the middle, the others are served all the same.
        for connection in connections[CONNECTIONS : 2 * CONNECTIONS]:
            connection.sendall(request[:-1])
        start = time.monotonic()
        for connection in connections[2 * CONNECTIONS :]:
            connection.sendall(request)
        for connection in connections[2 * CONNECTIONS :]:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
        assert time.monotonic() - start < 3
        for connection in connections[CONNECTIONS : 2 * CONNECTIONS]:
            connection.sendall(request[-1:])
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK")
    finally:
        for connection in connections:
            connection.close()
    assert daemon.call("List", {}) == {"Volumes": []}
