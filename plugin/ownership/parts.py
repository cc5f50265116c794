"""
Which nodes have a part in a volume, and so may ask about it, as the store says.

The part of a node in a volume: it owns it, keeps a copy, or is to; it makes or removes
it; or a wish of the node stands. What a node may do besides asking (bring a commit, be
promised an epoch) is decided where it is done, also by the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from backends.errors import RemoraError
from plugin.errors import PeerRefusedError
from plugin.model import VolumeRecord
from plugin.ownership.heads import Heads
from plugin.ownership.wishes import Wish, Wishes
from plugin.peers.channel import Peers

_REFRESH_DEADLINE_S: Final = 2.0


class OfVolume(Protocol):
    """A request about one volume."""

    @property
    def volume(self) -> str:
        """The volume's id."""
        ...


class Parts:
    """See the module's text; *by_id* returns a volume's record."""

    def __init__(
        self,
        heads: Heads,
        wishes: Wishes,
        *,
        by_id: Callable[[str], VolumeRecord | None],
    ) -> None:
        self._heads = heads
        self._wishes = wishes
        self._by_id = by_id

    def has(self, volume_id: str, node_id: str) -> bool:
        """Return whether the node has a part in the volume, as far as is known here."""
        head = self._heads.read(volume_id).head
        if head and node_id in (head.owner, *head.members, *head.holders):
            return True
        record = self._by_id(volume_id)
        # Once it is made, who made it has a copy, or has let it go.
        in_the_making = head is None or (record and record.phase != "ready")
        return bool(in_the_making and record and record.node == node_id)

    def require(self, node_id: str, request: OfVolume) -> None:
        """
        Return if node *node_id* may ask about the volume of *request*.

        Raises:
            PeerRefusedError: the store, asked anew, does not say so.

        """
        if not self._may_ask(node_id, request.volume):
            self._heads.refresh(_REFRESH_DEADLINE_S)
            self.require_known(node_id, request)

    def require_known(self, node_id: str, request: OfVolume) -> None:
        """Do what `require` does, at once, with what is known here."""
        if self._may_ask(node_id, request.volume):
            return
        raise PeerRefusedError(
            f"node {node_id} has no part in volume {request.volume}",
            hint="a node of an earlier version does not tell the store that it asks: "
            "update it, or ask on a node that keeps a copy",
        )

    def _may_ask(self, node_id: str, volume_id: str) -> bool:
        return self.has(volume_id, node_id) or self._wishes.stands(volume_id, node_id)


class Asking:
    """
    How this node asks, or wishes, something of others in whose volume it has no part.

    The store says that it asks, for as long as it does.
    """

    def __init__(
        self, peers: Peers, wishes: Wishes, parts: Parts, *, node_id: str
    ) -> None:
        self._peers = peers
        self._wishes = wishes
        self._parts = parts
        self._node_id = node_id

    def call(
        self, node_id: str, request: str, body: Mapping[str, Any], *, deadline_s: float
    ) -> Mapping[str, Any]:
        """Return a node's answer, or raise; see `Peers`."""
        with self._entitled(body):
            return self._peers.call(node_id, request, body, deadline_s=deadline_s)

    def call_all(
        self,
        node_ids: Sequence[str],
        request: str,
        body: Mapping[str, Any],
        *,
        deadline_s: float,
    ) -> dict[str, Mapping[str, Any] | RemoraError]:
        """Return each node's answer, or its error."""
        if not node_ids:
            return {}
        with self._entitled(body):
            return self._peers.call_all(node_ids, request, body, deadline_s=deadline_s)

    def fulfil(self, wish: Wish, deadline_s: float) -> None:
        """Return when another node has carried *wish* out; see `Wishes.fulfil`."""
        self._wishes.fulfil(
            wish, deadline_s, is_reached=lambda: self._peers.is_connected(wish.to)
        )

    @contextmanager
    def _entitled(self, body: Mapping[str, Any]) -> Iterator[None]:
        volume_id = str(body["volume"])
        if self._parts.has(volume_id, self._node_id):
            yield
            return
        with self._wishes.asking(volume_id):
            yield
