"""What kubelets, sidecars, Nomad and Swarm call, in their order, as it was recorded."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from plugin.api.csi.messages import packages
from tests.protocol.node import Node, running
from tests.support.csi import Driver, channel_to, mount
from tests.support.guides import Printed

# They share a node and its driver.
pytestmark = pytest.mark.xdist_group("csi-sequences")
KUBELET = Path("/var/lib/kubelet")
MIB = 2**20
CLAIM = {
    "csi.storage.k8s.io/pvc/name": "data-db-0",
    "csi.storage.k8s.io/pvc/namespace": "shop",
    "csi.storage.k8s.io/pv/name": "pvc-2c6b",
}


class Kubelet:
    """A kubelet that has found a socket in its directory of plugins."""

    def __init__(self, node: Node, registration: Path) -> None:
        self._package = packages()["pluginregistration"]
        self._channel = channel_to(node.path(registration))

    def ask(self, method: str, **fields: Any) -> Any:
        known = self._package.services["Registration"][method]
        call = self._channel.unary_unary(
            f"/pluginregistration.Registration/{method}",
            request_serializer=known.ask.SerializeToString,
            response_deserializer=known.answer.FromString,
        )
        return call(known.ask(**fields), timeout=20)

    def close(self) -> None:
        self._channel.close()


@pytest.mark.printed("csi.md", "Starting it", "remora csi")
def test_kubernetes(printed: Printed) -> None:
    command = printed.take().text.replace("remora", "", 1)
    with running() as node:
        # The machine's own directory stays as it is.
        node.run("mount", "-t", "tmpfs", "kubelet", "/var/lib")
        node.path(KUBELET / "plugins_registry").mkdir(parents=True)
        arguments = shlex.split(command.replace("\\\n", " "))
        driver = Driver(node, root=KUBELET, command=node.remora(*arguments))
        driver.start()
        kubelet = Kubelet(node, KUBELET / "plugins_registry/remora.io-reg.sock")
        info = kubelet.ask("GetInfo")
        assert (info.type, info.name) == ("CSIPlugin", "remora.io")
        assert info.endpoint == str(driver.socket)
        assert list(info.supported_versions) == ["1.0.0"]
        kubelet.ask("NotifyRegistrationStatus", plugin_registered=True)
        pod_with_a_claim(driver, node)
        kubelet.close()
        assert driver.stop() == 0
        # A kubelet must not find a socket at which nobody answers.
        assert not [*node.path(KUBELET).glob("**/*.sock")]


def pod_with_a_claim(driver: Driver, node: Node) -> None:
    """Do what provisioner, kubelet, resizer and snapshotter do, in 1.20 and 1.36."""
    told = driver.call("NodeGetInfo")
    topology = {"preferred": [{"segments": dict(told.accessible_topology.segments)}]}
    made = driver.call(
        "CreateVolume",
        name="pvc-2c6b",
        capacity_range={"required_bytes": MIB},
        volume_capabilities=[
            {"mount": {"fs_type": "ext4"}, "access_mode": {"mode": 7}}
        ],
        parameters=CLAIM,
        accessibility_requirements=topology,
    ).volume
    target = driver.target("0a1b", "pvc-2c6b")
    publish = {
        "volume_id": made.volume_id,
        "target_path": str(target),
        "volume_capability": {
            "mount": {"fs_type": "ext4"},
            "access_mode": {"mode": 1},  # as 1.20 has it of a claim made with 7
        },
        "volume_context": {
            **made.volume_context,
            "storage.kubernetes.io/csiProvisionerIdentity": "1-8081-remora.io",
            "csi.storage.k8s.io/pod.name": "db-0",
            "csi.storage.k8s.io/pod.namespace": "shop",
            "csi.storage.k8s.io/pod.uid": "0a1b",
            "csi.storage.k8s.io/serviceAccount.name": "default",
            "csi.storage.k8s.io/ephemeral": "false",
        },
    }
    driver.call("NodeGetCapabilities")
    driver.call("NodePublishVolume", **publish)
    status = node.get("pvc-2c6b")["Status"]
    assert status["claim"] == "shop/data-db-0"
    assert status["published"][0]["pod"] == "shop/db-0"
    at = {"volume_id": made.volume_id, "volume_path": str(target)}
    driver.call("NodeGetVolumeStats", **at)
    # The kubelet was restarted.
    driver.call("NodePublishVolume", **publish)
    asked = {"volume_id": made.volume_id, "volume_capability": mount()}
    more = {"capacity_range": {"required_bytes": 2 * MIB}}
    grown = driver.call("ControllerExpandVolume", **asked, **more)
    if grown.node_expansion_required:
        driver.call("NodeExpandVolume", **at, **more)
    for _ in range(2):
        driver.unpublish(made.volume_id, target)
    driver.call("DeleteVolume", volume_id=made.volume_id)
    assert node.names() == []


def test_nomad(driver: Driver, node: Node) -> None:
    for _ in range(2):  # every 30 s
        for method in (
            *("Probe", "GetPluginInfo", "GetPluginCapabilities", "NodeGetInfo"),
            *("ControllerGetCapabilities", "NodeGetCapabilities"),
        ):
            driver.call(method)
    capability = {"mount": {}, "access_mode": {"mode": 1}}
    made = driver.call(
        "CreateVolume", name="rows", volume_capabilities=[capability]
    ).volume
    alloc = "a1b2c3d4-0000-1111-2222-333344445555"
    parent = driver.root / f"per-alloc/{alloc}/rows"
    driver.inside(parent).mkdir(parents=True)
    target = parent / "rw-file-system-single-node-writer"
    asked = {"volume_id": made.volume_id, "target_path": str(target)}
    driver.call("NodePublishVolume", **asked, volume_capability=capability)
    assert node.get("rows")["Status"]["published"][0]["alloc"] == alloc
    driver.call("NodeUnpublishVolume", **asked)
    driver.call("NodeUnpublishVolume", **asked)
    driver.call("DeleteVolume", volume_id="rows")


def test_swarm(driver: Driver, node: Node) -> None:
    """`--scope multi --sharing all`; its engine gives no context and no topology."""
    for method in ("Probe", "NodeGetCapabilities", "NodeGetInfo"):
        driver.call(method)
    for method in ("Probe", "GetPluginCapabilities", "ControllerGetCapabilities"):
        driver.call(method)
    capability = {"mount": {}, "access_mode": {"mode": 5}}
    made = driver.call(
        "CreateVolume",
        name="rows",
        volume_capabilities=[capability],
        parameters={"mode": "0750"},
        accessibility_requirements={},
        capacity_range={},
    ).volume
    parent = driver.root / "published"
    driver.inside(parent).mkdir()
    asked = {"volume_id": made.volume_id, "target_path": str(parent / "v1x2")}
    for _ in range(2):  # its engine was restarted
        driver.call("NodePublishVolume", **asked, volume_capability=capability)
    assert node.references("rows") == (0, 1)
    driver.call("NodeUnpublishVolume", **asked)
    # `volume rm --force` forgets it without a word: people remove it.
    assert node.names() == ["rows"]
    driver.call("DeleteVolume", volume_id="rows")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--endpoint", "tcp://127.0.0.1:1"], "must be the path of a socket"),
        (["--endpoint", f"unix:///{'x' * 120}"], "at most 107 bytes"),
        (["--endpoint", "unix:///etc/hostname"], "is not a socket"),
        (["--endpoint", "/tmp/x.sock", "--target-root", "pods"], "not the absolute"),
    ],
)
def test_what_it_cannot_start_with(node: Node, arguments: list[str], told: str) -> None:
    process = node.popen(node.remora("csi", *arguments))
    assert process.wait(timeout=60) in (2, 17)
    assert told in node.log.read_text()


def test_a_second_driver_leaves_the_first_one_alone(driver: Driver, node: Node) -> None:
    second = node.popen(driver.command)
    assert second.wait(timeout=60) == 17
    assert "another process listens" in node.log.read_text()
    assert driver.call("GetPluginInfo").name


def test_only_root_can_open_its_socket(driver: Driver, node: Node) -> None:
    assert node.path(driver.socket).stat().st_mode & 0o777 == 0o600
