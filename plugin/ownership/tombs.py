"""Removing this node's copies of volumes that were removed on another node."""

from __future__ import annotations

import logging
from typing import Final

from backends.base import Volume
from backends.errors import RemoraError
from plugin.logs import fields
from plugin.ownership.heads import Tomb
from plugin.ownership.view import OwnershipView

log = logging.getLogger(__name__)
_DEADLINE_S: Final = 30.0


def bury_copies(ownership: OwnershipView) -> None:
    """
    Remove each copy of a volume that has a tomb, and say so in the tomb.

    The tomb stays for good: a node that comes back after years must not bring the
    volume back.
    """
    for volume_id, tomb in ownership.heads.tombs().items():
        pending = ownership.node_id in tomb.pending
        try:
            # A node that had ceased to be a member may have a copy all the same.
            _remove_copy(ownership, volume_id, tomb)
            if pending:
                ownership.heads.acknowledge(volume_id, ownership.node_id)
        except RemoraError as error:
            log.warning(
                "the copy of a removed volume stays: %s",
                error,
                extra=fields(volume=tomb.name, id=volume_id),
            )


def _remove_copy(ownership: OwnershipView, volume_id: str, tomb: Tomb) -> None:
    backend = ownership.registry.get(tomb.backend)
    if backend.traits.reachable_from_every_node:
        return
    volume = Volume(id=volume_id, name=tomb.name, options={}, created_at="")
    if backend.copy_directory(volume) is not None:
        backend.remove(volume, deadline_s=_DEADLINE_S)
        ownership.events.add(volume, "copy-removed")
        log.info(
            "a copy goes: the volume was removed elsewhere",
            extra=fields(volume=tomb.name, id=volume_id),
        )
