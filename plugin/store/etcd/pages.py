"""
Reading many keys: by pages, all of them at one revision.

etcd's gateway sends the first byte of an answer when it has encoded the last one, so
that a member that is asked for everything seems to be silent. A page's first byte comes
soon, however many keys there are; each page has a deadline of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from backends.system.clock import Deadline
from plugin.errors import StoreError
from plugin.store.base import Record
from plugin.store.etcd.client import Client
from plugin.store.etcd.codec import Namespace, key_after, revision_of
from plugin.store.etcd.errors import OUT_OF_RANGE, RefusedError

# A tenth of what a member on a loaded machine tells within an attempt.
PAGE_KEYS: Final = 2_000
# Others may compact etcd's history while we read; hardly twice.
_READS_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Records as they were at *revision*, when their range had *count* keys in all."""

    records: list[Record]
    count: int
    revision: int


class Pages:
    """Reads ranges of keys; threads may share it."""

    def __init__(self, client: Client, names: Namespace) -> None:
        self._client = client
        self._names = names

    def read(
        self,
        wanted: Mapping[str, Any],
        deadline: Callable[[], Deadline],
        *,
        revision: int = 0,
    ) -> Snapshot:
        """
        Return what etcd's RangeRequest *wanted* finds, at *revision*, or else now.

        *deadline* is called for each page.

        Raises:
            StoreError: there was no answer in time, or *revision* is no longer kept.

        """
        for _ in range(1 if revision else _READS_MAX):
            try:
                return self._read(wanted, deadline, revision)
            except RefusedError as error:
                if error.grpc_code != OUT_OF_RANGE:
                    raise
                refused = error
        raise StoreError(f"etcd's history went while it was read: {refused.message}")

    def _read(
        self,
        wanted: Mapping[str, Any],
        deadline: Callable[[], Deadline],
        revision: int,
    ) -> Snapshot:
        page = {**wanted, "limit": str(PAGE_KEYS), "revision": str(revision)}
        records: list[Record] = []
        count = -1
        while True:
            answer = self._client.call("/v3/kv/range", page, deadline=deadline())
            found = answer.get("kvs", [])
            records += [self._names.record(each) for each in found]
            revision = revision or revision_of(answer)
            # Later pages count only what their own range has.
            count = int(answer.get("count", 0)) if count < 0 else count
            if not (answer.get("more") and found):
                return Snapshot(records, count, revision)
            page |= {"key": key_after(found[-1]["key"]), "revision": str(revision)}
