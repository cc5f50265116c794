"""
How a node becomes one of the cluster's: its records, written in one transaction.

Before that it checks that no other node has its name or its id, and that it can work
with the nodes that live.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from backends.errors import RemoraError
from backends.system import clock
from plugin import __version__
from plugin.errors import NodeConflictError, StoreError, TooEarlyError
from plugin.membership.directory import NodeDirectory
from plugin.membership.lease import NodeLease
from plugin.membership.loading import LOADING, refuse_loading
from plugin.membership.nodes import (
    ALIVE,
    NAMES,
    NODES,
    PROTOCOL,
    PROTOCOL_OLDEST,
    AliveRecord,
    Identity,
    NodeRecord,
    clone_error,
    owner_of,
    refuse_clone,
    refuse_name,
    refuse_protocol,
)
from plugin.store.base import Compare, Delete, Operation, Put, Record, Store
from plugin.store.values import readable

log = logging.getLogger(__name__)
_REFRESH_DEADLINE_S: Final = 3.5
# Free space is worth a write when it changed by this share of the pool.
_CAPACITY_SHARE: Final = 0.01
# A lease that nobody renews ends within its time to live, or twice that if etcd's
# leader changes. What lives longer is renewed by somebody.
_DEAD_AFTER_TTLS: Final = 3


@dataclass(frozen=True, slots=True)
class Sources:
    """
    Where a node learns what it tells others of itself.

    *capacity* returns the pool's total and available bytes; *addresses* this node's
    addresses, the best one first, given the first addresses of the other nodes.
    """

    capacity: Callable[[], tuple[int, int]]
    addresses: Callable[[Sequence[str]], Sequence[str]]


@dataclass(frozen=True, slots=True)
class _Seen:
    """The records that this node's registration depends on, as they were read."""

    node: Record | None
    name: Record | None
    alive: Record | None

    def conditions(self, own: Identity) -> list[Compare]:
        """Return that none of them has changed."""
        keys = (NODES + own.id, NAMES + own.name, ALIVE + own.id)
        return [
            Compare(key, record.mod_revision if record else 0)
            for key, record in zip(
                keys, (self.node, self.name, self.alive), strict=True
            )
        ]


class Registration:
    """Writes this node's records; without *lease* the node is alone."""

    def __init__(
        self,
        store: Store,
        own: Identity,
        *,
        lease: NodeLease | None,
        sources: Sources,
        nodes: NodeDirectory,
    ) -> None:
        self._store = store
        self._own = own
        self._lease = lease
        self._sources = sources
        self._nodes = nodes
        self._registered_once = False
        self._other_seen_s = math.nan
        self._started_at = clock.now_rfc3339()

    def register(self) -> None:
        """
        Make this node a member, in one transaction.

        Raises:
            NodeConflictError: the cluster cannot have it.
            StoreError: the store did not answer, or it is too early.

        """
        self._store.refresh(_REFRESH_DEADLINE_S)
        refuse_loading(self._store)
        own = self._own
        seen = _Seen(
            self._store.get(NODES + own.id),
            self._store.get(NAMES + own.name),
            self._store.get(ALIVE + own.id),
        )
        known = readable(seen.node, NodeRecord)
        self._refuse(seen, known)
        conditions = [*seen.conditions(own), Compare(LOADING, 0)]
        # Without addresses a new node would be let in nowhere.
        record = self._own_record(known, look=known is None)
        operations: list[Operation] = [
            Put(NODES + own.id, msgspec.json.encode(record)),
            Put(NAMES + own.name, own.id.encode()),
        ]
        if known is not None and known.name != own.name:
            old = self._store.get(NAMES + known.name)
            if old is not None and owner_of(old) == own.id:
                conditions.append(Compare(old.key, old.mod_revision))
                operations.append(Delete(old.key))
        owner = owner_of(seen.name)
        if owner not in ("", own.id):
            # We are alone, and were that other node until node.db was lost.
            operations.append(Delete(NODES + owner))
        lease = 0
        if self._lease is not None:
            lease = self._lease.obtain()
            alive = AliveRecord(
                boot_id=own.boot_id, started_at=self._started_at, session=own.session
            )
            operations.append(Put(ALIVE + own.id, msgspec.json.encode(alive), lease))
        if not self._store.transact(conditions, operations).succeeded:
            raise TooEarlyError(
                "the records of nodes changed meanwhile", hint="retrying"
            )
        if self._lease is not None:
            self._lease.id = lease
        self._registered_once = True
        self._other_seen_s = math.nan

    def _refuse(self, seen: _Seen, known: NodeRecord | None) -> None:
        """Raise an error if this node cannot be a member, or not yet."""
        own = self._own
        if self._lease is None:
            return
        owner = owner_of(seen.name)
        refuse_name(own, owner, self._nodes.record(owner))
        alive = readable(seen.alive, AliveRecord)
        if seen.alive and alive is not None and alive.session != own.session:
            refuse_clone(own, known)
            if alive.boot_id != own.boot_id:
                self._lease.end_forgotten(seen.alive.lease)
                self._await_end(self._lease, known)
            elif self._registered_once:
                raise _succeeded(own)
        refuse_protocol(
            [each for each in self._nodes.all() if each.record.id != own.id],
        )

    def _await_end(self, lease: NodeLease, known: NodeRecord | None) -> None:
        """
        Raise an error while this node lives in what seems to be an earlier boot.

        That boot is dead and its lease ends, unless this machine is a copy of one that
        runs: then the lease is renewed for ever. To revoke it would also show which is
        true, but would take the volumes of a living node from it.
        """
        now_s = clock.boottime_s()
        if math.isnan(self._other_seen_s):
            self._other_seen_s = now_s
        if now_s - self._other_seen_s > _DEAD_AFTER_TTLS * lease.ttl_s:
            raise clone_error(self._own, known)
        raise TooEarlyError(
            "the lease of this node's last boot has not ended yet",
            hint=f"it does within {lease.ttl_s:.0f} s, seldom twice that",
        )

    def _own_record(self, known: NodeRecord | None, *, look: bool) -> NodeRecord:
        """
        Return the record as it should be now, after *known*.

        With *look*, pool and addresses are as they are now. That may take long, and
        who has no lease must not wait for it: its containers stand still.
        """
        own = self._own
        total_bytes, available_bytes = 0, 0
        addresses: tuple[str, ...] = ()
        if known is not None:
            total_bytes = known.pool_total_bytes
            available_bytes = known.pool_available_bytes
            addresses = known.addresses
        try:
            if look:
                addresses = tuple(self._sources.addresses(self._peers()))
                total_bytes, available_bytes = self._sources.capacity()
        except (OSError, RemoraError) as error:
            log.warning("this node's record is not up to date: %s", error)
        return NodeRecord(
            id=own.id,
            name=own.name,
            addresses=addresses,
            peer_port=own.peer_port,
            version=__version__,
            protocol=PROTOCOL,
            protocol_oldest=PROTOCOL_OLDEST,
            machine_id=own.machine_id,
            boot_id=own.boot_id,
            host_key=own.host_key,
            public_key=own.public_key,
            pool_total_bytes=total_bytes,
            pool_available_bytes=available_bytes,
            drained=known is not None and known.drained,
            joined_at=known.joined_at if known else self._started_at,
        )

    def _peers(self) -> list[str]:
        """Return the first addresses of the other nodes."""
        others = [each.record for each in self._nodes.all()]
        return [
            each.addresses[0]
            for each in others
            if each.addresses and each.id != self._own.id
        ]

    def update(self) -> bool:
        """
        Write the record if it no longer says what is true.

        Return False if records are missing that `register` writes.
        """
        self._store.refresh(_REFRESH_DEADLINE_S)
        stored = self._store.get(NODES + self._own.id)
        known = readable(stored, NodeRecord)
        alive = self._lease is None or self._store.get(ALIVE + self._own.id)
        if stored is None or known is None or not alive:
            return False
        record = self._own_record(known, look=True)
        if record.addresses == known.addresses and not _notable(known, record):
            return True
        if not self._store.transact(
            [Compare(stored.key, stored.mod_revision)],
            [Put(stored.key, msgspec.json.encode(record))],
        ).succeeded:
            raise StoreError("this node's record changed meanwhile")
        return True

    def refuse_successor(self) -> None:
        """Raise `NodeConflictError` if another daemon is this node now."""
        alive = readable(self._store.get(ALIVE + self._own.id), AliveRecord)
        if alive and alive.session != self._own.session:
            raise _succeeded(self._own)


def _notable(old: NodeRecord, new: NodeRecord) -> bool:
    """Return whether the capacity changed by so much that others should know."""
    moved_bytes = abs(new.pool_available_bytes - old.pool_available_bytes)
    return (
        new.pool_total_bytes != old.pool_total_bytes
        or moved_bytes > new.pool_total_bytes * _CAPACITY_SHARE
    )


def _succeeded(own: Identity) -> NodeConflictError:
    return NodeConflictError(
        f"another daemon of this machine is node '{own.name}' now",
        hint="stop one of the two: they share one state_dir, or a copy of it",
    )
