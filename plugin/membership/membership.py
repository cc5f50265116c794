"""
Membership: this node's record, its lease, and the heartbeat that keeps both.

One thread renews the lease and does nothing else, so that nothing slow can end it. A
second one keeps the record true (addresses, capacity). Without an answer from the
store both go on trying; `deadline_s` says until when the daemon may act meanwhile.

A node that is alone runs the same code without a lease: nobody else can own anything.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable
from typing import Final

from backends.errors import RemoraError
from backends.system import clock
from plugin.errors import NodeConflictError, StoreError, TooEarlyError
from plugin.logs import fields
from plugin.membership.directory import NodeDirectory
from plugin.membership.lease import Facts, NodeLease
from plugin.membership.nodes import Identity
from plugin.membership.registration import Registration, Sources
from plugin.store.base import Store
from plugin.store.mirror import MirrorStore

log = logging.getLogger(__name__)
# Keepalives in one time to live: some may fail before the deadline comes.
_BEATS_PER_TTL: Final = 5
# After a failed one the next comes sooner.
_RETRY_S: Final = 1.0
# The time to tell dead nodes from living ones, where etcd may have forgotten to.
_LIVING_S: Final = 1.5
# How long the daemon's start waits for the first attempt, whatever hangs.
_START_WAIT_S: Final = 5.0
# The record is looked at so often, and at once when addresses change.
_UPKEEP_S: Final = 60.0
_UPKEEP_RETRY_S: Final = 5.0
_STOP_WAIT_S: Final = 6.0


class Membership:
    """See the module's text; without *leases* the node is alone."""

    def __init__(
        self,
        store: Store,
        own: Identity,
        *,
        facts: Facts,
        leases: MirrorStore | None,
        ttl_s: float,
        sources: Sources,
        nodes: NodeDirectory,
    ) -> None:
        self.own = own
        self._nodes = nodes
        self._ttl_s = ttl_s
        self._lease = (
            NodeLease(leases, facts, ttl_s=ttl_s, boot_id=own.boot_id)
            if leases
            else None
        )
        self._registration = Registration(
            store, own, lease=self._lease, sources=sources, nodes=nodes
        )
        self._listeners: list[Callable[[], None]] = []
        self._fault: RemoraError | None = TooEarlyError("not registered yet")
        self._tried = threading.Event()
        self._stopping = threading.Event()
        self._upkeep_due = threading.Event()
        # A record of ours is missing though we hold a lease.
        self._incomplete = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for name, run in (("heartbeat", self._beat), ("node-record", self._upkeep))
        ]

    def start(self) -> None:
        """
        Register, then go on in the background; if the store is away, go on at once.

        Raises:
            NodeConflictError: the cluster cannot have this node; nothing runs.

        """
        for thread in self._threads:
            thread.start()
        self._tried.wait(_START_WAIT_S)
        fault = self._fault
        if isinstance(fault, NodeConflictError):
            self.stop()
            raise fault

    def stop(self) -> None:
        """
        End the threads. The lease is left to end, or for the next start to go on with.

        Call it before the store is closed.
        """
        self._stopping.set()
        self._upkeep_due.set()
        deadline = clock.Deadline(_STOP_WAIT_S)
        for thread in self._threads:
            thread.join(deadline.remaining_s())

    @property
    def alone(self) -> bool:
        """Whether there is no cluster."""
        return self._lease is None

    @property
    def lease(self) -> int:
        """The lease that what this node owns is to hang on; 0 if there is none."""
        return self._lease.id if self._lease else 0

    def deadline_s(self) -> float:
        """
        Return until when this node may change what it owns, in `clock.boottime_s`.

        Compare it each time: a process that was stopped must find it passed. Minus
        infinity means that there is no lease, plus infinity that none is needed.
        """
        return self._lease.deadline_s() if self._lease else math.inf

    def add_listener(self, callback: Callable[[], None]) -> None:
        """
        Let *callback* be called after each attempt to renew the lease.

        Whether it succeeded, `lease` and `deadline_s` tell. The call comes from the
        thread that renews the lease, so it must return at once: set an event.
        """
        self._listeners.append(callback)

    def fault(self) -> str | None:
        """Return why this node is no full member, for people; None if it is."""
        fault = self._fault
        if fault is not None:
            return str(fault)
        if clock.boottime_s() >= self.deadline_s():
            return "its lease has ended; another one is being asked for"
        return None

    @property
    def is_coming(self) -> bool:
        """Whether this node is no member yet, and will be without anybody's doing."""
        return isinstance(self._fault, TooEarlyError)

    @property
    def drained(self) -> bool:
        """Whether this node is to take nothing new."""
        record = self._nodes.record(self.own.id)
        return record is not None and record.drained

    def end_forgotten(self, lease: int) -> None:
        """End *lease*, another node's, if it is over and the store has not ended it."""
        if self._lease and lease:
            self._lease.end_forgotten(lease)

    def living(self, node_ids: Iterable[str]) -> list[str]:
        """
        Return which of the nodes have a lease that has not ended.

        All are checked within `_LIVING_S`; a node that is not counts as living.
        """
        deadline = clock.Deadline(_LIVING_S)
        found = [each for each in node_ids if self._nodes.lease_of(each)]
        for each in found:
            if self._lease and not deadline.passed():
                lease = self._nodes.lease_of(each)
                self._lease.end_forgotten(lease, deadline.remaining_s())
        return [each for each in found if self._nodes.lease_of(each)]

    def addresses_changed(self) -> None:
        """Look at the addresses again, soon; returns at once."""
        self._upkeep_due.set()

    def remove(self, name_or_id: str, *, force: bool = False) -> str:
        """Remove a node that is gone for good; see `NodeDirectory.remove`."""
        self.end_forgotten(self._nodes.lease_of(self._nodes.id_of(name_or_id)))
        return self._nodes.remove(name_or_id, force=force)

    def _beat(self) -> None:
        """Renew the lease, or get one, until the end; alone, only register."""
        while not self._stopping.is_set():
            good = self._attempt()
            self._tried.set()
            self._tell_listeners()
            if good and self.alone:
                return
            self._stopping.wait(self._ttl_s / _BEATS_PER_TTL if good else _RETRY_S)

    def _attempt(self) -> bool:
        """Return whether this node is a full member now; each fault is logged once."""
        try:
            self._keep_lease()
        except RemoraError as error:
            lasting = isinstance(error, NodeConflictError)
            if str(error) != self.fault():
                log.log(logging.ERROR if lasting else logging.WARNING, "%s", error)
            # The reason comes first: a thread that finds no lease can read why.
            self._fault = error
            if lasting and self._lease:
                self._lease.id = 0
            return False
        except Exception:
            # Whatever it is, the lease ends unless the next beat comes.
            log.exception("the heartbeat failed")
            self._fault = StoreError("the heartbeat failed", hint="see the log")
            return False
        if self._fault is not None:
            log.info("registered", extra=fields(node=self.own.name, lease=self.lease))
        self._fault = None
        return True

    def _keep_lease(self) -> None:
        if self._lease is None or not self._lease.id:
            self._register()
        elif not self._lease.keep_alive():
            self._lease.id = 0
            log.warning("the lease has ended: what this node owned, others may take")
            self._tell_listeners()
            self._register()
        else:
            self._registration.refuse_successor()
            if self._incomplete.is_set():
                self._register()
                self._incomplete.clear()

    def _register(self) -> None:
        """Register with what is known; what has to be looked for comes soon."""
        self._registration.register()
        self._upkeep_due.set()

    def _tell_listeners(self) -> None:
        for callback in self._listeners:
            try:
                callback()
            except Exception:
                log.exception("a listener of the heartbeat failed")

    def _upkeep(self) -> None:
        """Keep the record true until the end."""
        pause_s = _UPKEEP_S
        while not self._stopping.is_set():
            self._upkeep_due.wait(pause_s)
            self._upkeep_due.clear()
            pause_s = _UPKEEP_S
            if self._stopping.is_set() or not (self.lease or self.alone):
                continue
            try:
                if not self._registration.update():
                    # Somebody has deleted them; the heartbeat writes them anew.
                    self._incomplete.set()
            except RemoraError as error:
                log.debug("this node's record is not up to date: %s", error)
                pause_s = _UPKEEP_RETRY_S
