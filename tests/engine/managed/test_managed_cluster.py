"""
The managed plugin as a node of a cluster: reached, asked, killed, stopped.

Beside it, in the network of the same host, runs the daemon `beta`.
"""

from __future__ import annotations

import shutil
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine.test_systemd_peers import PROGRAM
from tests.support import etcd, peers
from tests.support.engine import started_engine
from tests.support.host import Host, wait_until
from tests.support.images import BUSYBOX_IMAGE
from tests.support.managed import RUNC_ROOT, ManagedPlugin
from tests.support.managed_cluster import (
    ADDRESS,
    NAME,
    PORT,
    RECORDS,
    Neighbour,
    PluginNode,
)
from tests.support.owners import WAIT_S, Writer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("managed-plugin")
COUNT = "i=0; while :; do i=$((i+1)); echo $i >> /v/count; usleep 50000; done"


@pytest.fixture(scope="module")
def cluster(built: Path) -> Iterator[PluginNode]:
    peers.require_programs()
    for program in etcd.PROGRAMS:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    with Host("managed-cluster") as host:
        node = PluginNode(ManagedPlugin(started_engine(host)))
        node.start_etcd()
        node.become(built)
        yield node
        node.engine.stop()


@pytest.fixture(scope="module")
def beta(cluster: PluginNode) -> Iterator[Neighbour]:
    with closing(Neighbour("beta", cluster.host)) as node:
        node.start()
        node.wait_member()
        yield node


class Counting:
    """The container `counter`, which counts in a file of volume *name*."""

    def __init__(self, node: PluginNode, name: str) -> None:
        self._node = node
        options = ("-d", "--network", "none", "--name", "counter")
        node.engine.docker(
            *("run", *options, "--volume-driver", "remora", "-v", f"{name}:/v"),
            *(BUSYBOX_IMAGE, "sh", "-c", COUNT),
        )
        status = node.engine.inspect("volume", name)["Status"]
        pool = node.host.path("/var/lib/remora/pool/volumes")
        self.id = str(status["id"])
        self._file = pool / self.id / "live/count"

    def count(self) -> int:
        """Return how far it is."""
        return len(self._file.read_text().splitlines()) if self._file.exists() else 0

    def wait_counting(self) -> None:
        before = self.count()
        wait_until(
            lambda: self.count() > before,
            timeout_s=WAIT_S,
            what="the container counts on",
            evidence=self._node.guard_log,
        )

    def stands_still(self) -> bool:
        before = self.count()
        time.sleep(0.5)
        return self.count() == before

    @property
    def running(self) -> bool:
        state = self._node.engine.inspect("container", "counter")["State"]
        return bool(state["Running"])


@pytest.fixture
def counting(cluster: PluginNode) -> Iterator[Counting]:
    found = Counting(cluster, "counted")
    found.wait_counting()
    yield found
    cluster.engine.docker("rm", "-f", "counter")
    cluster.engine.docker("volume", "rm", "counted")


def take_away(node: PluginNode, volume_id: str) -> None:
    """Delete the lock of a volume, as the end of its owner's lease does."""
    node.etcdctl("del", f"{RECORDS}v/{volume_id}/lock")


# Who it is, and who reaches it


def test_it_is_a_node_by_its_settings_and_by_the_hosts_file(
    cluster: PluginNode, beta: Neighbour
) -> None:
    row = beta.control_ok("GET", f"/v1/nodes/{NAME}")
    assert (row["addresses"], row["peer_port"]) == ([ADDRESS], PORT)
    # The machine's own, although the plugin has a root without it.
    machine_id = cluster.host.path("/etc/machine-id").read_text().strip()
    assert row["machine_id"] == machine_id
    boot_id = cluster.host.path("/proc/sys/kernel/random/boot_id").read_text()
    assert row["boot_id"] == boot_id.strip()
    assert "2 of them alive" in cluster.plugin.remora("doctor").stdout


def test_both_greet_each_other(cluster: PluginNode, beta: Neighbour) -> None:
    """Over the sshd of the other one, which each knows by its keys."""

    def greeted() -> bool:
        there = cluster.row("beta").get("clock_offset_s")
        here = beta.control_ok("GET", f"/v1/nodes/{NAME}")["clock_offset_s"]
        return there is not None and here is not None

    wait_until(
        greeted, timeout_s=90, what="both have said hello", evidence=beta.log_tail
    )


def test_it_promises_to_another_node(
    cluster: PluginNode, beta: Neighbour, counting: Counting
) -> None:
    """Its container is killed first, and what that has written is not lost."""
    beta.wait_known("counted", id=counting.id)

    def taken() -> bool:
        # The plugin takes its lock back within seconds; then this comes too late.
        take_away(cluster, counting.id)
        return not beta.call("Mount", {"Name": "counted", "ID": "one"}).error

    wait_until(taken, timeout_s=WAIT_S, what="the other node has it")
    # It is dead by now, or it would count on; its engine hears of it a bit later.
    wait_until(lambda: not counting.running, timeout_s=WAIT_S, what="its end is known")
    before = counting.count()
    copied = (beta.copy(counting.id) / "live/count").read_text()
    assert len(copied.splitlines()) == before
    beta.unmount("counted")
    assert cluster.engine.shell("counted", "wc -l < /v/count") == str(before)


def test_another_node_promises_to_it(cluster: PluginNode, beta: Neighbour) -> None:
    beta.ok("Create", Name="abroad")
    target = beta.mount("abroad")
    writer = Writer(beta, target)
    wait_until(
        lambda: "abroad" in cluster.engine.out("volume", "ls", "-q"),
        timeout_s=WAIT_S,
        what="the plugin knows the volume",
    )
    use: Any = ("run", "--rm", "--network", "none", "-v", "abroad:/v", BUSYBOX_IMAGE)

    def taken() -> bool:
        take_away(cluster, target.name)
        done = cluster.engine.docker(*use, "wc", "-l", "/v/stamps", check=False)
        return done.stdout.split(" ")[0] == str(len(writer.stamps()))

    wait_until(taken, timeout_s=WAIT_S, what="the plugin has all that was written")
    assert writer.process.poll() is not None
    beta.unmount("abroad")
    beta.ok("Remove", Name="abroad")


# Its guard


def test_its_guard_is_locked_in_memory(cluster: PluginNode) -> None:
    cluster.engine.hold("data", "holder")
    [guard] = cluster.guards()
    assert int(cluster.status(guard, "VmLck")["VmLck"].split()[0]) > 0
    assert "not locked" not in cluster.guard_log()
    cluster.engine.docker("rm", "-f", "holder")
    cluster.engine.docker("volume", "rm", "data")


def test_a_writer_goes_on_while_a_killed_plugin_starts_again(
    cluster: PluginNode, counting: Counting
) -> None:
    """The guard dies with it; the next one knows what was held, and the lease stays."""
    lease, [guard] = cluster.lease(), cluster.guards()
    epoch = cluster.engine.inspect("volume", "counted")["Status"]["epoch"]
    cluster.plugin.crash()
    counting.wait_counting()
    wait_until(
        lambda: cluster.guards() not in ([], [guard]),
        timeout_s=WAIT_S,
        what="there is another guard",
    )
    wait_until(cluster.is_ready, timeout_s=WAIT_S, what="it is a member again")
    assert cluster.lease() == lease
    status = cluster.engine.inspect("volume", "counted")["Status"]
    assert (status["epoch"], status["references"]["inherited"]) == (epoch, 1)
    counting.wait_counting()
    assert "counted" in cluster.engine.error("volume", "rm", "counted")


def test_a_stopped_daemon_has_its_writers_frozen(
    cluster: PluginNode, counting: Counting
) -> None:
    """By signals, as the plugin cannot write to control groups; and thawed after."""
    pid = str(cluster.plugin.pid)
    cluster.host.run(["kill", "-STOP", pid])
    try:
        wait_until(counting.stands_still, timeout_s=WAIT_S, what="it is frozen")
    finally:
        cluster.host.run(["kill", "-CONT", pid])
    counting.wait_counting()
    assert counting.running


# What other nodes will send it


def test_bytes_of_any_kind_come_through_its_sshd(plugin: ManagedPlugin) -> None:
    """With the plugin's own programs and capabilities, into a root of its own."""
    command = ("runc", "--root", RUNC_ROOT, "exec", plugin.id)
    mounts = ("cat", f"/proc/{plugin.pid}/mountinfo")
    before = plugin.host.run(mounts).stdout
    try:
        done = plugin.host.run(
            [*command, "/usr/bin/python3", "-I", "-c", PROGRAM],
            timeout_s=120,
            check=False,
        )
        assert "the channel works" in done.stdout, done.stdout + done.stderr
        assert plugin.host.run(mounts).stdout == before
    finally:
        plugin.host.run(["rm", "-rf", "/var/lib/remora/peers"])
