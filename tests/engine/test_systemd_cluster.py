"""
The installed service as a node of a cluster, under a real systemd, with an etcd.

Within the unit's limits the daemon has to keep an sshd and a guard, and the guard has
to outlive it as long as volumes are mounted, and no longer.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.test_systemd_boot import SERVICE, docker_clean, main_pid, references
from tests.support import booted, etcd
from tests.support.booted import BootedMachine
from tests.support.host import REPOSITORY, wait_until
from tests.support.images import BUSYBOX_IMAGE
from tests.support.wheels import offline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# One machine for the module.
pytestmark = pytest.mark.xdist_group("booted")
UNITS = ("remora.socket", SERVICE)
WAIT_S = 60
ENDPOINT = "http://127.0.0.1:2379"
COUNT = "i=0; while :; do i=$((i+1)); echo $i >> /v/count; usleep 50000; done"
ALIVE = "/remora/records/alive/"
_GROUPS = ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup")


class Node:
    """The machine as a node, with an etcd in its network."""

    def __init__(self, machine: BootedMachine, directory: Path) -> None:
        self.machine = machine
        self._directory = directory
        self._etcd: subprocess.Popen[bytes] | None = None

    def _inside(self, *command: str) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.machine.pid}/ns/net", "--", *command]

    def start_etcd(self) -> None:
        """Start etcd; return when it answers."""
        options = (
            "--listen-client-urls",
            ENDPOINT,
            "--advertise-client-urls",
            ENDPOINT,
        )
        guard = ("setpriv", "--pdeathsig", "KILL", "--")
        with (self._directory / "log").open("ab") as log:
            self._etcd = subprocess.Popen(
                [
                    *guard,
                    *self._inside("etcd", "--data-dir", str(self._directory / "data")),
                    *options,
                ],
                stdout=log,
                stderr=log,
            )
        wait_until(
            lambda: not self._etcdctl("endpoint", "health").returncode,
            timeout_s=WAIT_S,
            what="etcd answers",
        )

    def stop_etcd(self) -> None:
        if self._etcd is not None:
            self._etcd.kill()
            self._etcd.wait(timeout=10)

    def _etcdctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._inside("etcdctl", *arguments),
            env={"PATH": os.environ["PATH"], "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    def row(self) -> Any:
        """Return what the daemon says of its node."""
        done = self.machine.run(["remora", "node", "ls", "--json"], check=False)
        return json.loads(done.stdout)[0] if not done.returncode else {"state": ""}

    def wait_ready(self) -> None:
        wait_until(
            lambda: self.row()["state"] == "ready" and not self.row()["fault"],
            timeout_s=WAIT_S,
            what="the machine is a member",
            evidence=self.journal,
        )

    def journal(self) -> str:
        return self.machine.out("journalctl", "-u", SERVICE, "--no-pager", "-n", "60")

    def lease(self) -> int:
        """Return the lease that what the node owns hangs on."""
        key = ALIVE + self.row()["id"]
        [found] = json.loads(self._etcdctl("get", key, "-w", "json").stdout)["kvs"]
        return int(found["lease"])

    def processes(self, clue: str) -> list[int]:
        """Return the processes of the machine with *clue* in their command lines."""
        done = self.machine.run(["pgrep", "-f", clue], check=False)
        return [int(each) for each in done.stdout.split()]

    def guards(self) -> list[int]:
        return self.processes("plugin.fencing.guard import main")

    def left_processes(self) -> list[int]:
        """Return what runs in the service's control group."""
        # Of the first version of control groups, or of the second.
        groups = [f"{root}/system.slice/{SERVICE}/cgroup.procs" for root in _GROUPS]
        found = self.machine.run(["cat", *groups], check=False)
        return [int(each) for each in found.stdout.split()]


@pytest.fixture(scope="module")
def booted_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    if lacks := booted.missing():
        pytest.skip(f"needs {lacks}")
    directory = etcd.memory_directory(tmp_path_factory.mktemp("etcd-booted"))
    with BootedMachine() as machine:
        subprocess.run(
            [str(REPOSITORY / "packaging/install")],
            env={"PATH": "/usr/bin:/bin", "DESTDIR": str(machine.root), **offline()},
            check=True,
            capture_output=True,
            timeout=300,
        )
        file = machine.root / "etc/remora/remora.toml"
        section = f'[cluster]\netcd = ["{ENDPOINT}"]\nnode_name = "booted"\n'
        file.write_text(file.read_text().replace("[cluster]\n", section))
        machine.boot()
        machine.load_busybox()
        found = Node(machine, directory)
        try:
            found.start_etcd()
            machine.run(["systemctl", "enable", "--now", *UNITS])
            yield found
        finally:
            found.stop_etcd()
        machine.power_off()


@pytest.fixture
def node(booted_node: Node) -> Iterator[Node]:
    """Return the node, which is a member and has neither containers nor volumes."""
    machine = booted_node.machine
    machine.run(["systemctl", "start", *UNITS])
    booted_node.wait_ready()
    yield booted_node
    machine.run(["systemctl", "reset-failed"])
    machine.run(["systemctl", "start", *UNITS])
    booted_node.wait_ready()
    docker_clean(machine)


class Counting:
    """The container `counter`, which counts in a file of the volume `data`."""

    def __init__(self, node: Node) -> None:
        self._machine = node.machine
        self._machine.out(
            *("docker", "run", "-d", "--network", "none", "--name", "counter"),
            *("--volume-driver", "remora", "-v", "data:/v", BUSYBOX_IMAGE),
            *("sh", "-c", COUNT),
        )
        found = "find /var/lib/remora/pool/volumes/*/live -name count"
        wait_until(
            lambda: self._machine.run(["sh", "-c", found], check=False).stdout,
            timeout_s=WAIT_S,
            what="the container counts",
        )
        self._file = self._machine.out("sh", "-c", found)

    def count(self) -> int:
        """Return how far it is."""
        return int(self._machine.out("wc", "-l", self._file).split()[0])

    def wait_counting(self) -> None:
        before = self.count()
        wait_until(lambda: self.count() > before, timeout_s=WAIT_S, what="it counts on")

    def stands_still(self) -> bool:
        before = self.count()
        time.sleep(0.5)
        return self.count() == before


@pytest.fixture
def counting(node: Node) -> Counting:
    found = Counting(node)
    found.wait_counting()
    return found


def test_all_that_a_node_needs_runs_within_the_units_limits(node: Node) -> None:
    machine = node.machine
    findings = json.loads(machine.out("remora", "doctor", "--json"))
    wrong = [each["check"] for each in findings if each["verdict"] != "ok"]
    # The machine's root is no place for databases.
    assert wrong == ["pool filesystem"]
    wait_until(
        lambda: "sshd: Server listening on 0.0.0.0 port 7424" in node.journal(),
        timeout_s=WAIT_S,
        what="other nodes can reach it",
    )
    # An sshd with a mount and a process namespace of its own.
    [listener] = node.processes("sshd: .*/var/lib/remora/peer/sshd_config")
    for kind in ("mnt", "pid"):
        there, here = (
            machine.out("readlink", f"/proc/{each}/ns/{kind}")
            for each in (listener, main_pid(machine))
        )
        assert there != here
    [guard] = node.guards()
    status = machine.out("cat", f"/proc/{guard}/status")
    [locked] = [each for each in status.splitlines() if each.startswith("VmLck:")]
    assert int(locked.split()[1]) > 0
    log = machine.out("cat", "/var/lib/remora/fencing/guard.log")
    assert "not locked" not in log


@pytest.mark.parametrize("how", ["systemctl restart remora", "kill -KILL $MAINPID"])
def test_mounts_lease_and_guard_outlive_the_daemon(
    node: Node, counting: Counting, how: str
) -> None:
    machine = node.machine
    pid, lease, guards = main_pid(machine), node.lease(), node.guards()
    assert len(guards) == 1
    machine.run(["sh", "-c", how.replace("$MAINPID", str(pid))])
    wait_until(
        lambda: main_pid(machine) not in (0, pid),
        timeout_s=WAIT_S,
        what="systemd starts the daemon again",
    )
    node.wait_ready()
    assert node.guards() == guards
    assert node.lease() == lease
    assert references(machine, "data") == {"live": 0, "inherited": 1}
    shown = json.loads(machine.out("remora", "inspect", "data", "--json"))
    assert shown["epoch"] == 1
    counting.wait_counting()


def test_a_stopped_service_leaves_its_guard_while_a_volume_is_mounted(
    node: Node, counting: Counting
) -> None:
    """Which then does what it is there for, and undoes it for the next daemon."""
    machine, guards = node.machine, node.guards()
    machine.run(["systemctl", "stop", *UNITS])
    assert node.left_processes() == guards
    assert node.guards() == guards
    wait_until(counting.stands_still, timeout_s=WAIT_S, what="its writers are frozen")
    machine.run(["systemctl", "start", *UNITS])
    node.wait_ready()
    counting.wait_counting()
    assert node.guards() == guards


def test_a_stopped_service_leaves_nothing_without_volumes(
    node: Node, counting: Counting
) -> None:
    machine = node.machine
    counting.wait_counting()
    machine.run(["docker", "rm", "-f", "counter"])
    machine.run(["systemctl", "stop", *UNITS])
    wait_until(
        lambda: not node.left_processes(), timeout_s=WAIT_S, what="its guard ends"
    )
    assert node.processes("remora|plugin.fencing|sshd_config") == []
    assert "/var/lib/remora/mounts" not in machine.out("cat", "/proc/mounts")
    assert machine.run(["ls", "/run/remora"], check=False).returncode
