"""
deploy/ is whole: the plain manifests are the chart's, and what they name is there.

Whether a real server takes them, tests/kubernetes tries.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from backends.registry import Registry
from backends.rsync.backend import RsyncBackend
from plugin.cli.cmd_csi import csi
from plugin.volumes.options import OptionResolver

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy/kubernetes"
CHART = REPOSITORY / "deploy/chart"
FILES = ("hosts.yaml", "daemonset.yaml", "snapshots.yaml")
Object = dict[str, Any]

_found = importlib.util.spec_from_file_location(
    "manifests", REPOSITORY / "tools/manifests.py"
)
manifests = importlib.util.module_from_spec(_found)
_found.loader.exec_module(manifests)


def documents(name: str) -> list[Object]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def of_kind(name: str, kind: str) -> list[Object]:
    return [each for each in documents(name) if each["kind"] == kind]


def test_the_plain_manifests_are_the_chart_s() -> None:
    assert sorted(each.name for each in DEPLOY.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (DEPLOY / name).read_text() == manifests.rendered(
            *manifests.FORMS[name]
        ), f"{name} is out of date: make manifests"


@pytest.mark.parametrize(
    "line",
    ["{{ .Values.none }}", "{{- range .Values.image }}", '{{ include "x" . }}'],
)
def test_what_the_chart_may_not_use_is_refused(line: str) -> None:
    with pytest.raises(SystemExit, match="manifests: "):
        manifests._template(line, {"Values": {}})


def test_every_value_is_used() -> None:
    text = "".join(each.read_text() for each in (CHART / "templates").iterdir())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    used = set(re.findall(r"\.Values\.(\w+)", text))
    assert used == set(values)


@pytest.mark.parametrize("name", FILES)
def test_what_is_named_is_there(name: str) -> None:
    """Accounts, roles, volumes and labels that something in a file refers to."""
    # Snapshots come on top of one of the others.
    there = documents(name) + documents("hosts.yaml")
    names = {(each["kind"], each["metadata"]["name"]) for each in there}
    for each in documents(name):
        assert set(each) >= {"apiVersion", "kind", "metadata"}
        if role := each.get("roleRef"):
            assert (role["kind"], role["name"]) in names
            for subject in each["subjects"]:
                assert (subject["kind"], subject["name"]) in names
                assert subject["namespace"] == "kube-system"
        if template := each.get("spec", {}).get("template"):
            labels = template["metadata"]["labels"]
            assert each["spec"]["selector"]["matchLabels"] == labels
            pod = template["spec"]
            assert ("ServiceAccount", pod["serviceAccountName"]) in names
            volumes = {volume["name"] for volume in pod["volumes"]}
            for container in pod["containers"]:
                mounted = {mount["name"] for mount in container["volumeMounts"]}
                assert mounted <= volumes
                assert re.fullmatch(r"\S+:v?\d+\.\d+\.\d+", container["image"])


def test_the_driver_is_announced_without_an_attach_step() -> None:
    """With one the volume of a dead node would stay with it for ever."""
    [driver] = of_kind("hosts.yaml", "CSIDriver")
    assert driver["spec"] == {
        "attachRequired": False,
        "podInfoOnMount": True,
        "fsGroupPolicy": "File",
        "volumeLifecycleModes": ["Persistent"],
    }


def test_the_class_waits_for_the_pod_s_node() -> None:
    [made] = of_kind("hosts.yaml", "StorageClass")
    [driver] = of_kind("hosts.yaml", "CSIDriver")
    assert made["provisioner"] == driver["metadata"]["name"]
    assert made["volumeBindingMode"] == "WaitForFirstConsumer"
    assert made["allowVolumeExpansion"] is True
    registry = Registry([RsyncBackend(Path("/nowhere"), pool_id="p")])
    asked = made["parameters"]
    assert OptionResolver(registry, {}).resolve(asked).chosen == asked


def test_the_sidecars_meet_the_driver_s_socket() -> None:
    [controller] = of_kind("hosts.yaml", "Deployment")
    pod = controller["spec"]["template"]["spec"]
    [volume] = pod["volumes"]
    for container in pod["containers"]:
        assert "--csi-address=/csi/csi.sock" in container["args"]
        assert "--leader-election" in container["args"]
        [mount] = container["volumeMounts"]
        assert (mount["name"], mount["mountPath"]) == (volume["name"], "/csi")
    assert volume["hostPath"]["path"] == "/var/lib/kubelet/plugins/remora.io"
    [node] = of_kind("daemonset.yaml", "DaemonSet")
    assert f"unix://{volume['hostPath']['path']}/csi.sock" in str(node)


def test_the_node_s_mounts_are_everybody_s() -> None:
    [node] = of_kind("daemonset.yaml", "DaemonSet")
    pod = node["spec"]["template"]["spec"]
    assert pod["hostNetwork"] is True
    assert pod["hostPID"] is True
    daemon, driver = pod["containers"]
    assert daemon["securityContext"] == {"privileged": True}
    shared = {
        each["mountPath"]
        for each in daemon["volumeMounts"]
        if each.get("mountPropagation") == "Bidirectional"
    }
    assert shared == {"/var/lib/remora", "/var/lib/kubelet"}
    # The driver passes on what it is asked: it needs sockets alone.
    assert "securityContext" not in driver
    assert "/run/remora" in {each["mountPath"] for each in driver["volumeMounts"]}


def started_with() -> list[list[str]]:
    """Return how the driver is started: in the DaemonSet, and on a host."""
    [node] = of_kind("daemonset.yaml", "DaemonSet")
    _, driver = node["spec"]["template"]["spec"]["containers"]
    unit = (REPOSITORY / "systemd/remora-csi.service").read_text()
    [line] = re.findall(r"^ExecStart=(.*)$", unit.replace("\\\n", ""), re.MULTILINE)
    return [driver["command"], line.split()]


@pytest.mark.parametrize("command", started_with())
def test_the_driver_takes_what_it_is_started_with(command: list[str]) -> None:
    assert command[:2] == ["/usr/bin/remora", "csi"]
    given = csi.make_context("csi", command[2:]).params
    assert given["endpoint"] == Path("/var/lib/kubelet/plugins/remora.io/csi.sock")
    assert given["registration"] == Path("/var/lib/kubelet/plugins_registry")
