"""
What nodes have set apart, as the whole cluster knows it.

    v/<id>/conflicts/<node>/<commit>    QuarantineRecord: what is set apart, since when

A record follows the bytes on the node's disk, and only that node writes it: when it
sets bytes apart, when they are discarded, and when record and disk are found to differ.
The bytes are the truth. Records of a node that was removed from the cluster count no
more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Final

import msgspec

from backends.base import VOLUME_ID, LineText, WholeNumber
from plugin.membership.nodes import NODES
from plugin.model import NODE_ID
from plugin.store.base import Compare, Delete, Put, Store
from plugin.store.values import readable

_KEY: Final = re.compile(
    rf"v/({VOLUME_ID.pattern})/conflicts/({NODE_ID})/([0-9]{{1,19}}\.[0-9]{{1,19}})"
)
# A transaction takes 128 operations. Records that are left over do not count anyway.
_DROPPED_MAX: Final = 90


class QuarantineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that were set apart; *whole*: they were counted to the end."""

    KEY: ClassVar[re.Pattern[str]] = _KEY

    set_apart_at: LineText
    files: WholeNumber = 0
    size_bytes: WholeNumber = 0
    whole: bool = False


@dataclass(frozen=True, slots=True)
class KnownQuarantineRecord:
    """A record with what its key says."""

    volume_id: str
    node_id: str
    commit: str
    quarantined: QuarantineRecord


class QuarantineRecords:
    """Reads the records from local knowledge, and writes this node's."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> list[KnownQuarantineRecord]:
        """Return what every node of the cluster has set apart."""
        return self._below("v/")

    def of(self, volume_id: str) -> list[KnownQuarantineRecord]:
        """Return what nodes of the cluster have set apart of a volume."""
        return self._below(f"v/{volume_id}/conflicts/")

    def note(
        self, volume_id: str, node_id: str, commit: str, quarantined: QuarantineRecord
    ) -> None:
        """
        Write the record if there is none.

        Raises:
            StoreError: the cluster did not answer.

        """
        key = _key(volume_id, node_id, commit)
        if self._store.get(key) is None:
            put = Put(key, msgspec.json.encode(quarantined))
            self._store.transact([Compare(key, 0)], [put])

    def drop(self, volume_id: str, node_id: str, commit: str) -> None:
        """Delete the record, if there is one; raises StoreError as `note`."""
        key = _key(volume_id, node_id, commit)
        if self._store.get(key) is not None:
            self._store.transact([], [Delete(key)])

    def drops(self, node_id: str) -> list[Delete]:
        """Return deletions of a leaving node's records, `_DROPPED_MAX` at most."""
        found = [
            Delete(_key(each.volume_id, node_id, each.commit))
            for each in self.all()
            if each.node_id == node_id
        ]
        return found[:_DROPPED_MAX]

    def _below(self, prefix: str) -> list[KnownQuarantineRecord]:
        found = []
        for record in self._store.prefix(prefix)[0]:
            key = _KEY.fullmatch(record.key) if "/conflicts/" in record.key else None
            if key is not None and self._store.get(NODES + key[2]) is not None:
                # Also one that cannot be read says that there are bytes.
                known = readable(record, QuarantineRecord)
                known = known or QuarantineRecord(set_apart_at="")
                found.append(KnownQuarantineRecord(key[1], key[2], key[3], known))
        return found


def _key(volume_id: str, node_id: str, commit: str) -> str:
    return f"v/{volume_id}/conflicts/{node_id}/{commit}"
