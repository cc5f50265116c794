"""What the daemon tells of a volume, for all services."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plugin.api.csi.daemon import Daemon
from plugin.api.csi.errors import CsiError
from plugin.api.csi.messages import Package
from plugin.model import NAME_PATTERN


def claimed(daemon: Daemon, volume_id: str) -> Any:
    """Return what the daemon tells of a volume; what is no name is no volume."""
    if not NAME_PATTERN.fullmatch(volume_id):
        raise CsiError("volume-not-found", "there is no volume of that name")
    return daemon.call("GET", f"/v1/claims/{volume_id}")


def condition(csi: Package, claim: Mapping[str, Any]) -> Any:
    """Return what is wrong with a volume, or that nothing is."""
    message = claim["fault"] or "it is well"
    return csi.VolumeCondition(abnormal=bool(claim["fault"]), message=message)
