"""
The node's one lease: all that this node holds in the store hangs on it.

It outlives the daemon's process: which lease it was is kept durably, so that a daemon
that is started again within the time to live goes on with it, and keeps its volumes.
"""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from typing import Final, Protocol

from plugin.errors import StoreError
from plugin.store.mirror import MirrorStore

log = logging.getLogger(__name__)

# The time between our deadline and the lease's end: in it, what was begun before the
# deadline ends, and writers are stopped.
LEASE_MARGIN_S: Final = 4.0
_FACT: Final = "lease"
# A Mount that is refused asks, and is to say why within 5 s.
_FORGOTTEN_DEADLINE_S: Final = 1.25


class Facts(Protocol):
    """What this node remembers; see `plugin.daemon.node.Node`."""

    def fact(self, key: str) -> str | None:
        """Return the fact *key*."""
        ...

    def set_fact(self, key: str, value: str) -> None:
        """Keep *value* under *key*, durably."""
        ...

    def forget(self, *keys: str) -> None:
        """Forget facts, durably."""
        ...


class NodeLease:
    """The lease that this node holds, or none."""

    def __init__(
        self, store: MirrorStore, facts: Facts, *, ttl_s: float, boot_id: str
    ) -> None:
        self._store = store
        self._facts = facts
        self.ttl_s = ttl_s
        self._boot_id = boot_id
        self.id = 0

    def deadline_s(self) -> float:
        """
        Return until when this node may act, in `clock.boottime_s`.

        Without a lease it is minus infinity.
        """
        lease = self.id
        ends_s = self._store.lease_ends_s(lease) if lease else None
        return -math.inf if ends_s is None else ends_s - LEASE_MARGIN_S

    def obtain(self) -> int:
        """
        Return a lease that lives: this boot's last one, else a new one.

        The caller holds it by setting `id`. A lease of an earlier boot is not used:
        what hangs on it belongs to that boot.

        Raises:
            StoreError: the store did not answer.

        """
        boot_id, _, number = (self._facts.fact(_FACT) or "").partition(" ")
        if boot_id == self._boot_id:
            # etcd would neither renew nor refuse one whose end it forgot.
            self.end_forgotten(int(number))
            if self._store.keep_alive(int(number)):
                return int(number)
        lease = self._store.grant_lease(self.ttl_s)
        try:
            self._facts.set_fact(_FACT, f"{self._boot_id} {lease}")
        except StoreError as error:
            # On a full disk containers run on; only the next start has another lease.
            log.warning("the lease is not kept for the next start: %s", error)
        return lease

    def keep_alive(self) -> bool:
        """Return whether the lease lives, and if so, renew it."""
        return self._store.keep_alive(self.id)

    def end_forgotten(
        self, lease: int, deadline_s: float = _FORGOTTEN_DEADLINE_S
    ) -> None:
        """End another lease if its time is over; without an answer it stays."""
        with suppress(StoreError):
            if self._store.end_forgotten_lease(lease, deadline_s):
                log.warning("a lease was over, and etcd had not ended it: %d", lease)
