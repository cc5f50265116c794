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
        self._cluster = cluster
        self._host = cluster.control.host
        self._path = cluster.control.programs

    def type(self, command: str) -> str:
        script = (
            f"export PATH={self._path}:$PATH KUBECONFIG={KUBECONFIG}\n"
            f"cd {DIRECTORY}/typed && exec {command}"
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

    def deploy(self, command: str) -> None:
        """Apply a file of deploy/, whose Deployment gets no pod: it has no images."""
        for node in self._cluster.nodes:
            self._cluster.cordon(node)
        self.type(command)
        self.type("kubectl -n kube-system get deployment remora-controller")
        self.type("kubectl -n kube-system delete deployment remora-controller")
        for node in self._cluster.nodes:
            self._cluster.uncordon(node)

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
    kubectl.deploy(printed.take("kubectl apply -f deploy").text)
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


def _pod(cluster: Cluster) -> str:
    """Return the name of the shop's pod that runs, or ''."""
    found = cluster.pod("shop")
    return str(found["metadata"]["name"]) if found else ""


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
    kubectl.deploy(printed.take("kubectl apply").text)
    try:
        ask = "kubectl -n kube-system get daemonset remora-node -o json"

        def wanted() -> bool:
            status = json.loads(kubectl.type(ask))["status"]
            return status.get("desiredNumberScheduled") == len(cluster.nodes)

        cluster.wait(wanted, "a pod is wanted on each node")
    finally:
        kubectl.type("kubectl -n kube-system delete daemonset remora-node")


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
