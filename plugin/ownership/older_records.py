"""Records that know less than a copy: the store was restored, or lost."""

from __future__ import annotations

from plugin.model import VolumeRecord
from plugin.ownership import copy_worth
from plugin.ownership.heads import begun_epoch, put_epoch
from plugin.ownership.state import EMPTY, Choice
from plugin.ownership.view import OwnershipView


def is_older(ownership: OwnershipView, record: VolumeRecord) -> bool:
    """Return whether this node's copy is of an epoch that the store does not know."""
    copy = ownership.copy_state(record)
    if copy is None:
        return False
    lineage = ownership.heads.lineage(record.id)
    return copy.newest_epoch > lineage.newest(copy.newest_epoch)


def mend(ownership: OwnershipView, record: VolumeRecord) -> None:
    """
    Write down what the copy of a node that is alone knows, and its store does not.

    Nobody but this node can have written to the volume since. In a cluster, and of a
    volume of which another node may have a copy, older records stay as they are.
    """
    if not ownership.membership.alone or not is_older(ownership, record):
        return
    node, copy = ownership.node_id, ownership.copy_state(record)
    state = ownership.heads.read(record.id)
    head = state.head or ownership.initial_head(record)
    if copy is None or {*head.members, *head.holders} - {node}:
        return
    lineage = ownership.heads.lineage(record.id)
    went_on = copy.commit.epoch < copy.newest_epoch
    base = copy.commit if went_on else EMPTY
    ownership.heads.change(
        state,
        copy_worth.known_again(head, copy, node=node),
        put_epoch(
            record.id,
            copy.newest_epoch,
            begun_epoch(head, Choice(base, ()), node, lineage),
        ),
        *ownership.heads.drop_epochs(record.id),
    )
