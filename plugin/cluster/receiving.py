"""
Whether another node may send bytes of a volume to this one.

It must own the volume in the epoch that it names, and this node must not have promised
a later one. What comes after that, the copies themselves, is not there yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from plugin.cluster.heads import Heads
from plugin.cluster.replicas import Replicas
from plugin.cluster.rules import EMPTY
from plugin.errors import PeerRefusedError

_REFRESH_DEADLINE_S: Final = 2.0


class Receiving:
    """The daemon's word on each transfer; see `peers.server.Receiver`."""

    def __init__(self, heads: Heads, replicas: Replicas, *, node_id: str) -> None:
        self._heads = heads
        self._replicas = replicas
        self._node_id = node_id

    def begin(self, node_id: str, *, volume: str, epoch: int, seq: int) -> Path:
        """
        Refuse the commit (*epoch*, *seq*) of *volume* from *node_id*.

        Raises:
            PeerRefusedError: always, with the first reason that there is.

        """
        head = self._heads.read(volume).head
        if head is None or (head.owner, head.epoch) != (node_id, epoch):
            self._heads.refresh(_REFRESH_DEADLINE_S)
            head = self._heads.read(volume).head
        if head is None or self._node_id not in head.members:
            raise PeerRefusedError(f"not-a-member: volume {volume} has no copy here")
        if (head.owner, head.epoch) != (node_id, epoch) or head.phase != "owned":
            raise PeerRefusedError(
                f"stale-epoch: node {node_id} does not own volume {volume} "
                f"in epoch {epoch}"
            )
        replica = self._replicas.read(volume, initial=EMPTY)
        if replica is not None and epoch < replica.promised:
            raise PeerRefusedError(
                f"stale-epoch: epoch {replica.promised} of volume {volume} was "
                f"promised, {epoch} is over"
            )
        raise PeerRefusedError(f"commit {epoch}.{seq}: copies are not taken yet")

    def end(
        self,
        node_id: str,
        *,
        volume: str,
        epoch: int,
        seq: int,
        exit_status: int | None,
    ) -> None:
        """Do nothing: nothing has begun."""
