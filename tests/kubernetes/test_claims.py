"""Claims of the class that users get become volumes; a snapshot becomes one, too."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import pytest

from tests.kubernetes import manifests
from tests.kubernetes.cluster import Cluster, deployed
from tests.kubernetes.provisioner import Provisioner
from tests.kubernetes.volumes import lines, wait_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.long,
    pytest.mark.xdist_group("kubernetes"),
    pytest.mark.timeout(1200),
]

# The class of deploy/kubernetes/hosts.yaml.
CLASS: Final = "remora"
RETURN_S: Final = 120.0
MANY: Final = 100
MANY_DEADLINE_S: Final = 400.0


@pytest.fixture
def provisioner(cluster: Cluster) -> Iterator[Provisioner]:
    made = Provisioner(cluster)
    yield made
    made.close()


def test_a_claim_s_volume_is_made_where_its_pod_runs(
    cluster: Cluster, provisioner: Provisioner
) -> None:
    """And may go anywhere: nothing binds it to that node."""
    cluster.api.create(manifests.claim("wanted", CLASS))
    cluster.api.create(manifests.pod("wanted", "wanted", node="beta"))
    volume = provisioner.provision("wanted")
    assert cluster.wait_running("wanted") == "beta"
    wait_lines(cluster, "beta", volume, 3)
    shown = cluster["beta"].volume(volume)
    assert shown["owner"] == "beta"
    assert shown["options"]["replicas"] == "2"
    assert "default/wanted" in str(shown)
    found = cluster.api.get("PersistentVolume", volume)
    assert "nodeAffinity" not in found["spec"]


def test_a_claim_begins_as_a_snapshot(
    cluster: Cluster, provisioner: Provisioner
) -> None:
    cluster.api.create(manifests.claim("before", CLASS))
    cluster.api.create(manifests.pod("before", "before", node="alpha"))
    source = provisioner.provision("before")
    wait_lines(cluster, "alpha", source, 5)
    taken = provisioner.snapshot(source, "noon")
    kept = lines(cluster["alpha"], source)
    wait_lines(cluster, "alpha", source, kept + 5)
    of = {
        "apiGroup": "snapshot.storage.k8s.io",
        "kind": "VolumeSnapshot",
        "name": "noon",
    }
    cluster.api.create(manifests.claim("after", CLASS, source=of))
    looker = "wc -l < /v/lines > /v/found; sleep 1000"
    cluster.api.create(manifests.pod("after", "after", node="beta", script=looker))
    volume = provisioner.provision("after", snapshot=taken)
    assert cluster.wait_running("after") == "beta"
    assert 5 <= lines(cluster["beta"], volume) <= kept


def test_a_stateful_set_waits_for_somebody_s_word(
    cluster: Cluster, provisioner: Provisioner
) -> None:
    """Kubernetes starts no second pod before the first is known to have ended."""
    cluster.cordon("beta")
    cluster.api.create(manifests.stateful_set("ordered", CLASS))
    volume = provisioner.provision("data-ordered-0")
    assert cluster.wait_running("ordered") == "alpha"
    cluster.uncordon("beta")
    cluster.wait(lambda: lines(cluster["beta"], volume), "beta has a copy")
    cluster.network.cut(cluster["alpha"].host)
    cluster.wait(
        lambda: cluster.is_ending("ordered-0"), "its pod is to end", timeout_s=RETURN_S
    )
    time.sleep(5)
    assert cluster.pod("ordered", but_not_on="alpha") is None
    cluster.api.delete("Pod", "ordered-0", at_once=True)
    assert cluster.wait_running("ordered", but_not_on="alpha") == "beta"
    kept = lines(cluster["beta"], volume)
    wait_lines(cluster, "beta", volume, kept + 5)


def test_the_server_takes_what_is_in_deploy(cluster: Cluster) -> None:
    """But for a class of snapshots: no kind that it is taught works in this build."""
    # The cluster has the first two since its start.
    left_out = ("CSIDriver", "StorageClass", "VolumeSnapshotClass")
    for name in ("hosts.yaml", "daemonset.yaml", "snapshots.yaml"):
        for manifest in deployed(name):
            if manifest["kind"] not in left_out:
                cluster.api.try_to_create(manifest)


def test_a_hundred_pods_of_a_node_have_a_volume_each(
    cluster: Cluster, provisioner: Provisioner
) -> None:
    names = [f"many-{number}" for number in range(MANY)]
    script = "echo here > /v/lines; sleep 10000"
    for name in names:
        cluster.api.create(manifests.claim(name, CLASS))
        cluster.api.create(manifests.pod(name, name, node="alpha", script=script))
    began_s = time.monotonic()
    for name in names:
        provisioner.provision(name)

    def running() -> bool:
        pods = cluster.api.items("Pod")
        return [each["status"].get("phase") for each in pods] == ["Running"] * MANY

    cluster.wait(running, "all of them run", timeout_s=MANY_DEADLINE_S)
    print(f"{MANY} run after {time.monotonic() - began_s:.0f} s")
    failed = [
        each["message"]
        for each in cluster.api.items("Event")
        # That a claim is not bound yet, a kubelet hears later than the scheduler.
        if each.get("reason") == "FailedMount" and "not bound" not in each["message"]
    ]
    assert failed == []
