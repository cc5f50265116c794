"""The service Controller: volumes are made, made larger, listed and removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from backends.errors import RemoraError
from plugin.api.csi.claimed import claimed, condition
from plugin.api.csi.daemon import Daemon, wait_s
from plugin.api.csi.errors import CsiError, invalid
from plugin.api.csi.messages import Package
from plugin.api.csi.node import TOPOLOGY_KEY
from plugin.api.csi.paging import page
from plugin.api.csi.requests import access, own, required
from plugin.api.csi.server import Handler
from plugin.model import NAME_PATTERN

# Source: csi.v1, ControllerServiceCapability.RPC.Type.
_CAPABILITIES: Final = (1, 3, 4, 5, 6, 7, 9, 11, 12, 13)
_CLAIM: Final = ("csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/pvc/name")
_ENFORCE: Final = "enforceSize"


class ControllerService:
    """Answers for the cluster, on whatever node it runs."""

    def __init__(self, csi: Package, daemon: Daemon) -> None:
        self._csi = csi
        self._daemon = daemon

    def handlers(self) -> dict[str, Handler]:
        """Return the methods; those of snapshots are in `snapshots.py`."""
        return {
            "ControllerGetCapabilities": self._capabilities,
            "CreateVolume": self._create,
            "DeleteVolume": self._delete,
            "ValidateVolumeCapabilities": self._validate,
            "ListVolumes": self._list,
            "ControllerGetVolume": self._get,
            "GetCapacity": self._capacity,
            "ControllerExpandVolume": self._expand,
        }

    def _capabilities(self, _request: Any, _left_s: float | None) -> Any:
        csi = self._csi
        return csi.ControllerGetCapabilitiesResponse(
            capabilities=[
                csi.ControllerServiceCapability(
                    rpc=csi.ControllerServiceCapability_RPC(type=each)
                )
                for each in _CAPABILITIES
            ]
        )

    def _create(self, request: Any, left_s: float | None) -> Any:
        required(request, "name")
        if not request.volume_capabilities:
            raise invalid("volume_capabilities is missing")
        if request.mutable_parameters:
            raise invalid("mutable_parameters: no parameter can be changed afterwards")
        options, enforce = _options(request.parameters)
        source = _source(request.volume_content_source)
        if source:
            options["from"] = source
        made = self._daemon.call(
            "POST",
            "/v1/claims",
            {
                "name": request.name,
                "options": options,
                "required_bytes": _size(request.capacity_range.required_bytes),
                "limit_bytes": _size(request.capacity_range.limit_bytes),
                "enforce": enforce,
                "modes": [access(each).mode for each in request.volume_capabilities],
                "node": _wished(request.accessibility_requirements),
                "claim": _claim(request.parameters),
                "wait_s": wait_s(left_s),
            },
        )
        volume = self._volume(made)
        if request.HasField("volume_content_source"):
            volume.content_source.CopyFrom(request.volume_content_source)
        if claim := _claim(request.parameters):
            volume.volume_context["claim"] = claim
        return self._csi.CreateVolumeResponse(volume=volume)

    def _delete(self, request: Any, _left_s: float | None) -> Any:
        required(request, "volume_id")
        name = request.volume_id
        if not NAME_PATTERN.fullmatch(name):  # no volume has it
            return self._csi.DeleteVolumeResponse()
        try:
            self._daemon.call("DELETE", f"/v1/volumes/{name}")
        except RemoraError as error:
            if error.code != "volume-not-found":
                raise self._explained(name, error) from None
        return self._csi.DeleteVolumeResponse()

    def _explained(self, name: str, error: RemoraError) -> RemoraError:
        """Return *error*, as one that says so if the volume is in use."""
        in_use = CsiError("in-use", error.cause, hint=error.hint)
        if error.code in ("not-owner", "backend-failed"):
            return in_use
        if error.code != "volume-busy":
            return error
        try:
            claim = claimed(self._daemon, name)
        except RemoraError:
            return error
        return in_use if claim["used"] else error

    def _validate(self, request: Any, _left_s: float | None) -> Any:
        required(request, "volume_id")
        if not request.volume_capabilities:
            raise invalid("volume_capabilities is missing")
        claim = self._claimed(request.volume_id)
        response = self._csi.ValidateVolumeCapabilitiesResponse
        try:
            for each in request.volume_capabilities:
                mode = access(each).mode
                if claim["exclusive"] and mode not in (1, 5, 6, 7):
                    raise invalid(f"access mode {mode} is for several nodes at once")
            if request.mutable_parameters:
                raise invalid("mutable_parameters: there are none")
        except CsiError as error:
            return response(message=str(error.cause))
        confirmed = self._csi.ValidateVolumeCapabilitiesResponse_Confirmed(
            volume_context=request.volume_context,
            volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
        )
        return response(confirmed=confirmed)

    def _list(self, request: Any, _left_s: float | None) -> Any:
        claims = self._daemon.call("GET", "/v1/claims")
        told, token = page(
            claims,
            lambda each: f"{each['created_at']} {each['name']}",
            token=request.starting_token,
            entries_max=request.max_entries,
        )
        csi = self._csi
        return csi.ListVolumesResponse(
            entries=[
                csi.ListVolumesResponse_Entry(
                    volume=self._volume(each),
                    status=csi.ListVolumesResponse_VolumeStatus(
                        volume_condition=self._condition(each)
                    ),
                )
                for each in told
            ],
            next_token=token,
        )

    def _get(self, request: Any, _left_s: float | None) -> Any:
        required(request, "volume_id")
        claim = self._claimed(request.volume_id)
        return self._csi.ControllerGetVolumeResponse(
            volume=self._volume(claim),
            status=self._csi.ControllerGetVolumeResponse_VolumeStatus(
                volume_condition=self._condition(claim)
            ),
        )

    def _capacity(self, request: Any, _left_s: float | None) -> Any:
        for each in request.volume_capabilities:
            access(each)
        wanted = request.accessible_topology.segments.get(TOPOLOGY_KEY, "")
        rows = self._daemon.call("GET", "/v1/nodes")
        available = [
            each["pool_available_bytes"]
            for each in rows
            if each["alive"] and not each["drained"] and wanted in ("", each["name"])
        ]
        return self._csi.GetCapacityResponse(
            available_capacity=max(available, default=0)
        )

    def _expand(self, request: Any, _left_s: float | None) -> Any:
        required(request, "volume_id", "capacity_range")
        if request.HasField("volume_capability"):
            access(request.volume_capability)
        self._claimed(request.volume_id)
        grown = self._daemon.call(
            "POST",
            f"/v1/claims/{request.volume_id}/size",
            {
                "required_bytes": _size(request.capacity_range.required_bytes),
                "limit_bytes": _size(request.capacity_range.limit_bytes),
            },
        )
        return self._csi.ControllerExpandVolumeResponse(
            capacity_bytes=grown["capacity_bytes"],
            node_expansion_required=grown["limited"],
        )

    def _claimed(self, volume_id: str) -> Any:
        """Return what the daemon tells of the volume; raises its error."""
        return claimed(self._daemon, volume_id)

    def _volume(self, claim: Mapping[str, Any]) -> Any:
        csi = self._csi
        context = {"sizeEnforced": "true" if claim["limited"] else "false"}
        source = None
        if claim["source"]:
            volume, _, snapshot = claim["source"].partition("@")
            source = csi.VolumeContentSource(
                snapshot={"snapshot_id": claim["source"]} if snapshot else None,
                volume=None if snapshot else {"volume_id": volume},
            )
        return csi.Volume(
            volume_id=claim["name"],
            capacity_bytes=claim["capacity_bytes"],
            volume_context=context if claim["capacity_bytes"] else {},
            content_source=source,
            # Else a volume may be wherever its container is: its bytes follow.
            accessible_topology=[
                csi.Topology(segments={TOPOLOGY_KEY: each}) for each in claim["nodes"]
            ],
        )

    def _condition(self, claim: Mapping[str, Any]) -> Any:
        return condition(self._csi, claim)


def _options(parameters: Mapping[str, str]) -> tuple[dict[str, str], bool]:
    """Return the volume's options in *parameters*, and if a size has to be held."""
    options = own(parameters)
    enforce = options.pop(_ENFORCE, "false")
    if enforce not in ("true", "false"):
        raise invalid(f"{_ENFORCE} is true or false, not '{enforce[:32]}'")
    if "size" in {key.lower() for key in options}:
        raise invalid(
            "parameter 'size': a volume has the size of its claim",
            hint="leave it out of the class",
        )
    return options, enforce == "true"


def _source(content: Any) -> str:
    """Return the option that says what is copied, "" if nothing is."""
    if content.HasField("snapshot"):
        source = str(content.snapshot.snapshot_id)
        if "@" not in source:
            raise CsiError("snapshot-not-found", "there is no such snapshot")
    elif content.HasField("volume"):
        source = str(content.volume.volume_id)
        if "@" in source:
            raise CsiError("volume-not-found", "there is no such volume")
    else:
        return ""
    return source


def _size(size_bytes: int) -> int:
    if size_bytes < 0:
        raise CsiError("out-of-range", f"{size_bytes} bytes are no size")
    return size_bytes


def _wished(requirement: Any) -> str:
    """Return the node on which a first copy is wanted most, "" if on none."""
    for each in (*requirement.preferred, *requirement.requisite):
        if node := each.segments.get(TOPOLOGY_KEY):
            return str(node)
    return ""


def _claim(parameters: Mapping[str, str]) -> str:
    """Return for which claim a volume is made, as far as the scheduler tells."""
    namespace, name = (parameters.get(each, "") for each in _CLAIM)
    return f"{namespace}/{name}" if name else ""
