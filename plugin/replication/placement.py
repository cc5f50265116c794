"""Which nodes keep copies of a volume: those named, or those with most free space."""

from __future__ import annotations

import logging
from typing import Final

from plugin.cluster import rules
from plugin.cluster.ownership import Ownership
from plugin.cluster.state import Head, RefusedError
from plugin.logs import fields
from plugin.model import VolumeRecord

log = logging.getLogger(__name__)
DEFAULT_REPLICAS: Final = 2


class Placement:
    """Decides for the volumes that this node owns."""

    def __init__(self, ownership: Ownership) -> None:
        self._ownership = ownership

    def members(self, record: VolumeRecord, epoch: int) -> Head | None:
        """
        Return the head, with as many members as the volume is to have copies.

        Raises:
            StoreError: the cluster did not answer.

        """
        standing = self._ownership.heads.read(record.id)
        head = standing.head
        if head is None:
            return None
        return self.join(record, epoch, self._new(record, head))

    def join(
        self, record: VolumeRecord, epoch: int, new: tuple[str, ...]
    ) -> Head | None:
        """
        Return the head, with the nodes *new* as members.

        It is as it was if this node is not the owner of *epoch*, or the last one.

        Raises:
            StoreError: the cluster did not answer.

        """
        standing = self._ownership.heads.read(record.id)
        head = standing.head
        if head is None or set(new) <= set(head.members):
            return head
        try:
            joined = rules.join(
                head, node=self._ownership.node_id, epoch=epoch, members=new
            )
        except RefusedError:
            return head
        if self._ownership.heads.change(standing, joined) is None:
            return self._ownership.heads.read(record.id).head
        log.info("members", extra=fields(volume=record.name, nodes=",".join(new)))
        return joined

    def _new(self, record: VolumeRecord, head: Head) -> tuple[str, ...]:
        nodes = self._ownership.membership.directory.nodes()
        named = record.options.get("members", "")
        if named:
            wanted = named.split(",")
            found = [each for each in nodes if each.record.name in wanted]
        else:
            count = int(record.options.get("replicas", DEFAULT_REPLICAS))
            lacking = max(0, count - len(head.members))
            free = [
                each
                for each in nodes
                if each.alive
                and not each.record.drained
                and each.record.id not in head.members
            ]
            free.sort(key=lambda each: -each.record.pool_available_bytes)
            found = free[:lacking]
        return tuple(
            each.record.id for each in found if each.record.id not in head.members
        )

    def lives(self, node_id: str) -> bool:
        """Return whether the node's daemon runs, as far as is known."""
        nodes = self._ownership.membership.directory.nodes()
        return any(each.record.id == node_id and each.alive for each in nodes)
