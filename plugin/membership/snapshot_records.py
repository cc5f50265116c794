"""
Which snapshots nodes have in their pools, as the whole cluster knows it.

    v/<id>/snapshots/<node>    the snapshots of the volume that lie on that node

A snapshot lies on the disk of one node and stays there. The record follows the disk,
which is the truth, and only that node writes it; see `volumes/own_snapshots.py`.
Records of a node that was removed from the cluster count no more.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from backends.base import Snapshot
from backends.system.decoding import from_json
from plugin.membership.nodes import NODES
from plugin.store.base import Delete, Put, Record, Store

log = logging.getLogger(__name__)
_VOLUMES: Final = "v/"
# A transaction takes 128 operations. Records that are left over do not count anyway.
_DROPPED_MAX: Final = 20


class SnapshotRecords:
    """Reads the records from local knowledge, and writes this node's."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def of(self, volume_id: str) -> dict[str, list[Snapshot]]:
        """Return the snapshots of a volume, by the id of the node that has them."""
        prefix = _key(volume_id, "")
        found = {}
        for record in self._store.prefix(prefix)[0]:
            node_id = record.key.removeprefix(prefix)
            if self._store.get(NODES + node_id) is not None:
                found[node_id] = _decoded(record)
        return found

    def volumes_on(self, node_id: str) -> list[str]:
        """Return the ids of the volumes of which a node has snapshots."""
        suffix = _key("", node_id).removeprefix(_VOLUMES)
        return [
            each.key.removeprefix(_VOLUMES).removesuffix(suffix)
            for each in self._store.prefix(_VOLUMES)[0]
            if each.key.endswith(suffix)
        ]

    def write(
        self, volume_id: str, node_id: str, snapshots: Sequence[Snapshot]
    ) -> None:
        """
        Make the record say that a node has *snapshots* of a volume, and no others.

        Raises:
            StoreError: the cluster did not answer.

        """
        key = _key(volume_id, node_id)
        stored = self._store.get(key)
        value = msgspec.json.encode(snapshots)
        if not snapshots and stored is not None:
            self._store.transact([], [Delete(key)])
        elif snapshots and (stored is None or stored.value != value):
            self._store.transact([], [Put(key, value)])

    def drops(self, node_id: str) -> list[Delete]:
        """Return deletions of a leaving node's records, `_DROPPED_MAX` at most."""
        volumes = self.volumes_on(node_id)[:_DROPPED_MAX]
        return [Delete(_key(each, node_id)) for each in volumes]


def _key(volume_id: str, node_id: str) -> str:
    return f"{_VOLUMES}{volume_id}/snapshots/{node_id}"


def _decoded(record: Record) -> list[Snapshot]:
    """Return the value; even a record that cannot be read says that there is one."""
    try:
        return from_json(record.value, list[Snapshot])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        log.warning("record %s cannot be read: %s", record.key, error)
        return [Snapshot("unknown", "", 0, 0)]
