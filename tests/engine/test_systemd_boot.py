"""
The installed units under a real systemd, with dockerd as Debian starts it.

What `systemd-analyze` cannot tell: that the daemon can do its work within the limits
its unit sets, that dockerd sees its mounts, and that the order at boot and shutdown is
right.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support import booted
from tests.support.booted import BootedMachine
from tests.support.engine import timed
from tests.support.host import REPOSITORY, wait_until
from tests.support.images import BUSYBOX_IMAGE
from tests.support.wheels import offline

if TYPE_CHECKING:
    from collections.abc import Iterator

# One machine for the module.
pytestmark = pytest.mark.xdist_group("booted")
SERVICE = "remora.service"
# What copies of volumes have to keep, and what only a privileged process can make.
HARD_FILES = """
cd "$1"
echo plain > plain; chown 1000:1001 plain; chmod 0640 plain
cp /bin/true set-id; chown 7:8 set-id; chmod 6755 set-id
cp /bin/true capable; setcap cap_net_raw+ep capable
mknod device c 1 3; mkfifo fifo
mkdir -m 0700 private; chown 1000 private; echo secret > private/file
chown -R 1000 private; chmod 0000 private/file
ln -s /nowhere link
"""
SHOW_FILES = """
cd "$1"
find . -printf "%P %y %u:%g %m %l\\n" | sort
getcap capable; cat private/file
"""


@pytest.fixture(scope="module")
def booted_machine() -> Iterator[BootedMachine]:
    if lacks := booted.missing():
        pytest.skip(f"needs {lacks}")
    with BootedMachine() as machine:
        subprocess.run(
            [str(REPOSITORY / "packaging/install")],
            env={"PATH": "/usr/bin:/bin", "DESTDIR": str(machine.root), **offline()},
            check=True,
            capture_output=True,
            timeout=300,
        )
        machine.boot()
        machine.load_busybox()
        machine.run(["systemctl", "enable", "--now", "remora.socket", SERVICE])
        yield machine
        machine.power_off()


@pytest.fixture
def machine(booted_machine: BootedMachine) -> Iterator[BootedMachine]:
    """Return the machine with the service running, without containers and volumes."""
    booted_machine.run(["systemctl", "start", SERVICE])
    yield booted_machine
    booted_machine.run(["systemctl", "reset-failed"])
    booted_machine.run(["systemctl", "start", "remora.socket", SERVICE])
    docker_clean(booted_machine)


def docker_clean(machine: BootedMachine) -> None:
    for container in machine.out("docker", "ps", "-aq").split():
        machine.run(["docker", "rm", "-f", container])
    for volume in machine.out("docker", "volume", "ls", "-q").split():
        machine.run(["docker", "volume", "rm", volume])


def show(machine: BootedMachine, what: str, unit: str = SERVICE) -> str:
    return machine.out("systemctl", "show", "--value", f"--property={what}", unit)


def main_pid(machine: BootedMachine) -> int:
    return int(show(machine, "MainPID"))


def hold(machine: BootedMachine, volume: str, *options: str) -> None:
    machine.out(
        *("docker", "run", "-d", "--network", "none", "--name", "holder", *options),
        *("--volume-driver", "remora", "-v", f"{volume}:/v", BUSYBOX_IMAGE),
    )


def shell(machine: BootedMachine, volume: str, script: str) -> str:
    return machine.out(
        *("docker", "run", "--rm", "--network", "none"),
        *("--volume-driver", "remora", "-v", f"{volume}:/v", BUSYBOX_IMAGE),
        *("sh", "-euc", script),
    )


def references(machine: BootedMachine, volume: str) -> dict[str, int]:
    shown = json.loads(machine.out("remora", "inspect", volume, "--json"))
    counts: dict[str, int] = shown["references"]
    return counts


# Running


def test_containers_share_a_volume(machine: BootedMachine) -> None:
    """dockerd sees the daemon's mounts: they live in the same namespace."""
    shell(machine, "data", "echo kept > /v/file")
    assert shell(machine, "data", "cat /v/file") == "kept"
    assert "/var/lib/remora/mounts" not in machine.out("cat", "/proc/mounts")


def test_the_unit_limits_the_daemon(machine: BootedMachine) -> None:
    pid = main_pid(machine)
    status = dict(
        line.split(":\t", 1)
        for line in machine.out("cat", f"/proc/{pid}/status").splitlines()
        if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status["Umask"] == "0077"
    names = machine.out("capsh", f"--decode={status['CapBnd']}").partition("=")[2]
    assert set(names.split(",")) == {
        *("cap_chown", "cap_dac_override", "cap_dac_read_search", "cap_fowner"),
        *("cap_fsetid", "cap_mknod", "cap_setfcap", "cap_sys_admin", "cap_sys_ptrace"),
        *("cap_net_bind_service", "cap_setuid", "cap_setgid", "cap_sys_chroot"),
        *("cap_kill", "cap_setpcap", "cap_ipc_lock", "cap_linux_immutable"),
    }
    namespaces = [
        machine.out("readlink", f"/proc/{each}/ns/mnt") for each in ("1", str(pid))
    ]
    assert namespaces[0] == namespaces[1]


def test_only_root_comes_near(machine: BootedMachine) -> None:
    modes = machine.out(
        *("stat", "-c", "%a", "/var/lib/remora", "/run/remora"),
        *("/run/remora/control.sock", "/run/docker/plugins/remora.sock"),
    )
    assert modes.split() == ["700", "700", "600", "600"]


def test_doctor_finds_nothing_wrong(machine: BootedMachine) -> None:
    findings = json.loads(machine.out("remora", "doctor", "--json"))
    assert [each for each in findings if each["verdict"] != "ok"] == []


def test_a_copy_keeps_everything(machine: BootedMachine) -> None:
    """Owners, set-id bits, capabilities of files, devices: within the unit's limits."""
    machine.run(["docker", "volume", "create", "old"])
    local = "/var/lib/docker/volumes/old/_data"
    machine.run(["sh", "-euc", HARD_FILES, "make", local])
    machine.run(["remora", "import", "old", "--name", "new"])
    [path] = machine.out(
        *("find", "/var/lib/remora/pool/volumes", "-name", "live"),
    ).split()
    wanted, got = (
        machine.out("sh", "-euc", SHOW_FILES, "show", place) for place in (local, path)
    )
    assert got == wanted


# Crashes, stops, faults


@pytest.mark.parametrize("how", ["kill -KILL $MAINPID", "systemctl restart remora"])
def test_containers_go_on_while_it_starts_again(
    machine: BootedMachine, how: str
) -> None:
    hold(machine, "data")
    pid = main_pid(machine)
    machine.run(["sh", "-c", how.replace("$MAINPID", str(pid))])
    wait_until(
        lambda: (
            main_pid(machine) not in (0, pid)
            and show(machine, "ActiveState") == "active"
        ),
        timeout_s=20,
        what="systemd starts the daemon again",
    )
    assert references(machine, "data") == {"live": 0, "inherited": 1}
    machine.run(["docker", "exec", "holder", "sh", "-c", "echo after > /v/file"])
    assert shell(machine, "data", "cat /v/file") == "after"
    machine.run(["docker", "stop", "holder"])
    assert "/var/lib/remora/mounts" not in machine.out("cat", "/proc/mounts")


def test_a_call_starts_a_stopped_daemon(machine: BootedMachine) -> None:
    machine.run(["docker", "volume", "create", "-d", "remora", "data"])
    machine.run(["systemctl", "stop", SERVICE])
    assert show(machine, "ActiveState") == "inactive"
    assert "data" in machine.out("docker", "volume", "ls", "-q")
    # Calls are answered a moment before systemd hears of it.
    wait_until(
        lambda: show(machine, "ActiveState") == "active",
        timeout_s=30,
        what="the daemon that was started by a call serves",
    )


def test_a_stopped_socket_is_no_dead_one(machine: BootedMachine) -> None:
    """A dead socket would make every `docker volume ls` wait 15 s, for ever."""
    machine.run(["systemctl", "stop", SERVICE, "remora.socket"])
    assert machine.run(
        ["ls", "/run/docker/plugins/remora.sock"], check=False
    ).returncode
    # An engine that has called the driver looks for it until it is restarted itself.
    machine.run(["systemctl", "restart", "docker.service"])
    assert timed(lambda: machine.out("docker", "volume", "ls")) < 10


def test_a_wrong_configuration_is_told_and_given_up(machine: BootedMachine) -> None:
    file = "/etc/remora/remora.toml"
    wrong = f"mv {file} {file}.kept; printf '[daemon]\\npool = 1\\n' > {file}"
    machine.run(["sh", "-c", wrong])
    try:
        assert machine.run(["systemctl", "restart", SERVICE], check=False).returncode
        wait_until(
            lambda: (
                show(machine, "SubState") == "failed"
                and show(machine, "ActiveState", "remora.socket") == "failed"
            ),
            timeout_s=40,
            what="systemd gives up",
        )
        journal = machine.out("journalctl", "-u", SERVICE, "--no-pager", "-n", "60")
        assert "[daemon] pool" in journal
        # After its retries the engine goes on without the driver: the closed socket
        # does not let it wait for a daemon that never comes.
        machine.run(["docker", "volume", "ls"])
    finally:
        machine.run(["mv", f"{file}.kept", file])


# A pool of its own


def test_the_daemon_waits_for_the_pool_that_was_made(machine: BootedMachine) -> None:
    """This is the pool of the tests that come after it, too."""
    image, pool = "/var/lib/docker/pool.img", "/var/lib/remora/pool"
    make = ["remora", "pool", "make", "--file", image, "--size", "512M"]
    told = machine.run(make, check=False).stderr
    assert "stop it first: systemctl stop remora.socket remora.service" in told
    machine.run(["systemctl", "stop", "remora.socket", SERVICE])
    told = machine.run(make).stderr
    assert "write var-lib-remora-pool.mount" in told
    assert "note: systemctl start remora.socket remora.service" in told
    assert machine.out("findmnt", "-n", "-o", "FSTYPE", pool) == "xfs"
    device = machine.out("findmnt", "-n", "-o", "SOURCE", pool)
    wait_until(
        lambda: machine.out("losetup", "-n", "-O", "DIO", device).strip() == "1",
        timeout_s=20,
        what="nothing is kept in memory twice",
    )
    # It has nothing to do, and needs nobody to stop for that.
    machine.run(["systemctl", "start", "remora.socket", SERVICE])
    assert "done" not in machine.run(make).stderr
    shell(machine, "data", "echo kept > /v/file")
    # Who starts the daemon has the pool mounted; without the pool it is not started.
    machine.run(["systemctl", "stop", "remora.socket", SERVICE])
    machine.run(["systemctl", "stop", "var-lib-remora-pool.mount"])
    assert machine.out("ls", "-A", pool) == ""
    machine.run(["mv", image, f"{image}.away"])
    assert machine.run(["systemctl", "start", SERVICE], check=False).returncode
    assert machine.out("ls", "-A", pool) == ""
    machine.run(["mv", f"{image}.away", image])
    machine.run(["systemctl", "reset-failed"])
    machine.run(["systemctl", "start", "remora.socket", SERVICE])
    assert shell(machine, "data", "cat /v/file") == "kept"
    # Mounted again, it is so again.
    device = machine.out("findmnt", "-n", "-o", "SOURCE", pool)
    assert machine.out("losetup", "-n", "-O", "DIO", device).strip() == "1"


# Boot and shutdown


def test_containers_have_their_volumes_after_a_reboot(machine: BootedMachine) -> None:
    hold(machine, "data", "--restart", "always")
    machine.run(["docker", "exec", "holder", "sh", "-c", "echo kept > /v/file"])
    machine.power_off()
    machine.boot()
    remora, docker = (
        int(show(machine, "ActiveEnterTimestampMonotonic", unit))
        for unit in (SERVICE, "docker.service")
    )
    assert remora < docker
    # Made by systemd, for the socket, before dockerd could.
    assert machine.out("stat", "-c", "%a", "/run/docker", "/run/docker/plugins") == (
        "700\n700"
    )
    wait_until(
        lambda: "holder" in machine.out("docker", "ps", "--format", "{{.Names}}"),
        timeout_s=20,
        what="the container is back",
    )
    assert machine.out("docker", "exec", "holder", "cat", "/v/file") == "kept"
    # One mount, and none left over: at the shutdown the engine could still unmount.
    assert references(machine, "data") == {"live": 1, "inherited": 0}
