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
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from backends.errors import RemoraError
from backends.system import clock
from plugin.errors import PeerRefusedError
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership.view import OwnershipView
from plugin.ownership.votes import Asks
from plugin.peers.lines import read_request

log = logging.getLogger(__name__)
# The share of the agreed time that the owner leaves unused, to be on the safe side.
_MARGIN: Final = 0.3
# Members are asked again when no more than this share of the agreed time is left.
_RENEW_BELOW: Final = 0.5
_ASK_DEADLINE_S: Final = 2.0


class Held(Protocol):
    """A volume that this node has; see `keeper.Holding`."""

    @property
    def record(self) -> VolumeRecord:
        """The volume."""
        ...

    @property
    def epoch(self) -> int:
        """The epoch in which this node owns it."""
        ...


class HoldRequest(msgspec.Struct, frozen=True):
    """What an owner asks of a member."""

    volume: str
    epoch: int


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

    def require_free(self, volume_id: str) -> None:
        """
        Raise PeerRefusedError while an owner may rely on our agreement.

        Another node wants the volume: for 3 * `hold_s` we do not agree again.
        """
        now_s = clock.boottime_s()
        with self._lock:
            until_s = max(self._until_s.get(volume_id, 0), self._quiet_until_s)
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
        self, ownership: OwnershipView, asks: Asks, holds: Holds, *, ask_below_s: float
    ) -> None:
        self._ownership = ownership
        self._asks = asks
        self._holds = holds
        self._ask_below_s = ask_below_s
        self._until_s: dict[str, float] = {}
        self._refused: set[str] = set()

    @property
    def hold_s(self) -> float:
        """For how long members agree each time."""
        return self._holds.hold_s

    def deadline_s(self, volume_id: str) -> float:
        """Return until when the members' word may be used, in `clock.boottime_s`."""
        return self._until_s.get(volume_id, -math.inf)

    def extend(self, held: Sequence[Held]) -> None:
        """Ask the members of *held* volumes for more time, if the lease runs out."""
        membership = self._ownership.membership
        left_s = membership.deadline_s() - clock.boottime_s()
        if not self._ask_below_s or left_s > self._ask_below_s:
            self._until_s.clear()
            self._refused.clear()
            return
        for each in held:
            if self._ownership.is_shared(each.record):
                continue  # any node may reach its bytes: it has no members to agree
            if not self._ownership.still_owner(each.record, each.epoch):
                self._until_s.pop(each.record.id, None)
                continue
            asked_s = clock.boottime_s()
            if self.deadline_s(each.record.id) - asked_s > _RENEW_BELOW * self.hold_s:
                continue
            if self._all_agree(each.record.id, each.epoch):
                self._until_s[each.record.id] = asked_s + self.hold_s * (1 - _MARGIN)

    def agree(self, node_id: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Agree to an owner's request, as a member, or raise PeerRefusedError."""
        request = read_request(message, HoldRequest)
        head = self._ownership.heads.read(request.volume).head
        if head is None or (head.owner, head.epoch) != (node_id, request.epoch):
            raise PeerRefusedError("stale-epoch: the records name another owner")
        self._holds.agree(request.volume)
        return {}

    def _all_agree(self, volume_id: str, epoch: int) -> bool:
        head = self._ownership.heads.read(volume_id).head
        if head is None:
            return False
        others = [each for each in head.members if each != self._ownership.node_id]
        answers: Mapping[str, Any] = {}
        if others:
            answers = self._asks.call_all(
                others,
                "hold",
                {"volume": volume_id, "epoch": epoch},
                deadline_s=_ASK_DEADLINE_S,
            )
        try:
            # We are a member as well, and must not promise either.
            self._holds.agree(volume_id)
        except PeerRefusedError:
            return False
        for node_id, answer in answers.items():
            if isinstance(answer, RemoraError):
                if volume_id not in self._refused:
                    log.warning(
                        "a member does not agree that we go on without etcd: %s",
                        answer,
                        extra=fields(volume=volume_id, node=node_id),
                    )
                    self._refused.add(volume_id)
                return False
        return True
