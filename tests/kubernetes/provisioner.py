"""
A small provisioner: it turns claims into calls to the driver, and answers into volumes.

It plays what Kubernetes' own sidecars do for users, which no package has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc

from plugin.api.csi.identity import DRIVER_NAME
from tests.kubernetes.node import DRIVER_SOCKET
from tests.support.csi import mount, package

if TYPE_CHECKING:
    from tests.kubernetes.api import Object
    from tests.kubernetes.cluster import Cluster

SELECTED: Final = "volume.kubernetes.io/selected-node"
METADATA: Final = "csi.storage.k8s.io"
TOPOLOGY_KEY: Final = "remora/node"
# The mode that sidecars ask for where a driver knows it. Source: csi.v1.
SINGLE_NODE_MULTI_WRITER: Final = 7
CALL_DEADLINE_S: Final = 60.0
SIZE_BYTES: Final = 16 * 2**20


class Provisioner:
    """One beside the driver of the node *name*, whose answers hold for the cluster."""

    def __init__(self, cluster: Cluster, name: str = "alpha") -> None:
        self._cluster = cluster
        socket = cluster[name].host.path(DRIVER_SOCKET)
        self._channel = grpc.insecure_channel(f"unix:{socket}")

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, **fields: Any) -> Any:
        """Return the driver's answer."""
        known = package().services["Controller"][method]
        call = self._channel.unary_unary(
            f"/csi.v1.Controller/{method}",
            request_serializer=known.ask.SerializeToString,
            response_deserializer=known.answer.FromString,
        )
        return call(known.ask(**fields), timeout=CALL_DEADLINE_S)

    def provision(self, claim_name: str, *, snapshot: str = "") -> str:
        """
        Make the volume of a claim once a pod wants it; return its name.

        It begins as *snapshot*, the id of one, if that is given.
        """
        api = self._cluster.api
        self._cluster.wait(
            lambda: self._selected(claim_name), f"{claim_name} is wanted"
        )
        claim = api.get("PersistentVolumeClaim", claim_name)
        made_of = api.get("StorageClass", claim["spec"]["storageClassName"])
        fields: dict[str, Any] = {
            "name": f"pvc-{claim['metadata']['uid']}",
            "capacity_range": {"required_bytes": SIZE_BYTES},
            "volume_capabilities": [mount(SINGLE_NODE_MULTI_WRITER)],
            "parameters": {
                **made_of.get("parameters", {}),
                f"{METADATA}/pvc/name": claim_name,
                f"{METADATA}/pvc/namespace": "default",
                f"{METADATA}/pv/name": f"pvc-{claim['metadata']['uid']}",
            },
            "accessibility_requirements": self._places(self._selected(claim_name)),
        }
        if snapshot:
            fields["volume_content_source"] = {"snapshot": {"snapshot_id": snapshot}}
        volume = self.call("CreateVolume", **fields).volume
        api.create(_persistent(volume, claim))
        self._cluster.wait(lambda: self._bound(claim_name), f"{claim_name} is bound")
        return str(volume.volume_id)

    def snapshot(self, volume: str, name: str) -> str:
        """Return the id of a new snapshot that is ready."""
        made = self.call("CreateSnapshot", source_volume_id=volume, name=name).snapshot
        assert made.ready_to_use
        return str(made.snapshot_id)

    def _selected(self, claim_name: str) -> str:
        """Return the node of the pod that waits for the claim, or ''."""
        claim = self._cluster.api.find("PersistentVolumeClaim", claim_name) or {}
        found = claim.get("metadata", {}).get("annotations", {})
        return str(found.get(SELECTED, ""))

    def _bound(self, claim_name: str) -> bool:
        claim = self._cluster.api.get("PersistentVolumeClaim", claim_name)
        return bool(claim["status"]["phase"] == "Bound")

    def _places(self, selected: str) -> dict[str, Any]:
        names = sorted(self._cluster.nodes, key=lambda name: name != selected)
        places = [{"segments": {TOPOLOGY_KEY: name}} for name in names]
        return {"requisite": places, "preferred": places}


def _persistent(volume: Any, claim: Object) -> Object:
    spec = claim["spec"]
    # It may be used wherever it is wanted: its bytes come along.
    assert not volume.accessible_topology
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": volume.volume_id,
            "annotations": {"pv.kubernetes.io/provisioned-by": DRIVER_NAME},
        },
        "spec": {
            "capacity": spec["resources"]["requests"],
            "accessModes": spec["accessModes"],
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": spec["storageClassName"],
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "name": claim["metadata"]["name"],
                "namespace": "default",
                "uid": claim["metadata"]["uid"],
            },
            "csi": {
                "driver": DRIVER_NAME,
                "volumeHandle": volume.volume_id,
                "volumeAttributes": dict(volume.volume_context),
            },
        },
    }
