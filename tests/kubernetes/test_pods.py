"""
Pods write to volumes, move, and lose their node; the kubelets are real.

The volumes are made by hand here, as without a provisioner.
"""

from __future__ import annotations

import time
from typing import Final

import pytest

from plugin.api.csi.identity import DRIVER_NAME
from tests.kubernetes import manifests
from tests.kubernetes.cluster import Cluster
from tests.kubernetes.volumes import count, lines, live, make, other, wait_lines

pytestmark = [
    pytest.mark.long,
    pytest.mark.xdist_group("kubernetes"),
    pytest.mark.timeout(1200),
]

# What a scheduler needs to see that a node is dead, and ours to start elsewhere.
FAILOVER_S: Final = 60.0
RETURN_S: Final = 120.0
COPIED: Final = {"replicas": "2", "interval": "1s"}


def start(cluster: Cluster, name: str, node: str) -> None:
    """Start a Deployment on *node*; it may go elsewhere from then on."""
    cluster.cordon(other(node))
    cluster.api.create(manifests.deployment(name, name))
    assert cluster.wait_running(name) == node
    cluster.uncordon(other(node))
    wait_lines(cluster, node, name, 5)


def test_the_driver_is_registered(cluster: Cluster) -> None:
    """The kubelet has asked it who it is, and where."""
    for name in cluster.nodes:
        drivers = cluster.api.get("CSINode", name)["spec"]["drivers"]
        assert drivers == [
            {"name": DRIVER_NAME, "nodeID": name, "topologyKeys": ["remora/node"]}
        ]
        assert (
            cluster.api.get("Node", name)["metadata"]["labels"]["remora/node"] == name
        )


def test_two_pods_of_a_node_share_a_volume(cluster: Cluster) -> None:
    """The volume is taken from the first one's start to the last one's end."""
    make(cluster, "shared")
    looker = "until [ -s /v/lines ]; do sleep 0.1; done; touch /v/seen; sleep 1000"
    cluster.api.create(manifests.pod("one", "shared", node="alpha"))
    cluster.api.create(manifests.pod("two", "shared", node="alpha", script=looker))
    for name in ("one", "two"):
        assert cluster.wait_running(name) == "alpha"
    node = cluster["alpha"]
    cluster.wait((live(node, "shared") / "seen").exists, "both see the same")
    shown = str(node.volume("shared"))
    assert "default/one" in shown
    assert "default/two" in shown
    cluster.api.delete("Pod", "one")
    cluster.wait(lambda: not cluster.api.find("Pod", "one"), "the first one is gone")
    assert node.volume("shared")["owner"] == "alpha"
    before = lines(node, "shared")
    cluster.api.delete("Pod", "two")
    cluster.wait(lambda: not node.mounts(), "nothing is mounted any more")
    assert lines(node, "shared") == before


def test_a_drained_node_s_pod_has_its_data_elsewhere(cluster: Cluster) -> None:
    """Every line, those of its last second as well."""
    make(cluster, "drained", **COPIED)
    start(cluster, "drained", "alpha")
    cluster.drain("alpha")
    assert cluster.wait_running("drained", but_not_on="alpha") == "beta"
    cluster.wait(lambda: not cluster["alpha"].mounts(), "alpha has let go")
    written = lines(cluster["alpha"], "drained")
    wait_lines(cluster, "beta", "drained", written + 5)
    assert cluster["beta"].volume("drained")["owner"] == "beta"


def test_a_dead_node_s_pod_runs_elsewhere_within_a_minute(cluster: Cluster) -> None:
    """From the last commit on, and what the old one would write is stopped."""
    make(cluster, "silent", **COPIED)
    start(cluster, "silent", "alpha")
    alpha, beta = cluster["alpha"], cluster["beta"]
    cluster.wait(lambda: lines(beta, "silent"), "beta has a copy")
    wait_lines(cluster, "alpha", "silent", 15)
    kept = lines(beta, "silent")
    cluster.network.cut(alpha.host)
    began_s = time.monotonic()
    cluster.wait_running("silent", but_not_on="alpha", timeout_s=FAILOVER_S)
    print(f"running elsewhere after {time.monotonic() - began_s:.1f} s")
    frozen = lines(alpha, "silent")
    wait_lines(cluster, "beta", "silent", kept + 5)
    time.sleep(1)
    assert lines(alpha, "silent") == frozen
    assert beta.volume("silent")["owner"] == "beta"
    # The node comes back: its kubelet ends the old pod, and the daemon its mount.
    cluster.network.mend(alpha.host)
    cluster.wait(lambda: not alpha.mounts(), "alpha lets go of it", timeout_s=RETURN_S)
    cluster.wait(
        lambda: lines(alpha, "silent") > frozen,
        "alpha gets the newer commits",
        timeout_s=RETURN_S,
    )


@pytest.mark.parametrize("killed", ["kubelet", "csi", "daemon"])
def test_a_program_is_killed_while_a_pod_writes(cluster: Cluster, killed: str) -> None:
    """The pod goes on, and ends as it should afterwards."""
    name = f"killed-{killed}"
    make(cluster, name)
    cluster.api.create(manifests.pod(name, name, node="alpha"))
    cluster.wait_running(name)
    alpha = cluster["alpha"]
    wait_lines(cluster, "alpha", name, 3)
    processes = alpha.containers(name)
    directory = live(alpha, name)
    alpha.kill(killed)
    before = count(directory)
    cluster.wait(lambda: count(directory) >= before + 5, "the pod writes on")
    alpha.start_again()
    cluster.wait(lambda: cluster.is_ready("alpha"), "alpha is ready")
    assert alpha.containers(name) == processes
    cluster.api.delete("Pod", name)
    cluster.wait(lambda: not cluster.api.find("Pod", name), "the pod is gone")
    cluster.wait(lambda: not alpha.mounts(), "nothing is mounted any more")


def test_a_pod_ends_while_the_driver_is_away(cluster: Cluster) -> None:
    """The kubelet asks until it is back."""
    make(cluster, "away")
    cluster.api.create(manifests.pod("away", "away", node="alpha"))
    cluster.wait_running("away")
    alpha = cluster["alpha"]
    alpha.kill("csi")
    cluster.api.delete("Pod", "away")
    cluster.wait(lambda: not alpha.containers("away"), "its container has ended")
    assert alpha.mounts()
    alpha.start_again()
    cluster.wait(lambda: not alpha.mounts(), "nothing is mounted any more")
    cluster.wait(lambda: not cluster.api.find("Pod", "away"), "the pod is gone")
