"""
After a power cut the node is up before its NFS server and before etcd.

Docker starts a container with a restart policy once, and no second time if that fails.
With a Mount that waits, with `start_containers`, or with a Docker that is held back by
`remora wait`, the container is up at the end without help, and has what it had written.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from tests.lab.etcd import DATA, EtcdCluster
from tests.lab.lab import Lab, Topology
from tests.lab.nfs import SERVER, XFS, NfsServer, unmount_all
from tests.lab.nfs_cluster import empty
from tests.lab.nfs_faults import measured
from tests.lab.services import Engine, Remora
from tests.support.host import wait_until
from tests.support.images import BUSYBOX_IMAGE

TOPOLOGY = Topology.of(SERVER, "alpha")
# The client of a server that comes back waits ever longer between its attempts.
UP_S = 90.0
# What a container does: it adds a row to each volume at each of its starts.
ADD_ROWS = "echo row >> /nfs/rows; echo row >> /own/rows; sync; exec sleep 86400"


@dataclass(frozen=True, slots=True)
class World:
    """A node with an engine, whose etcd is on its NFS server's machine."""

    lab: Lab
    server: NfsServer
    etcd: EtcdCluster
    remora: Remora
    engine: Engine

    def cut_power(self) -> None:
        """Fail all power; the node and its daemon are back before others."""
        self.lab["alpha"].power_off()
        self.server.power_off()
        self.lab["alpha"].boot()
        self.remora.start()

    def others_come(self) -> None:
        """Switch the NFS server and etcd on."""
        self.server.boot()
        self.etcd.launch("server")

    def state(self) -> str:
        """Return whether the container runs, as the engine says when it can."""
        try:
            return str(self.engine.get("/containers/web/json")["State"]["Status"])
        except OSError:
            return "dockerd does not answer"

    def logged(self, text: str) -> bool:
        """Return whether the daemon has logged *text*."""
        return text in self.remora.log.read_text(errors="replace")

    def rows(self) -> list[int]:
        """Return how many rows the volumes have: one for each start."""
        counted = "wc -l < /nfs/rows; wc -l < /own/rows"
        shown = self.engine.out("exec", "web", "sh", "-euc", counted)
        return [int(each) for each in shown.split()]

    def await_container(self) -> None:
        """Return when the container runs, with the rows of its two starts."""
        with measured("the container runs after the others have come", UP_S):
            wait_until(
                lambda: self.state() == "running",
                timeout_s=UP_S,
                what="the container runs",
                evidence=self.state,
            )
        wait_until(
            lambda: self.rows() == [2, 2],
            timeout_s=20,
            what="it has its rows",
            evidence=self.rows,
        )


@pytest.fixture
def world(lab: Lab, nfs_server: NfsServer) -> Iterator[World]:
    """Yield a node with a container that has written to an NFS and a pool volume."""
    etcd, alpha = EtcdCluster(lab, ["server"]), lab["alpha"]
    etcd.start_all()
    remora = Remora(
        alpha,
        etcd=etcd.endpoints,
        etcd_insecure="true",
        node_name="alpha",
        lease_ttl_s="8",  # that of the last boot has to end
    )
    remora.start()
    engine = alpha.start_docker()
    share = ("-o", f"server={nfs_server.ipv4}", "-o", f"share={XFS}")
    engine.docker("volume", "create", "-d", "remora", *share, "nfs")
    engine.docker("volume", "create", "-d", "remora", "own")
    engine.docker(
        *("run", "-d", "--network", "none", "--name", "web", "--restart", "always"),
        *("-v", "nfs:/nfs", "-v", "own:/own", BUSYBOX_IMAGE, "sh", "-c", ADD_ROWS),
    )
    made = World(lab, nfs_server, etcd, remora, engine)
    wait_until(lambda: made.rows() == [1, 1], timeout_s=20, what="it has written")
    alpha.run("sync")
    yield made
    lab.restore()
    if engine.running:
        engine.docker("rm", "-f", "web", check=False)
        engine.stop()
    if remora.running:
        remora.stop()
    etcd.stop_all()
    lab["server"].run(f"rm -rf {DATA}")
    unmount_all(alpha)
    alpha.run("rm -rf /var/lib/remora/*")
    empty(nfs_server)


def test_a_mount_waits_for_what_boots_later(world: World) -> None:
    world.remora.settings |= {"boot_wait_s": "300"}
    world.cut_power()
    world.engine.launch()
    wait_until(
        lambda: world.logged("waits for an answer"),
        timeout_s=60,
        what="the Mount waits",
        evidence=world.state,
    )
    # Other calls are answered meanwhile.
    assert "Volume" in world.remora.call("Get", {"Name": "own"}, timeout_s=5)
    world.others_come()
    world.await_container()


def test_a_container_is_started_when_what_it_needs_is_there(world: World) -> None:
    world.remora.settings |= {"boot_wait_s": "0", "start_containers": "true"}
    world.cut_power()
    world.engine.launch()
    wait_until(
        lambda: world.state() == "exited",
        timeout_s=60,
        what="its start has failed",
        evidence=world.state,
    )
    doctor = world.remora.cli("doctor", check=False).stdout
    assert "'web' (restart policy always) is down" in doctor
    world.others_come()
    world.await_container()
    assert world.logged("started a container that was down for its volume")


@pytest.mark.long
def test_docker_is_held_back_for_what_boots_later(world: World) -> None:
    world.remora.settings |= {"boot_wait_s": "0"}
    world.cut_power()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            world.remora.cli, "wait", "--timeout", "2m", timeout_s=2 * UP_S
        )
        world.others_come()
        assert waiting.result().returncode == 0
    world.engine.launch()
    world.await_container()
