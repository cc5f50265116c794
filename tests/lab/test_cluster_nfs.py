"""Volumes on a share that one node at a time may have: `exclusive=true`."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator

import pytest

from tests.support.host import wait_until

from .etcd import EtcdCluster
from .lab import Lab
from .nfs import XFS, NfsServer, unmount_all
from .nfs_cluster import NfsNode, empty
from .services import Remora

TTL_S = 9.0
# The deadline comes four seconds before the lease's end.
DEADLINE_S = TTL_S - 4.0
# A node's one processor has other things to do: what is within 1 s elsewhere.
LATE_S = 3.0
# The volume's own mount does not count: it is copied into every namespace.
WRITER = """
mkdir -p /mnt/held
mount --bind {target} /mnt/held
exec python3 -c '
import os, time
beats = os.open("/mnt/held/beats", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    os.write(beats, b"%f\\n" % time.clock_gettime(time.CLOCK_BOOTTIME))
    os.fsync(beats)
    time.sleep(0.1)
'
"""


@pytest.fixture
def nodes(lab: Lab, nfs_server: NfsServer) -> Iterator[tuple[NfsNode, NfsNode]]:
    """Yield two nodes of a cluster, whose etcd is the file server's machine."""
    etcd = EtcdCluster(lab, ["server"])
    etcd.start_all()
    # The nodes are new ones in each test; what etcd has of the last ones stays there.
    prefix = f"/{uuid.uuid4()}/"
    made = []
    for name in ("alpha", "beta"):
        remora = Remora(
            lab[name],
            etcd=etcd.endpoints,
            etcd_insecure="true",
            etcd_prefix=prefix,
            node_name=name,
            lease_ttl_s=str(TTL_S),
            disuse_grace_s="0",
        )
        remora.start()
        made.append(NfsNode(remora, nfs_server))
    yield made[0], made[1]
    for each in made:
        if each.remora.running:
            each.remora.stop()
        unmount_all(each.node)
        each.node.run("rm -rf /var/lib/remora/*")
    etcd.stop_all()
    empty(nfs_server)


def beats(server: NfsServer, name: str) -> list[float]:
    """Return when the writer of volume *name* has written, by its node's boot clock."""
    text = server.run(["cat", f"{server.local(XFS)}/{name}/beats"], check=False)
    return [float(each) for each in text.split("\n")[:-1]]


def uptime_s(node: NfsNode) -> float:
    return float(node.node.out("cut -d' ' -f1 /proc/uptime"))


def test_one_node_at_a_time_has_it(nodes: tuple[NfsNode, NfsNode]) -> None:
    alpha, beta = nodes
    alpha.made("own", exclusive="true")
    wait_until(lambda: beta.knows("own"), timeout_s=30, what="beta knows it")
    target = alpha.mount("own")
    alpha.node.run(f"echo from alpha > {target}/file; sync")
    refused = beta.refusal("Mount", "own", ID="id")
    assert refused.startswith("not-owner: 'own' is in use on node 'alpha'")
    assert beta.mounted() == []
    assert "alpha" in beta.refusal("Remove", "own")
    alpha.unmount("own")
    target = beta.mount("own")
    assert beta.node.out(f"cat {target}/file") == "from alpha"
    assert alpha.refusal("Mount", "own", ID="id").startswith("not-owner:")
    beta.unmount("own")
    beta.remove("own")


def test_a_node_whose_daemon_is_dead_writes_no_more_when_another_has_it(
    nodes: tuple[NfsNode, NfsNode], nfs_server: NfsServer
) -> None:
    alpha, beta = nodes
    alpha.made("held", exclusive="true", mode="0777")
    target = alpha.mount("held")
    script = WRITER.format(target=target)
    writer = alpha.node.popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script]
    )
    wait_until(lambda: beats(nfs_server, "held"), timeout_s=30, what="it writes")

    alpha.remora.kill()
    killed_s = uptime_s(alpha)
    wait_until(
        lambda: "Mountpoint" in beta.remora.call("Mount", {"Name": "held", "ID": "b"}),
        timeout_s=4 * TTL_S,
        what="beta takes it over",
    )
    taken = beats(nfs_server, "held")
    assert taken[-1] < killed_s + DEADLINE_S + LATE_S
    beta.node.run(f"echo from beta > {beta.mounted()[0]}/file; sync")
    assert writer.poll() is None

    alpha.remora.start()
    wait_until(lambda: writer.poll() is not None, timeout_s=60, what="it is ended")
    assert writer.wait(5) == -signal.SIGKILL
    assert beats(nfs_server, "held") == taken
    # That nobody is left is known a moment after the last has ended.
    wait_until(
        lambda: "in use on node 'beta'" in alpha.refusal("Mount", "held", ID="again"),
        timeout_s=30,
        what="the mount is refused because of beta",
    )
    alpha.unmount("held")
    beta.unmount("held", "b")
    target = alpha.mount("held", "later")
    assert alpha.node.out(f"cat {target}/file") == "from beta"
    alpha.unmount("held", "later")
