"""
Going on while etcd is away: an owner whose members all agree keeps its volumes.

No node can become owner without etcd. So an owner that cannot reach it asks every other
member not to promise a newer epoch for some seconds, and while all of them say yes its
containers need not be stopped. If one says no, or nothing, they are stopped. A member
that is asked for a newer promise meanwhile gives no more time to the old owner.

Without it every container with a replicated volume would be frozen, and in the end
killed, whenever etcd is down for longer than a lease. Source: replication protocol,
docs/adr/0015-ownership.md.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import suppress
from functools import partial
from typing import Any, Final

import msgspec

from backends.base import WholeNumber
from backends.errors import RemoraError
from backends.system import clock
from backends.system.aside import begun, log_fault
from plugin.errors import PeerRefusedError, PeerUnreachableError
from plugin.logs import fields
from plugin.model import VolumeId
from plugin.ownership.holding import Holding
from plugin.ownership.view import OwnershipView
from plugin.peers.channel import Peers

log = logging.getLogger(__name__)
# The share of the agreed time that the owner leaves unused, to be on the safe side.
_MARGIN: Final = 0.3
# Members are asked again when no more than this share of the agreed time is left.
_RENEW_BELOW: Final = 0.5
_ASK_DEADLINE_S: Final = 2.0
# Asking takes no more than this share of what is left: the guard is told afterwards.
_ASK_SHARE: Final = 0.5


class HoldRequest(msgspec.Struct, frozen=True):
    """What an owner asks of a member."""

    volume: VolumeId
    epoch: WholeNumber


class Holds:
    """
    What this node has agreed to as a member: no newer promise for ``hold_s``.

    ``hold_s`` is the same on all nodes, because owners rely on it.
    """

    def __init__(self, hold_s: float) -> None:
        self.hold_s = hold_s
        self._until_s: dict[str, float] = {}
        self._wanted_until_s: dict[str, float] = {}
        self._lock = threading.Lock()
        # An earlier process of this node may have agreed just before it ended.
        self._quiet_until_s = clock.boottime_s() + self.hold_s

    def agree(self, volume_id: str) -> None:
        """
        Promise nothing newer for `hold_s`.

        Raises:
            PeerRefusedError: another node wants the volume.

        """
        now_s = clock.boottime_s()
        with self._lock:
            if self._wanted_until_s.get(volume_id, 0) > now_s:
                raise PeerRefusedError("another node wants the volume")
            self._until_s[volume_id] = now_s + self.hold_s

    def require_free(self, volume_id: str, *, insist: bool = True) -> None:
        """
        Raise PeerRefusedError while an owner may rely on our agreement.

        Another node wants the volume: for 3 * `hold_s` we do not agree again. If it
        does not *insist*, a refusal leaves the owner what it has.
        """
        now_s = clock.boottime_s()
        with self._lock:
            until_s = max(self._until_s.get(volume_id, 0), self._quiet_until_s)
            if insist or until_s <= now_s:
                self._wanted_until_s[volume_id] = now_s + 3 * self.hold_s
        if until_s > now_s:
            raise PeerRefusedError(
                f"its owner may go on for {until_s - now_s:.0f} s without etcd"
            )


class Failsafe:
    """
    The owner's side.

    It begins to ask when *ask_below_s* or less is left of the lease. While keepalives
    succeed, more than that is left. 0 means that it never asks.
    """

    def __init__(
        self,
        ownership: OwnershipView,
        peers: Peers,
        holds: Holds,
        *,
        ask_below_s: float,
    ) -> None:
        self._ownership = ownership
        self._peers = peers
        self._holds = holds
        self._ask_below_s = ask_below_s
        self._until_s: dict[str, float] = {}
        self._refused: set[str] = set()

    @property
    def hold_s(self) -> float:
        """For how long members agree each time."""
        return self._holds.hold_s

    def pause_s(self) -> float:
        """Return the time until members may have to be asked; it may be over."""
        left_s = self._ownership.membership.deadline_s() - clock.boottime_s()
        return left_s - self._ask_below_s

    def deadline_s(self, volume_id: str) -> float:
        """Return until when the members' word may be used, in `clock.boottime_s`."""
        return self._until_s.get(volume_id, -math.inf)

    def extend(self, held: Sequence[Holding]) -> None:
        """Ask the members of *held* volumes for more time, if the lease runs out."""
        membership = self._ownership.membership
        left_s = membership.deadline_s() - clock.boottime_s()
        if not self._ask_below_s or left_s > self._ask_below_s:
            # What was agreed holds until its time: the locks are yet to be taken again.
            now_s = clock.boottime_s()
            self._until_s = {k: v for k, v in self._until_s.items() if v > now_s}
            self._refused.clear()
            return
        due = [each for each in held if self._is_due(each)]
        # Should a node's time not do for all, the next round begins with the others.
        due.sort(key=lambda each: self.deadline_s(each.record.id))
        if due:
            self._ask_for(due)

    def _is_due(self, held: Holding) -> bool:
        """Return whether the volume's members have to be asked now."""
        record = held.record
        if self._ownership.is_shared(record):
            return False  # every node may have its bytes: nobody can speak for all
        try:
            is_ours = self._ownership.still_owner(record, held.epoch)
        except RemoraError:
            return False  # what is not known of it harms no other volume
        if not is_ours:
            self._until_s.pop(record.id, None)
            return False
        if not self._ownership.knows_copy(record):
            return False  # it may have promised a newer epoch to another node
        left_s = self.deadline_s(record.id) - clock.boottime_s()
        return left_s <= _RENEW_BELOW * self.hold_s

    def _ask_for(self, due: Sequence[Holding]) -> None:
        """Ask all members of *due* at once, each node for all its volumes in a row."""
        asked_s = clock.boottime_s()
        missing: dict[str, set[str]] = {}
        by_node: dict[str, list[Holding]] = {}
        for each in due:
            head = self._ownership.heads.read(each.record.id).head
            if head is None:
                continue
            others = {*head.members} - {self._ownership.node_id}
            missing[each.record.id] = others
            for node_id in others:
                by_node.setdefault(node_id, []).append(each)
        for volume_id, others in missing.items():
            if not others:
                self._agreed(volume_id, asked_s)
        if not by_node:
            return
        # A volume's time does not wait for nodes that have no part in it.
        for node_id, agreeing in self._answers(by_node):
            for volume_id in agreeing:
                missing[volume_id].discard(node_id)
                if not missing[volume_id]:
                    self._agreed(volume_id, asked_s)

    def _answers(
        self, by_node: Mapping[str, Sequence[Holding]]
    ) -> Iterator[tuple[str, list[str]]]:
        """Yield each node as it answers, and the volumes for which it agrees."""
        within_s = self._ask_within_s()
        asking = [
            begun(partial(self._ask, *each, within_s), name="failsafe")
            for each in by_node.items()
        ]
        for done in as_completed(asking):
            log_fault(done)  # the guard has to be told all the same
            if not done.exception():
                yield done.result()

    def _ask_within_s(self) -> float:
        left_s = self._ownership.membership.deadline_s() - clock.boottime_s()
        share_s = _ASK_SHARE * left_s
        return min(share_s, _ASK_DEADLINE_S) if left_s > 0 else _ASK_DEADLINE_S

    def _ask(
        self, node_id: str, volumes: Sequence[Holding], within_s: float
    ) -> tuple[str, list[str]]:
        """Return the node, and of *volumes* the ids for which it agrees."""
        deadline = clock.Deadline(within_s)
        agreeing = []
        for each in volumes:
            if deadline.passed():
                break
            body = {"volume": each.record.id, "epoch": each.epoch}
            try:
                self._peers.call(
                    node_id, "hold", body, deadline_s=deadline.remaining_s()
                )
            except PeerUnreachableError as error:
                self._note_refusal(each, node_id, error)
                break  # it would not answer for the others either
            except RemoraError as error:
                self._note_refusal(each, node_id, error)
            else:
                agreeing.append(each.record.id)
        return node_id, agreeing

    def _note_refusal(self, held: Holding, node_id: str, error: RemoraError) -> None:
        """Warn once for each volume until the lease is back."""
        if held.record.id in self._refused:
            return
        self._refused.add(held.record.id)
        log.warning(
            "a member does not agree that we go on without etcd: %s",
            error,
            extra=fields(volume=held.record.name, node=node_id),
        )

    def _agreed(self, volume_id: str, asked_s: float) -> None:
        """Note that all other members agree; we keep from promising like them."""
        with suppress(PeerRefusedError):
            self._holds.agree(volume_id)
            self._until_s[volume_id] = asked_s + self.hold_s * (1 - _MARGIN)

    def agree(self, node_id: str, request: HoldRequest) -> Mapping[str, Any]:
        """Agree to an owner's request, as a member, or raise PeerRefusedError."""
        head = self._ownership.heads.read(request.volume).head
        if head is None or (head.owner, head.epoch) != (node_id, request.epoch):
            raise PeerRefusedError("stale-epoch: the records name another owner")
        self._holds.agree(request.volume)
        return {}
