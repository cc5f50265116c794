"""Removing a volume: how the store changes before and after its bytes are deleted."""

from __future__ import annotations

from backends.system import clock
from backends.system.clock import Deadline
from plugin.errors import PeerRefusedError, StoreError
from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.bytes_port import Replication
from plugin.ownership.heads import (
    REFRESH_DEADLINE_S,
    drop_head,
    drop_lock,
    put_head,
    put_tomb,
)
from plugin.ownership.refusals import explained, has_snapshots, in_use, set_apart
from plugin.ownership.state import Commit, Head, RefusedError, Tomb
from plugin.ownership.view import OwnershipView
from plugin.ownership.votes import was_released
from plugin.store.base import NO_CHANGE, Change


def removal(
    ownership: OwnershipView,
    replication: Replication,
    record: VolumeRecord,
    deadline: Deadline,
) -> Change:
    """
    Return the change that keeps every node from acquiring a volume before it goes.

    Raises:
        NotOwnerError: another node has it mounted, perhaps without a lock: its lease
            has ended, and it goes on because members have agreed.
        BackendError: another node has snapshots of it, or bytes that were set apart:
            only people delete them.

    """
    for each in ownership.quarantine_records.of(record.id):
        if each.node_id != ownership.node_id:  # the backend looks at our own disk
            raise set_apart(record.name, each, ownership.name_of)
    for node_id, snapshots in ownership.nodes.snapshots.of(record.id).items():
        if node_id != ownership.node_id:
            names = [each.name for each in snapshots]
            raise has_snapshots(record.name, names, ownership.name_of(node_id))
    for fresh in (False, True):
        if fresh:
            # We may know an old state: the other node may have let the volume go.
            ownership.heads.refresh(min(deadline.remaining_s(), REFRESH_DEADLINE_S))
        state = ownership.heads.read(record.id)
        if ownership.membership.alone and state.head is None:
            return NO_CHANGE  # nobody else could acquire it
        head = state.head or ownership.initial_head(record)
        # Our own lock without a mount is what a crash has left.
        other = state.locked_by if state.locked_by != ownership.node_id else ""
        try:
            removing = rules.remove(head, locked_by=other)
        except RefusedError as error:
            refused = error
            continue
        if not was_released(head) and head.owner != ownership.node_id:
            _require_unused(replication, record, head)
        operations = [drop_lock(record.id)] if state.locked_by else []
        return state.change(put_head(record.id, removing), *operations)
    raise explained(record.name, refused, ownership.name_of)


def _require_unused(replication: Replication, record: VolumeRecord, head: Head) -> None:
    """Raise NotOwnerError if members know that it is in use, though nobody locks it."""
    try:
        replication.require_unused(record, head)
    except PeerRefusedError as error:
        raise in_use(record.name, error) from None


def removal_cancelled(ownership: OwnershipView, record: VolumeRecord) -> Change:
    """Return the change by which nodes can acquire it again: storage has kept it."""
    state = ownership.heads.read(record.id)
    if state.head is None or state.head.phase != "removing":
        return NO_CHANGE
    return state.change(put_head(record.id, rules.keep(state.head)))


def removal_done(ownership: OwnershipView, record: VolumeRecord) -> Change:
    """Return the change that leaves only the volume's tomb in the store, if any."""
    state = ownership.heads.read(record.id)
    if ownership.membership.alone and state.head is None:
        return NO_CHANGE
    head = state.head or ownership.initial_head(record)
    bases = _bases(ownership, record)
    ownership.heads.shorten_epochs(record.id)
    gone = [*ownership.heads.drop_epochs(record.id), drop_head(record.id)]
    # Also a node that is no member any more may have a copy that it could not let go.
    others = {*head.members, *ownership.nodes.ids()} - {ownership.node_id}
    if ownership.membership.alone or ownership.is_shared(record) or not others:
        return state.change(*gone)
    tomb = Tomb(
        name=record.name,
        backend=record.backend,
        removed_at=clock.now_rfc3339(),
        pending=tuple(sorted(others)),
        all_nodes=True,
        committed=head.committed,
        bases=bases,
    )
    return state.change(*gone, put_tomb(record.id, tomb))


def _bases(
    ownership: OwnershipView, record: VolumeRecord
) -> tuple[tuple[int, Commit], ...]:
    """Return what epochs began with; none if they cannot be read: more is kept then."""
    try:
        epochs = ownership.heads.lineage(record.id).epochs
    except StoreError:
        return ()
    return tuple((number, epoch.base) for number, epoch in sorted(epochs.items()))
