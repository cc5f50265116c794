"""The store of a cluster: etcd."""

from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Sequence

from backends.system import clock
from plugin.store.base import Compare, Operation, Outcome, Record
from plugin.store.etcd.client import Client
from plugin.store.etcd.codec import (
    Namespace,
    decoded,
    encoded,
    revision_of,
    unchanged_since,
)
from plugin.store.etcd.errors import OUT_OF_RANGE, RefusedError
from plugin.store.etcd.leases import Leases
from plugin.store.etcd.pages import WHOLE, Pages, Parts, Snapshot
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.transactions import Transactions
from plugin.store.etcd.watch import EtcdWatch


class EtcdStore:
    """
    The `Store` in an etcd cluster.

    Every read asks a majority, so it is as new as the call, and fails without one:
    what must answer while etcd is away reads a mirror that a watch keeps.
    """

    def __init__(self, settings: EtcdSettings) -> None:
        self._client = Client(settings)
        self._names = Namespace(settings.prefix)
        self._pages = Pages(self._client, self._names)
        self._leases = Leases(self._client, self._names)
        self._transactions = Transactions(self._client, self._names, self._leases)
        self._watches: weakref.WeakSet[EtcdWatch] = weakref.WeakSet()
        self._lock = threading.Lock()

    def get(self, key: str) -> Record | None:
        """Return the record of *key*; see `Store.get`."""
        answer = self._client.call(
            "/v3/kv/range",
            {"key": self._names.key(key)},
            deadline=self._client.deadline(),
        )
        pairs = answer.get("kvs", [])
        return next(iter(self._names.records(pairs)), None)

    def prefix(self, prefix: str, *, parts: Parts = WHOLE) -> tuple[list[Record], int]:
        """Return the records below *prefix*, read in *parts*; see `Store.prefix`."""
        wanted = self._names.below(prefix)
        found = self._pages.read(wanted, self._client.deadline, parts=parts)
        return found.records, found.revision

    def changed_since(
        self, revision: int, *, parts: Parts, deadline_s: float
    ) -> Snapshot:
        """Return the records that were put after *revision*, and how many there are."""
        wanted = {**self._names.below(""), "min_mod_revision": str(revision + 1)}
        deadline = clock.Deadline(deadline_s)
        return self._pages.read(wanted, lambda: deadline, parts=parts)

    def had(self, record: Record | None, count: int, *, revision: int) -> bool:
        """
        Return whether etcd had *count* records at *revision*, *record* among them.

        It is False as well where etcd no longer knows that, or has not got so far.
        """
        then = {"revision": str(revision)}
        counted = {**self._names.below(""), **then, "count_only": True}
        try:
            answer = self._client.call(
                "/v3/kv/range", counted, deadline=self._client.deadline()
            )
            there = int(answer.get("count", 0))
            if there != count or record is None:
                return there == count
            found = self._client.call(
                "/v3/kv/range",
                {"key": self._names.key(record.key), **then},
                deadline=self._client.deadline(),
            )
        except RefusedError as error:
            if error.grpc_code != OUT_OF_RANGE:
                raise
            return False
        return record in map(self._names.record, found.get("kvs", []))

    def keys_at(
        self, revision: int, first: str, after: str, *, deadline_s: float
    ) -> set[str]:
        """Return the keys from *first* to before *after* that were at *revision*."""
        wanted = {**self._names.between(first, after), "keys_only": True}
        deadline = clock.Deadline(deadline_s)
        found = self._pages.read(wanted, lambda: deadline, revision=revision)
        return {each.key for each in found.records}

    def version(self, prefix: str) -> int:
        """Return the cluster's revision."""
        del prefix
        return self.revision(deadline_s=self._client.settings.call_deadline_s)

    def refresh(self, deadline_s: float) -> None:
        """Return when a majority answered; see `Store.refresh`."""
        self.revision(deadline_s=deadline_s)

    def revision(self, *, deadline_s: float) -> int:
        """Return the cluster's revision, which a majority confirms."""
        return revision_of(
            self._client.call(
                "/v3/kv/range",
                {"key": self._names.slot("")},
                deadline=clock.Deadline(deadline_s),
            )
        )

    def alarms(self, *, deadline_s: float) -> list[str]:
        """Return what etcd refuses writes for, `NOSPACE` or `CORRUPT`; [] for none."""
        found = self._client.call(
            "/v3/maintenance/alarm",
            {"action": "GET"},
            deadline=clock.Deadline(deadline_s),
        )
        return sorted({str(each.get("alarm")) for each in found.get("alarms", [])})

    def identity(self) -> str:
        """Return the unchanging id of these records; the first node to ask makes it."""
        key = self._names.identity
        deadline = self._client.deadline()
        # Every watch that was opened anew asks, which must not make etcd write.
        answer = self._client.call("/v3/kv/range", {"key": key}, deadline=deadline)
        found = answer.get("kvs", [])
        if not found:
            put = {"key": key, "value": encoded(str(uuid.uuid4()).encode())}
            body = {
                "compare": [unchanged_since(key, 0)],
                "success": [{"request_put": put}, {"request_range": {"key": key}}],
                "failure": [{"request_range": {"key": key}}],
            }
            # Safe to repeat: only the first can succeed, the next one finds its id.
            answer = self._client.call("/v3/kv/txn", body, deadline=deadline)
            found = answer["responses"][-1]["response_range"]["kvs"]
        return decoded(found[0]["value"]).decode()

    def transact(
        self, conditions: Sequence[Compare], operations: Sequence[Operation]
    ) -> Outcome:
        """
        Do *operations* if *conditions* hold; see `Store.transact`.

        Raises:
            UnknownOutcomeError: it may have been done, or be done later.

        """
        return self._transactions.run(conditions, operations)

    def grant_lease(self, ttl_s: float) -> int:
        """Return a new lease that ends *ttl_s* after its last `keep_alive`."""
        return self._leases.grant(ttl_s)

    def keep_alive(self, lease: int) -> bool:
        """
        Return whether *lease* lives, and if so, renew it.

        Raises:
            StoreError: there was no answer, and `lease_ends_s` has not yet come.

        """
        return self._leases.keep_alive(lease)

    def end_forgotten_lease(self, lease: int, deadline_s: float) -> bool:
        """Return whether *lease* was over, and is ended now; see `Leases`."""
        return self._leases.end_forgotten(lease, deadline_s)

    def lease_ends_s(self, lease: int) -> float | None:
        """
        Return until when *lease* is surely ours, in `clock.boottime_s`.

        None is the answer for a lease that this store neither granted nor renewed.
        """
        return self._leases.ends_s(lease)

    def watch(self, prefix: str, *, after_revision: int) -> EtcdWatch:
        """Return the changes below *prefix* that came after *after_revision*."""
        self._client.require_open()
        watch = EtcdWatch(self._client, self._names, prefix, after_revision)
        with self._lock:
            self._watches.add(watch)
        return watch

    @property
    def settings(self) -> EtcdSettings:
        """Return how this cluster is reached."""
        return self._client.settings

    def close(self) -> None:
        """Close the connections; waiting watches end."""
        self._client.close()
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.stop()
