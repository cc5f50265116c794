"""
The store in memory, with leases as etcd has them: for tests that open thousands of it.

Several stores on one `Memory` are what several nodes on one etcd are, or one node that
is started again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from backends.system import clock
from plugin.errors import StoreError
from plugin.store.base import Compare, Delete, Event, Operation, Outcome, Put, Record
from plugin.store.table import Table


class Memory:
    """What stores share; all of it is used under `lock`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.table = Table()
        self.revision = 0
        # Every change that there ever was.
        self.events: list[Event] = []
        # For each lease its time to live, and when it ends.
        self.leases: dict[int, tuple[float, float]] = {}
        self.leases_made = 0

    def end_leases(self) -> None:
        """End the leases whose time is over."""
        now_s = clock.boottime_s()
        for lease in [each for each, (_, end) in self.leases.items() if end <= now_s]:
            self.end(lease)

    def end(self, lease: int) -> None:
        """End *lease*, and its keys with it."""
        self.leases.pop(lease, None)
        keys = [each.key for each in self.table.below("") if each.lease == lease]
        self.change([Delete(key) for key in keys])

    def change(self, operations: Sequence[Operation]) -> None:
        """Do *operations* at the next revision, if there is anything to do."""
        revision = self.revision + 1
        events = []
        # As in etcd, the last operation on a key counts.
        for operation in {each.key: each for each in operations}.values():
            key = operation.key
            if isinstance(operation, Put):
                old = self.table.get(key)
                created = old.create_revision if old else revision
                record = Record(
                    key, operation.value, created, revision, operation.lease
                )
                self.table.put(record)
                events.append(Event(key, revision, record))
            elif self.table.get(key) is not None:
                self.table.remove(key)
                events.append(Event(key, revision, None))
        if events:
            self.revision = revision
            self.events += events


class MemoryStore:
    """The `Store` on a `Memory`, its own or one that it shares."""

    def __init__(self, memory: Memory | None = None) -> None:
        self._memory = memory or Memory()
        self._closed = False

    def get(self, key: str) -> Record | None:
        """Return the record of *key*; see `Store.get`."""
        with self._memory.lock:
            self._prepare()
            return self._memory.table.get(key)

    def prefix(self, prefix: str) -> tuple[list[Record], int]:
        """Return the records below *prefix*; see `Store.prefix`."""
        with self._memory.lock:
            self._prepare()
            return self._memory.table.below(prefix), self._memory.revision

    def version(self, prefix: str) -> int:
        """Return how often records like those below *prefix* have changed."""
        with self._memory.lock:
            self._prepare()
            return self._memory.table.changes(prefix)

    def refresh(self, deadline_s: float) -> None:
        """Do nothing: there is nothing newer."""

    def transact(
        self, conditions: Sequence[Compare], operations: Sequence[Operation]
    ) -> Outcome:
        """Do *operations* if *conditions* hold; see `Store.transact`."""
        with self._memory.lock:
            self._prepare()
            for each in operations:
                if isinstance(each, Put) and each.lease:
                    self._require(each.lease)
            holds = all(self._holds(each) for each in conditions)
            if holds:
                self._memory.change(operations)
            return Outcome(holds, self._memory.revision)

    def grant_lease(self, ttl_s: float) -> int:
        """Return a new lease, as `EtcdStore`."""
        with self._memory.lock:
            self._prepare()
            self._memory.leases_made += 1
            lease = self._memory.leases_made
            self._memory.leases[lease] = (ttl_s, clock.boottime_s() + ttl_s)
            return lease

    def keep_alive(self, lease: int) -> bool:
        """Renew *lease*, as `EtcdStore`."""
        with self._memory.lock:
            self._prepare()
            if lease not in self._memory.leases:
                return False
            ttl_s, _ = self._memory.leases[lease]
            self._memory.leases[lease] = (ttl_s, clock.boottime_s() + ttl_s)
            return True

    def revoke_lease(self, lease: int) -> None:
        """End *lease*, as somebody with etcdctl does."""
        with self._memory.lock:
            self._prepare()
            self._memory.end(lease)

    def lease_ends_s(self, lease: int) -> float | None:
        """Return until when *lease* lives, in `clock.boottime_s`, as `EtcdStore`."""
        with self._memory.lock:
            _, ends_s = self._memory.leases.get(lease, (0.0, None))
            return ends_s

    def end_forgotten_lease(self, lease: int, deadline_s: float) -> bool:
        """Return that *lease* is not forgotten, as `EtcdStore`; none is here."""
        del lease, deadline_s
        return False

    def close(self) -> None:
        """Refuse further calls; the memory stays."""
        with self._memory.lock:
            self._closed = True

    def _prepare(self) -> None:
        """Let time pass."""
        if self._closed:
            raise StoreError("the store is closed")
        self._memory.end_leases()

    def _holds(self, condition: Compare) -> bool:
        record = self._memory.table.get(condition.key)
        return (record.mod_revision if record else 0) == condition.mod_revision

    def _require(self, lease: int) -> None:
        if lease not in self._memory.leases:
            raise StoreError(f"lease {lease} has ended")
