"""
Reading many keys: by pages, all of them at one revision.

etcd's gateway sends the first byte of an answer when it has encoded the last one, so
that a member that is asked for everything seems to be silent. A page's first byte comes
soon, however many keys there are; each page has a deadline of its own.

A limit alone does not do: for each page etcd goes through all keys of the range that it
is asked for, and if it looks for new ones, it reads them all. So whoever knows some of
the keys, as a mirror does, has the range cut there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from backends.system.clock import Deadline
from plugin.errors import StoreError
from plugin.store.base import Record
from plugin.store.etcd.client import Client
from plugin.store.etcd.codec import Namespace, key_after, revision_of
from plugin.store.etcd.errors import OUT_OF_RANGE, NoAnswerError, RefusedError

# A tenth of what a member on a loaded machine tells within an attempt.
PAGE_KEYS: Final = 4_000
# A member that does not tell a page in time is asked for a quarter of it, down to this
# part: where the machine is loaded, a reader would else begin anew for ever.
_LEAST_PART: Final = 16
# Others may compact etcd's history while we read; hardly twice.
_READS_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Records as they were at *revision*, and how many keys each part then had."""

    records: list[Record]
    counts: list[int]
    revision: int


@dataclass(frozen=True, slots=True)
class Parts:
    """
    What the reader of a range knows of it: keys at which to cut it, sorted.

    *known* gives the records that it has: what is equal is not kept twice.
    """

    cuts: Sequence[str]
    known: Callable[[str], Record | None]

    def same(self, record: Record) -> Record:
        """Return *record*, which was read, or the equal one that is known."""
        known = self.known(record.key)
        return known if known is not None and known == record else record


WHOLE: Final = Parts((), lambda _: None)


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
        parts: Parts = WHOLE,
    ) -> Snapshot:
        """
        Return what etcd's RangeRequest *wanted* finds, at *revision*, or else now.

        *deadline* is called for each page.

        Raises:
            StoreError: there was no answer in time, or *revision* is no longer kept.

        """
        for _ in range(1 if revision else _READS_MAX):
            try:
                return self._read(wanted, deadline, revision, parts)
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
        parts: Parts,
    ) -> Snapshot:
        size = PAGE_KEYS
        records: list[Record] = []
        counts: list[int] = []
        edges = [wanted["key"], *map(self._names.key, parts.cuts), wanted["range_end"]]
        for first, after in pairwise(edges):
            page = {**wanted, "key": first, "range_end": after}
            more = True
            while more:
                page["revision"] = str(revision)
                answer, size = self._page(page, size, deadline)
                revision = revision or revision_of(answer)
                if page["key"] == first:  # later pages count what is left
                    counts.append(int(answer.get("count", 0)))
                found = answer.get("kvs", [])
                records += map(parts.same, self._names.records(found))
                more = bool(answer.get("more") and found)
                if more:
                    page["key"] = key_after(found[-1]["key"])
        return Snapshot(records, counts, revision)

    def _page(
        self, page: Mapping[str, Any], size: int, deadline: Callable[[], Deadline]
    ) -> tuple[dict[str, Any], int]:
        """Return a page of *size* keys, or of fewer, and how many that were."""
        while True:
            limited = {**page, "limit": str(size)}
            try:
                return self._client.call(
                    "/v3/kv/range", limited, deadline=deadline()
                ), size
            except NoAnswerError:
                if size <= PAGE_KEYS // _LEAST_PART or deadline().passed():
                    raise
                size //= 4
