"""Removing this node's copies of volumes that were removed on another node."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from backends.base import Volume
from backends.errors import RemoraError
from backends.system.clock import Deadline
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership.state import Tomb
from plugin.ownership.view import OwnershipView

log = logging.getLogger(__name__)
_DEADLINE_S: Final = 30.0


def bury_copies(
    ownership: OwnershipView,
    let_go: Callable[[VolumeRecord, Deadline], None],
    keep_unknown: Callable[[VolumeRecord, Tomb], None],
) -> None:
    """
    Remove each copy of a volume that has a tomb, and say so in the tomb.

    Who removed it may not have known that it was in use here. So *let_go* unmounts it,
    or raises VolumeBusyError while it is used; then *keep_unknown* sets apart what was
    written here, if it is of no commit that was known.

    The tomb stays until each node of its time has: a node that comes back after years
    must not bring the volume back.
    """
    node_id = ownership.node_id
    try:
        # A node that had ceased to be a member may have a copy all the same.
        spare = ownership.spare_copies()
        gone = [
            volume_id
            for volume_id, tomb in ownership.heads.tombs_for(node_id, spare).items()
            if _is_removed(ownership, volume_id, tomb, let_go, keep_unknown)
        ]
        ownership.heads.acknowledge(gone, node_id)
    except RemoraError as error:
        log.warning("copies of removed volumes are dealt with later: %s", error)


def _is_removed(
    ownership: OwnershipView,
    volume_id: str,
    tomb: Tomb,
    let_go: Callable[[VolumeRecord, Deadline], None],
    keep_unknown: Callable[[VolumeRecord, Tomb], None],
) -> bool:
    """Remove the copy; return whether it is gone."""
    volume = Volume(id=volume_id, name=tomb.name, options={}, created_at="")
    about = fields(volume=tomb.name, id=volume_id)
    try:
        backend = ownership.registry.get(tomb.backend)
        if backend.copy_directory(volume) is not None:
            record = VolumeRecord.of(volume, backend=tomb.backend)
            let_go(record, Deadline(_DEADLINE_S))
            keep_unknown(record, tomb)
            backend.remove(volume, deadline_s=_DEADLINE_S)
            ownership.events.add(volume, "copy-removed")
            log.info("a copy goes: the volume was removed elsewhere", extra=about)
    except RemoraError as error:
        log.warning("the copy of a removed volume stays: %s", error, extra=about)
        return False
    return True
