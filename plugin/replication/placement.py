"""
Which nodes keep copies of a volume: those named, or as many as wanted, by free space.

`plan` says which nodes are to become members, and which are to leave. `Placement`
writes it into the head. A new copy comes first: no member leaves before enough other
living nodes hold the newest commit.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from backends.replication_options import ReplicationOptions
from backends.system import clock
from plugin.logs import fields
from plugin.membership.nodes import NodeRecord, NodeView
from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.holders import Holders
from plugin.ownership.state import Head, RefusedError
from plugin.ownership.view import OwnershipView

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """The nodes that are to become members, and the members that are to leave."""

    join: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    # How many others must hold the newest commit as they leave.
    keep: int = 1


def plan(
    nodes: Sequence[NodeView],
    head: Head,
    wanted: ReplicationOptions,
    gone: Collection[str],
    *,
    volume_id: str,
    bound_for: str = "",
) -> Plan:
    """
    Return the changes after which the members are as *wanted*; pure.

    *gone* are the nodes that have been dead for so long that they are replaced. Nodes
    without a record count as gone. Drained nodes are replaced, too. The volume moves to
    node *bound_for*, which keeps a copy in addition to those that are wanted.
    """
    known = {each.record.id: each for each in nodes}
    if wanted.members:
        counted = {each for each in known if known[each].record.name in wanted.members}
        joining = tuple(each for each in known if each in counted - {*head.members})
    else:
        counted = {
            each
            for each in head.members
            if each in known and each not in gone and not known[each].record.drained
        }
        lacking = max(0, wanted.copies - len(counted - {bound_for}))
        joining = _free(nodes, head, volume_id)[:lacking]
    counted.discard(bound_for)
    steady = {each for each in head.holders if each in counted and known[each].alive}
    spare = [
        each
        for each in head.members
        if not (wanted.members and each in counted)
        and not (each == head.owner and head.phase != "idle")
        and each != bound_for
        # A node that has just crashed may come back with bytes that no other node has.
        and (each not in known or each in gone or known[each].alive)
    ]
    leaving: list[str] = []
    for each in sorted(spare, key=lambda node: _rank(known.get(node), head, gone)):
        if len(steady - {each}) >= wanted.copies:
            steady.discard(each)
            leaving.append(each)
    return Plan(joining, tuple(leaving), wanted.copies)


def _free(nodes: Sequence[NodeView], head: Head, volume_id: str) -> tuple[str, ...]:
    """
    Return the nodes that could keep one more copy, the best first.

    Free space counts by the power of two. Nodes tell it seldom, so of many volumes each
    would else go to the one node that seems to have most; here each has an order of its
    own of those that are alike.
    """
    found = [
        each.record
        for each in nodes
        if each.alive and not each.record.drained and each.record.id not in head.members
    ]
    most_bytes = max([each.pool_available_bytes for each in found], default=0)

    def rank(record: NodeRecord) -> tuple[int, bytes]:
        times = most_bytes // max(1, record.pool_available_bytes)
        name = f"{volume_id} {record.id}"
        return times.bit_length(), hashlib.sha256(name.encode()).digest()

    return tuple(each.id for each in sorted(found, key=rank))


def _rank(node: NodeView | None, head: Head, gone: Collection[str]) -> tuple[int, int]:
    """Return a sort key: the members whose copies are worth least leave first."""
    if node is None or node.record.id in gone:
        return 0, 0
    if node.record.drained:
        return 1, 0
    free = node.record.pool_available_bytes
    if node.record.id == head.owner:
        return 4, free  # where the container ran last it may well start again
    return (3 if node.record.id in head.holders else 2), free


class Absences:
    """
    How long nodes have been dead, as this daemon itself has seen it.

    After a restart of the daemon it counts from zero: a node is then replaced later,
    never sooner. If *after_s* is None, no node is ever replaced.
    """

    def __init__(self, after_s: float | None) -> None:
        self._after_s = after_s
        self._since_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def gone(self, nodes: Sequence[NodeView]) -> frozenset[str]:
        """Return those of *nodes* that have been dead for *after_s* or longer."""
        now_s = clock.boottime_s()
        dead = {each.record.id for each in nodes if not each.alive}
        with self._lock:
            self._since_s = {each: self._since_s.get(each, now_s) for each in dead}
            if self._after_s is None:
                return frozenset()
            return frozenset(
                each
                for each, since_s in self._since_s.items()
                if now_s - since_s >= self._after_s
            )


class Placement:
    """
    Decides for the volumes that this node owns, or brings in step after a release.

    It does so every ``interval_s``.
    """

    def __init__(
        self,
        ownership: OwnershipView,
        holders: Holders,
        *,
        find: Callable[[str], VolumeRecord | None],
        replace_after_s: float | None,
        interval_s: float,
    ) -> None:
        self._ownership = ownership
        self._holders = holders
        self.interval_s = interval_s
        self._find = find
        self._absences = Absences(replace_after_s)
        # The node to which each volume moves, by its id; a restart forgets it.
        self._bound_for: dict[str, str] = {}
        self._nodes: Sequence[NodeView] = ()
        self._gone: frozenset[str] = frozenset()

    def look(self) -> None:
        """
        Note which nodes there are, and which of them live.

        It is called every `interval_s`, so that it sees each node that comes back.
        """
        self._nodes = self._ownership.nodes.all()
        self._gone = self._absences.gone(self._nodes)

    def members(self, record: VolumeRecord, epoch: int) -> Head | None:
        """
        Return the head, with the members that the volume is to have now.

        Raises:
            StoreError: the cluster did not answer.

        """
        state = self._ownership.heads.read(record.id)
        head = state.head
        if head is None:
            return None
        planned = self._plan(record, head)
        standing = self._holders.standing(record.id) if planned.leave else ()
        changed = self._step(head, planned, epoch, standing)
        if changed == head:
            return head
        if self._ownership.heads.change(state, changed) is None:
            return self._ownership.heads.read(record.id).head
        log.info(
            "members",
            extra=fields(
                volume=record.name,
                joined=",".join(planned.join),
                left=",".join({*head.members} - {*changed.members}),
            ),
        )
        return changed

    def bind(self, record: VolumeRecord, epoch: int, node_id: str) -> Head | None:
        """
        Return the head, with *node_id* as a member at least until it owns the volume.

        The head is unchanged if this node is not the owner, or last owner, in *epoch*.

        Raises:
            StoreError: the cluster did not answer.

        """
        self.look()
        self._bound_for[record.id] = node_id
        state = self._ownership.heads.read(record.id)
        head = state.head
        if head is None or node_id in head.members:
            return head
        changed = self._step(head, Plan(join=(node_id,)), epoch)
        if self._ownership.heads.change(state, changed) is None:
            return self._ownership.heads.read(record.id).head
        return changed

    def leads(self, head: Head) -> bool:
        """
        Return whether this node has to look after the copies of a released volume.

        Every volume is asked about, so this relies on what `look` has seen.
        """
        own = self._ownership.node_id
        return head.released and own in head.holders and self.bringer(head) == own

    def bringer(self, head: Head) -> str:
        """
        Return the node that brings the newest commit to others: the owner.

        After a release another holder does if that one does not live, or gave it up.
        """
        living = {each.record.id for each in self._nodes if each.alive}
        able = living.intersection(head.holders) if head.released else set()
        return head.owner if head.owner in able else min(able, default=head.owner)

    def lacks(self, record: VolumeRecord, head: Head) -> bool:
        """Return whether this node has to bring copies of a released volume in step."""
        if not self.leads(head):
            return False
        living = {each.record.id for each in self._nodes if each.alive}
        planned = self._planned(self._nodes, record, head, self._gone)
        behind = living.intersection(head.members) - {*head.holders}
        return bool(behind or planned.join or planned.leave)

    def lives(self, node_id: str) -> bool:
        """Return whether the node's daemon runs, as far as is known."""
        return self._ownership.nodes.lives(node_id)

    def _plan(self, record: VolumeRecord, head: Head) -> Plan:
        nodes = self._ownership.nodes.all()
        # For a mounted volume, *record* may be as old as its Mount.
        newest = self._find(record.name)
        if newest is None or newest.id != record.id:
            newest = record
        return self._planned(nodes, newest, head, self._absences.gone(nodes))

    def _planned(
        self,
        nodes: Sequence[NodeView],
        record: VolumeRecord,
        head: Head,
        gone: Collection[str],
    ) -> Plan:
        begun = head.phase == "owned" or head.committed.epoch == head.epoch
        if begun and self._bound_for.get(record.id) == head.owner:
            del self._bound_for[record.id]  # it has arrived
        bound_for = self._bound_for.get(record.id, "")
        wanted = ReplicationOptions.of(record.options)
        return plan(nodes, head, wanted, gone, volume_id=record.id, bound_for=bound_for)

    def _step(
        self, head: Head, planned: Plan, epoch: int, standing: Collection[str] = ()
    ) -> Head:
        """Return the head after as much of the plan as the rules allow."""
        node = self._ownership.node_id
        changed = head
        with suppress(RefusedError):
            if planned.join:
                changed = rules.join(
                    changed, node=node, epoch=epoch, members=planned.join
                )
            if planned.leave:
                changed = rules.leave(
                    changed,
                    node=node,
                    epoch=epoch,
                    members=planned.leave,
                    standing=standing,
                    keep=planned.keep,
                )
        return changed
