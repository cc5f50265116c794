"""The whole Kubernetes: a control plane, two nodes, and the network between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import yaml

from plugin.api.csi.identity import DRIVER_NAME
from tests.kubernetes import build
from tests.kubernetes.api import Api, Object
from tests.kubernetes.control import ADDRESS, ControlPlane
from tests.kubernetes.node import Node
from tests.support.host import REPOSITORY, Host, wait_until
from tests.support.network import Network

if TYPE_CHECKING:
    from collections.abc import Callable

ADDRESSES: Final = {"alpha": "10.77.0.2", "beta": "10.77.0.3"}
READY_DEADLINE_S: Final = 120.0
POD_DEADLINE_S: Final = 120.0
# What tests make, in the order in which it has to go.
MADE: Final = (
    *("Deployment", "StatefulSet", "Pod", "PersistentVolumeClaim"),
    "PersistentVolume",
)


class Cluster:
    """Made with nothing running; `close` ends it, however far it has come."""

    def __init__(self) -> None:
        programs = build.programs()
        self._hosts: list[Host] = []
        try:
            self.control = ControlPlane(programs)
            self._hosts.append(self.control.host)
            self.network = Network(self.control.host, ADDRESS)
            self.nodes: dict[str, Node] = {}
            for name, address in ADDRESSES.items():
                self.nodes[name] = Node(name, address, programs)
                self._hosts.append(self.nodes[name].host)
                self.network.plug(self.nodes[name].host, address)
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    @property
    def api(self) -> Api:
        return self.control.api

    # Life

    def start(self) -> None:
        """Start everything; return when both nodes are ready and have the driver."""
        self.control.start()
        for manifest in deployed("hosts.yaml"):
            if manifest["kind"] in ("CSIDriver", "StorageClass"):
                self.api.create(manifest)
        for node in self.nodes.values():
            node.start()
        for name in self.nodes:
            self.wait(lambda n=name: self.is_ready(n), f"{name} is ready")
            self.wait(lambda n=name: self.has_driver(n), f"{name} has the driver")

    def close(self) -> None:
        for host in reversed(self._hosts):
            host.close()

    def restore(self) -> None:
        """Let everything run again, and remove what a test has made."""
        for node in self.nodes.values():
            self.network.mend(node.host)
            node.start_again()
            self.uncordon(node.name)
        for kind in MADE:
            for each in self.api.items(kind):
                self.api.delete(kind, each["metadata"]["name"], at_once=kind == "Pod")
        for kind in MADE:
            self.wait(lambda k=kind: not self.api.items(k), f"no {kind} is left")
        for name in self.nodes:
            self.wait(lambda n=name: self.is_ready(n), f"{name} is ready")
            self.wait(lambda n=name: self.has_driver(n), f"{name} has the driver")
            self.wait(lambda n=name: not self[n].mounts(), f"{name} has no mount")

    # What is there

    def is_ready(self, name: str) -> bool:
        node = self.api.find("Node", name)
        conditions = node["status"]["conditions"] if node else []
        states = {each["type"]: each["status"] for each in conditions}
        return states.get("Ready") == "True"

    def has_driver(self, name: str) -> bool:
        """Return whether the node's kubelet has met the driver."""
        found = self.api.find("CSINode", name) or {}
        drivers = (found.get("spec") or {}).get("drivers") or []
        return DRIVER_NAME in [each["name"] for each in drivers]

    def pod(self, app: str, *, but_not_on: str = "") -> Object | None:
        """Return a pod of *app* that runs and is not about to end, if there is one."""
        for each in self.api.items("Pod", f"app={app}"):
            phase = each["status"].get("phase")
            ending = "deletionTimestamp" in each["metadata"]
            node = each["spec"].get("nodeName", "")
            if phase == "Running" and not ending and node != but_not_on:
                return each
        return None

    def is_ending(self, pod: str) -> bool:
        """Return whether the pod is to end, and has not yet."""
        found = self.api.find("Pod", pod)
        return found is not None and "deletionTimestamp" in found["metadata"]

    def wait_running(
        self, app: str, *, but_not_on: str = "", timeout_s: float = POD_DEADLINE_S
    ) -> str:
        """Return the node of a pod of *app*, as soon as there is one that runs."""
        self.wait(
            lambda: self.pod(app, but_not_on=but_not_on),
            f"a pod of {app} runs, not on {but_not_on or 'any certain node'}",
            timeout_s=timeout_s,
        )
        found = self.pod(app, but_not_on=but_not_on)
        assert found is not None, "it has ended at once"
        return str(found["spec"]["nodeName"])

    def wait(
        self,
        condition: Callable[[], object],
        what: str,
        *,
        timeout_s: float = READY_DEADLINE_S,
    ) -> None:
        """Return when *condition* holds; fail with what Kubernetes tells."""
        wait_until(
            condition,
            timeout_s=timeout_s,
            interval_s=0.3,
            what=what,
            evidence=self.evidence,
        )

    def evidence(self) -> str:
        """Return the pods, and what was said about them last."""
        lines = [
            f"{each['metadata']['name']} on {each['spec'].get('nodeName')}: "
            f"{each['status'].get('phase')}"
            for each in self.api.items("Pod")
        ]
        events = sorted(self.api.items("Event"), key=_when)[-15:]
        lines += [f"{_when(each)} {each.get('message')}" for each in events]
        return "\n" + "\n".join(lines)

    # What people do

    def cordon(self, name: str) -> None:
        self.api.patch("Node", name, {"spec": {"unschedulable": True}})

    def uncordon(self, name: str) -> None:
        self.api.patch("Node", name, {"spec": {"unschedulable": None}})

    def drain(self, name: str) -> None:
        """Cordon the node and evict its pods, as `kubectl drain` does."""
        self.cordon(name)
        for each in self.api.items("Pod"):
            if each["spec"].get("nodeName") == name:
                self.api.evict(each["metadata"]["name"])


def deployed(name: str) -> list[Object]:
    """Return the documents of a file of deploy/kubernetes."""
    path = REPOSITORY / "deploy/kubernetes" / name
    return list(yaml.safe_load_all(path.read_text()))


def _when(event: Object) -> Any:
    return event.get("lastTimestamp") or event.get("eventTime") or ""
