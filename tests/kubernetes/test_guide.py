"""The guide to Kubernetes, command by command, with Kubernetes' own command."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.kubernetes.cluster import Cluster
from tests.kubernetes.control import DIRECTORY, KUBECONFIG
from tests.kubernetes.provisioner import Provisioner
from tests.kubernetes.volumes import lines, other, wait_lines
from tests.support import guides, managed
from tests.support.guides import Printed, changed
from tests.support.host import REPOSITORY
from tests.support.images import BUSYBOX_IMAGE

pytestmark = [
    pytest.mark.long,
    pytest.mark.xdist_group("kubernetes"),
    pytest.mark.timeout(1200),
]

PAGE: Final = "kubernetes.md"
COMMAND_DEADLINE_S: Final = 120.0
IMAGE_DEADLINE_S: Final = 600.0
WRITER: Final = (
    "while :; do echo $(($(wc -l < /v/lines) + 1)) >> /v/lines; sleep 1; done"
)
# A database of the tests' own, which needs no registry and no network of pods.
IN_ITS_PLACE: Final = {
    "mariadb:10.11": f"{BUSYBOX_IMAGE}\n          imagePullPolicy: Never\n"
    f"          command: [sh, -c, 'touch /v/lines; {WRITER}']",
    "/var/lib/mysql": "/v",
    "    spec:\n": "    spec:\n      hostNetwork: true\n",
}


class Kubectl:
    """Types commands on the machine of the control plane, in the checkout."""

    def __init__(self, cluster: Cluster) -> None:
        self._host = cluster.control.host
        self._path = cluster.control.programs

    def type(self, command: str) -> str:
        script = (
            f"export PATH={self._path}:$PATH KUBECONFIG={KUBECONFIG}\n"
            f"cd {DIRECTORY}/typed && {command}"
        )
        directory = self._host.path(f"{DIRECTORY}/typed")
        directory.mkdir(exist_ok=True)
        if not (directory / "deploy").exists():
            (directory / "deploy").symlink_to(REPOSITORY / "deploy")
        done = self._host.run(
            ["sh", "-euc", script], timeout_s=COMMAND_DEADLINE_S, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def write(self, name: str, text: str) -> None:
        self.type("true")
        self._host.path(f"{DIRECTORY}/typed/{name}").write_text(text)


@pytest.fixture
def kubectl(cluster: Cluster) -> Kubectl:
    return Kubectl(cluster)


@pytest.mark.printed("kubernetes.md", "On the hosts", "kubectl")
@pytest.mark.printed("kubernetes.md", "A claim and its pod")
@pytest.mark.printed("kubernetes.md", "A node dies")
def test_a_claim_s_pod_and_the_end_of_its_node(
    cluster: Cluster, kubectl: Kubectl, printed: Printed
) -> None:
    kubectl.type(printed.take("kubectl apply -f deploy").text)
    try:
        [first, *_] = [each for each in guides.blocks(PAGE) if each.language == "yaml"]
        kubectl.write("shop.yaml", changed(first.text, IN_ITS_PLACE))
        kubectl.type(printed.take("kubectl apply -f shop.yaml").text)
        provisioner = Provisioner(cluster)
        volume = provisioner.provision("rows")
        provisioner.close()
        node = cluster.wait_running("shop")
        wait_lines(cluster, node, volume, 3)
        assert "Bound" in kubectl.type(printed.take("kubectl get pvc").text)
        assert node in kubectl.type(printed.take("kubectl get pods").text)
        names = {"shop-0": _pod(cluster), "beta": node}
        kubectl.type(changed(printed.take("kubectl delete pod").text, names))
        cluster.wait(lambda: _pod(cluster) not in ("", names["shop-0"]), "another pod")
        node = cluster.wait_running("shop")
        kubectl.type(changed(printed.take("kubectl drain").text, {"beta": node}))
        assert cluster.wait_running("shop", but_not_on=node) == other(node)
        written = lines(cluster[node], volume)
        wait_lines(cluster, other(node), volume, written + 2)
        cluster.uncordon(node)
        taint = changed(printed.take("kubectl taint").text, {"beta": other(node)})
        kubectl.type(taint)
        assert cluster.wait_running("shop", but_not_on=other(node)) == node
        kubectl.type(f"{taint.rpartition('=')[0]}-")
    finally:
        kubectl.type("kubectl -n kube-system delete deployment remora-controller")


def _pod(cluster: Cluster) -> str:
    """Return the name of the shop's pod that runs, or ''."""
    found = cluster.pod("shop")
    return str(found["metadata"]["name"]) if found else ""


@pytest.mark.printed("kubernetes.md", "Snapshots, and a backup of a claim")
def test_what_is_applied_for_snapshots(kubectl: Kubectl, printed: Printed) -> None:
    kind = {"plural": "volumesnapshotclasses", "kind": "VolumeSnapshotClass"}
    kubectl.write("crd.yaml", json.dumps(_definition(**kind)))
    kubectl.type("kubectl apply -f crd.yaml")
    kubectl.type("kubectl wait --for condition=established -f crd.yaml")
    kubectl.type(printed.take().text)
    assert "remora.io" in kubectl.type("kubectl get volumesnapshotclass -o yaml")
    kubectl.type("kubectl delete -f deploy/kubernetes/snapshots.yaml")


def _definition(*, plural: str, kind: str) -> dict[str, Any]:
    """Return a kind of which the server knows no more than its name."""
    group = "snapshot.storage.k8s.io"
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": anything},
    }
    # Groups of Kubernetes' own have to say that somebody has looked at them.
    approved = {"api-approved.kubernetes.io": "https://github.com/kubernetes"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}", "annotations": approved},
        "spec": {
            "group": group,
            "scope": "Cluster",
            "names": {"plural": plural, "kind": kind, "singular": kind.lower()},
            "versions": [version],
        },
    }


@pytest.mark.printed("kubernetes.md", "In a DaemonSet")
def test_the_image_of_the_daemon_set(
    cluster: Cluster, kubectl: Kubectl, printed: Printed
) -> None:
    """Both commands of it start; the DaemonSet wants one pod on each node."""
    built = REPOSITORY / "build/image/remora.tar"
    _make(printed.take("make image").text)
    names = {"remora.tar": str(built)}
    importing = changed(printed.take("ctr").text, names).split()
    for node in cluster.nodes.values():
        node.host.run(importing, timeout_s=COMMAND_DEADLINE_S)
    script = "/usr/bin/remora --version && /usr/bin/remora csi --help"
    kubectl.write("pod.json", json.dumps(_once("tried", script)))
    kubectl.type("kubectl apply -f pod.json")
    cluster.wait(
        lambda: cluster.api.get("Pod", "tried")["status"]["phase"] == "Succeeded",
        "the image's programs run",
    )
    kubectl.type(printed.take("kubectl apply").text)
    try:
        ask = "kubectl -n kube-system get daemonset remora-node -o json"

        def wanted() -> bool:
            status = json.loads(kubectl.type(ask))["status"]
            return status.get("desiredNumberScheduled") == len(cluster.nodes)

        cluster.wait(wanted, "a pod is wanted on each node")
    finally:
        kubectl.type("kubectl -n kube-system delete daemonset remora-node")
        kubectl.type("kubectl -n kube-system delete deployment remora-controller")


def _make(command: str) -> None:
    if lacking := managed.missing():
        pytest.skip(f"needs {lacking}")
    subprocess.run(
        command.split(),
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        timeout=IMAGE_DEADLINE_S,
    )


def _once(name: str, script: str) -> dict[str, Any]:
    text = Path(REPOSITORY / "deploy/chart/values.yaml").read_text()
    image = text.partition("\nimage: ")[2].partition("\n")[0]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "hostNetwork": True,
            "automountServiceAccountToken": False,
            "containers": [
                {"name": name, "image": image, "command": ["sh", "-euc", script]}
            ],
        },
    }
