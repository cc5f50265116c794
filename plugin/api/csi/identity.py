"""The service Identity: who we are, and what we are able to do."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.wrappers_pb2 import BoolValue

from backends.errors import RemoraError
from plugin import __version__
from plugin.api.csi.daemon import Daemon
from plugin.api.csi.messages import Package
from plugin.api.csi.server import Handler

# A name as of a domain: what schedulers keep with each volume, and so never changes.
DRIVER_NAME: Final = "remora.io"
_CONTROLLER_SERVICE, _ACCESSIBILITY, _ONLINE = 1, 2, 1


class Identity:
    """Answers for the driver as a whole."""

    def __init__(self, csi: Package, daemon: Daemon) -> None:
        self._csi = csi
        self._daemon = daemon

    def handlers(self) -> dict[str, Handler]:
        """Return the methods."""
        return {
            "GetPluginInfo": self._info,
            "GetPluginCapabilities": self._capabilities,
            "Probe": self._probe,
        }

    def _info(self, _request: Any, _left_s: float | None) -> Any:
        return self._csi.GetPluginInfoResponse(
            name=DRIVER_NAME, vendor_version=__version__
        )

    def _capabilities(self, _request: Any, _left_s: float | None) -> Any:
        csi = self._csi
        services = [
            csi.PluginCapability(service=csi.PluginCapability_Service(type=each))
            for each in (_CONTROLLER_SERVICE, _ACCESSIBILITY)
        ]
        online = csi.PluginCapability_VolumeExpansion(type=_ONLINE)
        expansion = csi.PluginCapability(volume_expansion=online)
        return csi.GetPluginCapabilitiesResponse(capabilities=[*services, expansion])

    def _probe(self, _request: Any, _left_s: float | None) -> Any:
        try:
            self._daemon.node_name()
        except RemoraError:
            return self._csi.ProbeResponse(ready=BoolValue(value=False))
        return self._csi.ProbeResponse(ready=BoolValue(value=True))
