"""
Letting the cluster know what this node has set apart.

The record follows the bytes. Where a crash came in between, or the cluster did not
answer, `mend` brings the two together, at the daemon's start and in every pass of the
reconciler.
"""

from __future__ import annotations

import logging
from typing import Final

from backends.errors import RemoraError
from backends.rsync.quarantine import Quarantine, Tree
from plugin.logs import fields
from plugin.membership.quarantine_records import QuarantineRecord
from plugin.ownership.view import OwnershipView

log = logging.getLogger(__name__)
# A million names or so; beyond, the record says at least how much there is.
_COUNT_DEADLINE_S: Final = 2.0


def record_of(quarantine: Quarantine, tree: Tree) -> QuarantineRecord:
    """Return the record of *tree*, counted as far as time allows."""
    size = quarantine.measure(tree, deadline_s=_COUNT_DEADLINE_S)
    return QuarantineRecord(
        set_apart_at=tree.set_apart_at,
        files=size.files,
        size_bytes=size.size_bytes,
        whole=size.whole,
    )


def note(ownership: OwnershipView, quarantine: Quarantine, volume_id: str) -> None:
    """Write the records of what was set apart of a volume, or leave it to `mend`."""
    try:
        for tree in quarantine.of(volume_id):
            _note(ownership, quarantine, tree)
    except RemoraError as error:
        log.warning("others hear of it later: %s", error, extra=fields(id=volume_id))


def forget(ownership: OwnershipView, volume_id: str, commit: str) -> bool:
    """Delete the record of what was discarded; return whether that was done."""
    try:
        ownership.quarantine_records.drop(volume_id, ownership.node_id, commit)
    except RemoraError as error:
        log.warning("others hear of it later: %s", error, extra=fields(id=volume_id))
        return False
    return True


def mend(ownership: OwnershipView, quarantine: Quarantine) -> None:
    """
    Make this node's records agree with what lies on its disk.

    Raises:
        BackendError: the pool is not there; StoreError: the cluster did not answer.

    """
    quarantine_records = ownership.quarantine_records
    # Before the disk: bytes are set apart before they are recorded.
    recorded = {
        (each.volume_id, each.commit)
        for each in quarantine_records.all()
        if each.node_id == ownership.node_id
    }
    trees = {(each.volume_id, each.commit): each for each in quarantine.everything()}
    for key in trees.keys() - recorded:
        _note(ownership, quarantine, trees[key])
    for volume_id, commit in recorded - trees.keys():
        quarantine_records.drop(volume_id, ownership.node_id, commit)


def _note(ownership: OwnershipView, quarantine: Quarantine, tree: Tree) -> None:
    if quarantine.find(tree.volume_id, tree.commit) is None:
        return  # it was discarded meanwhile
    quarantined = record_of(quarantine, tree)
    ownership.quarantine_records.note(
        tree.volume_id, ownership.node_id, tree.commit, quarantined
    )
