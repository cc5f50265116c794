"""Taking the lock of a volume again, in the same epoch, after it went with a lease."""

from __future__ import annotations

from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.state import Head, RefusedError
from plugin.ownership.view import OwnershipView


def resume(ownership: OwnershipView, record: VolumeRecord, epoch: int) -> bool:
    """
    Write the volume's lock again if it is free; return whether the volume is ours.

    Raises:
        StoreError: the cluster did not answer.

    """
    state = ownership.heads.read(record.id)
    head = state.head or Head()
    try:
        resumed = rules.resume(
            head,
            locked_by=state.locked_by,
            node=ownership.node_id,
            boot_id=ownership.boot_id,
            epoch=epoch,
        )
    except RefusedError:
        return False
    changed = ownership.heads.change(state, resumed, ownership.put_lock(record, epoch))
    return changed is not None  # if not, we knew an old state; the next round helps
