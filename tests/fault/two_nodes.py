"""The insides of two daemons that share one store, on one machine."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.errors import RemoraError
from backends.registry import Registry
from backends.rsync.backend import RsyncBackend
from backends.system import clock
from plugin.daemon.node import Node
from plugin.daemon.use_cases import Given, Owning, Times, build_use_cases
from plugin.errors import PeerUnreachableError, StoreError
from plugin.events.log import Events
from plugin.membership.directory import NodeDirectory
from plugin.membership.membership import Membership
from plugin.membership.nodes import Identity
from plugin.membership.quarantine_records import QuarantineRecords
from plugin.membership.registration import Sources
from plugin.ownership.acquisition import Acquisition
from plugin.ownership.bytes_port import Alone
from plugin.ownership.copy_states import CopyStates, locate_with
from plugin.ownership.heads import Heads
from plugin.ownership.release import Release
from plugin.ownership.state import Head
from plugin.ownership.view import OwnershipView
from plugin.ownership.votes import PromiseRequest, Votes, Witness
from plugin.peers.lines import read_request
from plugin.store.base import Compare, Delete, Operation, Outcome, Put
from plugin.store.sqlite import SqliteStore
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.options import OptionResolver
from plugin.volumes.propagation import Propagation

TTL_S = 3600.0


ENDED = "ended-leases/"


class SharedStore(SqliteStore):
    """A store with what only etcd's has: leases, which live until they are revoked."""

    # Those that are over, and that the store has not ended.
    forgotten: frozenset[int] = frozenset()

    def transact(
        self, conditions: Sequence[Compare], operations: Sequence[Operation]
    ) -> Outcome:
        for each in operations:
            if isinstance(each, Put) and each.lease and not self.keep_alive(each.lease):
                raise StoreError(f"lease {each.lease} has ended")
        return super().transact(conditions, operations)

    def grant_lease(self, ttl_s: float) -> int:
        del ttl_s
        return secrets.randbelow(2**31) + 1

    def keep_alive(self, lease: int) -> bool:
        return self.get(f"{ENDED}{lease}") is None

    def revoke_lease(self, lease: int) -> None:
        hanging = [each.key for each in self.prefix("")[0] if each.lease == lease]
        ended = Put(f"{ENDED}{lease}", b"")
        self.transact([], [ended, *(Delete(key) for key in hanging)])

    def lease_ends_s(self, lease: int) -> float | None:
        del lease
        return clock.boottime_s() + TTL_S

    def end_forgotten_lease(self, lease: int, deadline_s: float) -> bool:
        del deadline_s
        if lease not in self.forgotten:
            return False
        self.revoke_lease(lease)
        return True


class World:
    """
    One start of the inside of node *name*'s daemon, which has joined the cluster.

    A Mount waits for half of *mount_deadline_s* for who lives and does not answer.
    """

    def __init__(
        self, directory: Path, name: str, *, mount_deadline_s: float = 30.0
    ) -> None:
        self.others: dict[str, World] = {}
        home = directory / name
        (home / "mounts").mkdir(parents=True, exist_ok=True)
        self.home = home
        self.node = Node(home)
        self.store = SharedStore(directory / "store.db")
        self.pool = RsyncBackend(home / "pool", pool_id=self.node.fact("pool_id"))
        if self.node.fact("pool_id") is None:
            self.node.set_fact("pool_id", self.pool.pool.initialise())
        registry = Registry([self.pool])
        self.catalogue = Catalogue(self.store)
        self.nodes = NodeDirectory(self.store, data_only_on=lambda _: {})
        self.membership = self._membership(name)
        self.events = Events(home)
        self.ownership = OwnershipView(
            heads=Heads(self.store, QuarantineRecords(self.store)),
            copy_states=CopyStates(locate_with(self.pool)),
            nodes=self.nodes,
            membership=self.membership,
            registry=registry,
            events=self.events,
            mount_dir=home / "mounts",
        )
        votes = Votes(self, node_id=self.node.id)
        self.volumes = build_use_cases(
            Given(
                catalogue=self.catalogue,
                resolver=OptionResolver(registry, {}),
                references=self.node.references,
                owning=Owning(
                    self.ownership,
                    Acquisition(self.ownership, votes, Alone()),
                    Release(self.ownership, Alone()),
                ),
                propagation=Propagation(home / "mounts", self.node),
                quarantine=self.pool.quarantine,
                events=self.events,
                mount_dir=home / "mounts",
                fit=lambda _volume, _deadline_s: None,
                times=Times(mount_deadline_s, 0, 10.0),
            )
        )
        self.witness = self._witness(self.catalogue)
        self.membership.start()
        assert self.membership.fault() is None

    def _witness(self, catalogue: Catalogue) -> Witness:
        return Witness(
            heads=self.ownership.heads,
            copy_states=self.ownership.copy_states,
            find=lambda volume: getattr(catalogue.find(volume), "record", None),
            stop_writers=lambda _: True,
            require_free=lambda _: None,
            node_id=self.ownership.node_id,
        )

    def _membership(self, name: str) -> Membership:
        own = Identity(
            id=self.node.id,
            name=name,
            peer_port=7424,
            host_key="ssh-ed25519 AAAA",
            public_key=f"ssh-ed25519 {name}",
            machine_id=name,
            boot_id=clock.boot_id(),
            session=self.node.id,
        )
        return Membership(
            self.store,
            own,
            facts=self.node,
            leases=self.store,
            ttl_s=TTL_S,
            sources=Sources(capacity=lambda: (0, 0), addresses=lambda _: ("::1",)),
            nodes=self.nodes,
        )

    def call_all(
        self,
        node_ids: Sequence[str],
        request: str,
        body: Mapping[str, Any],
        *,
        deadline_s: float,
    ) -> dict[str, Mapping[str, Any] | RemoraError]:
        """Ask the *others*; those that do not live are silent. See `Peers`."""
        del request, deadline_s
        answers: dict[str, Mapping[str, Any] | RemoraError] = {}
        for node_id in node_ids:
            try:
                if node_id not in self.others:
                    raise PeerUnreachableError("dead")
                answers[node_id] = self.others[node_id].witness.promise(
                    self.node.id, read_request(body, PromiseRequest)
                )
            except RemoraError as error:
                answers[node_id] = error
        return answers

    def is_connected(self, node_id: str) -> bool:
        """Return whether the node lives; see `Peers`."""
        return node_id in self.others

    def meet(self, other: World) -> None:
        """Let the two ask each other."""
        self.others[other.node.id] = other
        other.others[self.node.id] = self

    def head(self) -> Head:
        record = self.volumes.views.existing("v").record
        return self.ownership.heads.read(record.id).head or Head()

    def mount(self) -> Path:
        return self.volumes.mounting.mount("v", "engine")

    def content(self) -> str | None:
        """Return what this node's copy holds; None if there is no file in it."""
        live = (
            self.home
            / "pool/volumes"
            / self.volumes.views.existing("v").record.id
            / "live"
        )
        file = live / "file"
        return file.read_text() if file.exists() else None

    def close(self) -> None:
        self.membership.stop()
        self.events.close()
        self.store.close()
        self.node.close()
