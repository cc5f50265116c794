"""
How a kubelet gets to know the driver: a socket in its directory of plugins.

Kubernetes ships a program for that, which does no more.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

from plugin.api.csi.identity import DRIVER_NAME
from plugin.api.csi.messages import Package
from plugin.api.csi.server import Handler

log = logging.getLogger(__name__)
_VERSIONS: Final = ("1.0.0",)


class Registration:
    """Tells a kubelet that the driver answers at *endpoint*."""

    def __init__(self, package: Package, endpoint: Path) -> None:
        self._package = package
        self._endpoint = endpoint

    def handlers(self) -> dict[str, Handler]:
        """Return the methods."""
        return {"GetInfo": self._info, "NotifyRegistrationStatus": self._notified}

    def _info(self, _request: Any, _left_s: float | None) -> Any:
        return self._package.PluginInfo(
            type="CSIPlugin",
            name=DRIVER_NAME,
            endpoint=str(self._endpoint),
            supported_versions=_VERSIONS,
        )

    def _notified(self, request: Any, _left_s: float | None) -> Any:
        if not request.plugin_registered:
            log.error("the kubelet does not take the driver: %s", request.error)
        return self._package.RegistrationStatusResponse()
