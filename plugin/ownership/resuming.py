"""Taking locks again, in the same epoch, after they went with a lease."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.heads import put_head
from plugin.ownership.state import Head, RefusedError
from plugin.ownership.view import OwnershipView
from plugin.store.base import Change

# For each volume etcd compares two keys and writes two; it takes 128 of each at once.
TOGETHER_MAX: Final = 40


def resume(ownership: OwnershipView, record: VolumeRecord, epoch: int) -> bool:
    """
    Write the volume's lock again if it is free; return whether the volume is ours.

    Raises:
        StoreError: the cluster did not answer.

    """
    change = _resumed(ownership, record, epoch)
    # If it is not done, we knew an old state; the next round helps.
    return change is not None and ownership.heads.change_together([change])


def resume_all(
    ownership: OwnershipView, volumes: Sequence[tuple[VolumeRecord, int]]
) -> None:
    """
    Do the same for up to `TOGETHER_MAX` *volumes*, with their epochs, at once.

    If one of them has changed meanwhile, each is done by itself.

    Raises:
        StoreError: the cluster did not answer.

    """
    resumed = [_resumed(ownership, *each) for each in volumes]
    changes = [each for each in resumed if each is not None]
    if not changes or ownership.heads.change_together(changes) or len(changes) == 1:
        return
    for each in changes:
        ownership.heads.change_together([each])


def _resumed(
    ownership: OwnershipView, record: VolumeRecord, epoch: int
) -> Change | None:
    """Return the change that resumes *epoch*; None if it is over."""
    state = ownership.heads.read(record.id)
    try:
        head = rules.resume(
            state.head or Head(),
            locked_by=state.locked_by,
            node=ownership.node_id,
            boot_id=ownership.boot_id,
            epoch=epoch,
        )
    except RefusedError:
        return None
    lock = ownership.put_lock(record, epoch)
    return state.change(put_head(record.id, head), lock)
