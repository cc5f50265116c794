"""The store of a cluster: etcd."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

from backends.system import clock
from plugin.store.base import Compare, Operation, Outcome, Record
from plugin.store.etcd.client import Client
from plugin.store.etcd.codec import Namespace, revision_of
from plugin.store.etcd.leases import Leases
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
        return self._names.record(pairs[0]) if pairs else None

    def prefix(self, prefix: str) -> tuple[list[Record], int]:
        """Return the records below *prefix*; see `Store.prefix`."""
        answer = self._client.call(
            "/v3/kv/range", self._names.below(prefix), deadline=self._client.deadline()
        )
        records = [self._names.record(each) for each in answer.get("kvs", [])]
        return records, revision_of(answer)

    def refresh(self, deadline_s: float) -> None:
        """Return when a majority answered; see `Store.refresh`."""
        self._client.call(
            "/v3/kv/range",
            {"key": self._names.slot("")},
            deadline=clock.Deadline(deadline_s),
        )

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
        """Return a new lease; see `Store.grant_lease`."""
        return self._leases.grant(ttl_s)

    def keep_alive(self, lease: int) -> bool:
        """
        Renew *lease*; see `Store.keep_alive`.

        Raises:
            StoreError: there was no answer, and `lease_ends_s` has not yet come.

        """
        return self._leases.keep_alive(lease)

    def revoke_lease(self, lease: int) -> None:
        """End *lease*; see `Store.revoke_lease`."""
        self._leases.revoke(lease)

    def lease_ends_s(self, lease: int) -> float | None:
        """
        Return until when *lease* is surely ours, in `clock.boottime_s`.

        None is the answer for a lease that this store neither granted nor renewed.
        """
        return self._leases.ends_s(lease)

    def watch(self, prefix: str, *, after_revision: int) -> EtcdWatch:
        """Return the changes below *prefix*; see `Store.watch`."""
        self._client.require_open()
        watch = EtcdWatch(self._client, self._names, prefix, after_revision)
        with self._lock:
            self._watches.add(watch)
        return watch

    def close(self) -> None:
        """Close the connections; waiting watches end."""
        self._client.close()
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.stop()
