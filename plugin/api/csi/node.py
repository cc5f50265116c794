"""The service Node: volumes at the paths that schedulers name on this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from plugin.api.csi.claimed import claimed, condition
from plugin.api.csi.daemon import Daemon, quoted, wait_s
from plugin.api.csi.errors import CsiError, invalid
from plugin.api.csi.messages import Package
from plugin.api.csi.requests import access, limited, own, required
from plugin.api.csi.server import Handler
from plugin.limits import TARGET_LENGTH_MAX

TOPOLOGY_KEY: Final = "remora/node"
# Source: csi.v1, NodeServiceCapability.RPC.Type, and VolumeUsage.Unit.
_CAPABILITIES: Final = (2, 3, 4, 5)
_BYTES, _NAMES = 1, 2
_POD: Final = "csi.storage.k8s.io/pod."
_EPHEMERAL: Final = "csi.storage.k8s.io/ephemeral"
# Source: Nomad's client; `per-alloc/ALLOCATION/VOLUME/MODE`.
_ALLOCATION: Final = re.compile(r"/per-alloc/(?P<alloc>[0-9a-fA-F-]{8,36})/")


class NodeService:
    """Answers for the node *node_id*, whose daemon calls itself by its own name."""

    def __init__(
        self, csi: Package, daemon: Daemon, *, node_id: str, roots: Sequence[Path]
    ) -> None:
        """Publish below *roots* alone."""
        self._csi = csi
        self._daemon = daemon
        self._node_id = node_id
        self._roots = roots

    def handlers(self) -> dict[str, Handler]:
        """Return the methods."""
        return {
            "NodeGetInfo": self._info,
            "NodeGetCapabilities": self._capabilities,
            "NodePublishVolume": self._publish,
            "NodeUnpublishVolume": self._unpublish,
            "NodeGetVolumeStats": self._stats,
            "NodeExpandVolume": self._expand,
        }

    def _info(self, _request: Any, _left_s: float | None) -> Any:
        name = self._daemon.node_name()
        return self._csi.NodeGetInfoResponse(
            node_id=limited("node_id", self._node_id or name),
            accessible_topology=self._csi.Topology(segments={TOPOLOGY_KEY: name}),
        )

    def _capabilities(self, _request: Any, _left_s: float | None) -> Any:
        csi = self._csi
        return csi.NodeGetCapabilitiesResponse(
            capabilities=[
                csi.NodeServiceCapability(rpc=csi.NodeServiceCapability_RPC(type=each))
                for each in _CAPABILITIES
            ]
        )

    def _publish(self, request: Any, left_s: float | None) -> Any:
        required(request, "volume_id", "target_path", "volume_capability")
        wanted = access(request.volume_capability)
        context = request.volume_context
        own(context)
        if context.get(_EPHEMERAL) == "true":
            raise invalid(
                "inline volumes of a pod are not made here",
                hint="use a generic ephemeral volume: a claim in the pod's template",
            )
        self._daemon.call(
            "POST",
            "/v1/published",
            {
                "name": request.volume_id,
                **self._target(request.target_path),
                "mode": wanted.mode,
                "read_only": wanted.read_only or request.readonly,
                "user": user(context, request.target_path),
                "wait_s": wait_s(left_s),
            },
        )
        return self._csi.NodePublishVolumeResponse()

    def _unpublish(self, request: Any, left_s: float | None) -> Any:
        required(request, "volume_id", "target_path")
        self._daemon.call(
            "DELETE",
            "/v1/published",
            {
                "name": request.volume_id,
                **self._target(request.target_path),
                "wait_s": wait_s(left_s),
            },
        )
        return self._csi.NodeUnpublishVolumeResponse()

    def _stats(self, request: Any, _left_s: float | None) -> Any:
        required(request, "volume_id", "volume_path")
        claim = claimed(self._daemon, request.volume_id)
        usage = self._usage(request)
        csi = self._csi
        return csi.NodeGetVolumeStatsResponse(
            usage=[
                csi.VolumeUsage(
                    unit=unit,
                    total=usage[f"total_{what}"],
                    available=usage[f"available_{what}"],
                    used=usage[f"used_{what}"],
                )
                for unit, what in ((_BYTES, "bytes"), (_NAMES, "names"))
            ],
            volume_condition=condition(csi, claim),
        )

    def _expand(self, request: Any, _left_s: float | None) -> Any:
        required(request, "volume_id", "volume_path")
        claimed(self._daemon, request.volume_id)
        self._usage(request)
        name = quoted(request.volume_id)
        held = self._daemon.call("POST", f"/v1/claims/{name}/fit")
        if held["capacity_bytes"] < request.capacity_range.required_bytes:
            raise CsiError(
                "volume-busy",
                "this node does not know the larger size yet",
                hint="retry",
            )
        return self._csi.NodeExpandVolumeResponse(capacity_bytes=held["capacity_bytes"])

    def _usage(self, request: Any) -> Any:
        """Return how full the volume is at the path of *request*; raises NOT_FOUND."""
        if len(request.volume_path) > TARGET_LENGTH_MAX:
            raise CsiError("path-not-found", "nothing is published at so long a path")
        name, target = (
            quoted(request.volume_id),
            quoted(request.volume_path.rstrip("/")),
        )
        return self._daemon.call("GET", f"/v1/claims/{name}/usage?target={target}")

    def _target(self, target: str) -> dict[str, str]:
        """Return *target* with the root that allows it; raise if none does."""
        path = target.rstrip("/")
        for root in self._roots:
            if Path(path).is_relative_to(root) and Path(path) != root:
                return {"target": path, "root": str(root)}
        roots = ", ".join(map(str, self._roots))
        raise invalid(
            f"target_path is not below {roots}", hint="--target-root allows others"
        )


def user(context: Mapping[str, str], target: str) -> dict[str, str]:
    """Return for whom a volume is published, as far as the scheduler tells."""
    found = {}
    if name := context.get(f"{_POD}name"):
        found["pod"] = f"{context.get(f'{_POD}namespace', '')}/{name}"
    if claim := context.get("claim"):
        found["claim"] = claim
    if match := _ALLOCATION.search(target):
        found["alloc"] = match["alloc"]
    return {key: text[:512] for key, text in found.items()}
