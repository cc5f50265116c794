"""What users write: volumes, claims, pods and what makes pods."""

from __future__ import annotations

from typing import Final

from plugin.api.csi.identity import DRIVER_NAME
from tests.kubernetes.api import Object
from tests.support.images import BUSYBOX_IMAGE

# Lines that are numbered: none may be missing before the last.
WRITER: Final = """
n=$(cat /v/lines 2>/dev/null | wc -l)
while :; do n=$((n + 1)); echo $n >> /v/lines; sleep 0.2; done
"""
SIZE: Final = {"storage": "16Mi"}
# So long a pod stays with a node that is silent, once that was noticed.
TOLERATION_S: Final = 20
MODES: Final = ["ReadWriteOnce"]


def volume(name: str, **attributes: str) -> Object:
    """Return a volume that somebody has made by hand."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": SIZE,
            "accessModes": MODES,
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {"name": name, "namespace": "default"},
            "csi": {
                "driver": DRIVER_NAME,
                "volumeHandle": name,
                "volumeAttributes": attributes,
            },
        },
    }


def claim(name: str, storage_class: str = "", source: Object | None = None) -> Object:
    """Return a claim; without a class it takes the volume of its name."""
    spec = {
        "accessModes": MODES,
        "resources": {"requests": SIZE},
        "storageClassName": storage_class,
    }
    if not storage_class:
        spec["volumeName"] = name
    if source:
        spec["dataSource"] = source
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": spec,
    }


def pod(name: str, claim_name: str, *, node: str = "", script: str = WRITER) -> Object:
    """Return a pod that runs *script* with the claim at /v, on *node* if given."""
    template = _template(name, claim_name, script)
    if node:
        template["spec"]["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **template["metadata"]},
        "spec": template["spec"],
    }


def deployment(name: str, claim_name: str) -> Object:
    """Return what keeps one writer running; the old one stops first."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {"app": name}},
            "template": _template(name, claim_name, WRITER),
        },
    }


def stateful_set(name: str, storage_class: str = "") -> Object:
    """Return a writer with a claim `data-NAME-0` of its own."""
    made = claim("data", storage_class)
    made["spec"].pop("volumeName", None)
    template = _template(name, "data", WRITER)
    template["spec"].pop("volumes")
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "serviceName": name,
            "selector": {"matchLabels": {"app": name}},
            "template": template,
            "volumeClaimTemplates": [
                {"metadata": made["metadata"], "spec": made["spec"]}
            ],
        },
    }


def _template(app: str, claim_name: str, script: str) -> Object:
    silent = [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": TOLERATION_S,
        }
        for state in ("not-ready", "unreachable")
    ]
    return {
        "metadata": {"labels": {"app": app}},
        "spec": {
            "hostNetwork": True,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "tolerations": silent,
            "containers": [
                {
                    "name": "writer",
                    "image": BUSYBOX_IMAGE,
                    "imagePullPolicy": "Never",
                    "command": ["sh", "-c", script],
                    "volumeMounts": [{"name": "data", "mountPath": "/v"}],
                }
            ],
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": claim_name}}
            ],
        },
    }
