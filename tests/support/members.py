"""Daemons' memberships in this process, each of them a node of one store."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from backends.system import clock
from plugin.membership.directory import NodeDirectory
from plugin.membership.membership import Membership
from plugin.membership.nodes import Identity
from plugin.membership.registration import Sources
from plugin.store.base import Delete, Store


class LeasedStore(Store, Protocol):
    """Every store that a cluster can have."""

    def lease_ends_s(self, lease: int) -> float | None: ...

    def end_forgotten_lease(self, lease: int, deadline_s: float) -> bool: ...


class FactsInMemory:
    """What `plugin.daemon.node.Node` keeps in its file."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def fact(self, key: str) -> str | None:
        return self.values.get(key)

    def set_fact(self, key: str, value: str) -> None:
        self.values[key] = value


@dataclass
class FakeMachine:
    """What a node finds out of the machine that it runs on."""

    addresses: tuple[str, ...] = ()
    available_bytes: int = 600
    broken: bool = False
    asked: threading.Event = field(default_factory=threading.Event)

    def capacity(self) -> tuple[int, int]:
        return 1000, self.available_bytes

    def find(self, peers: Sequence[str]) -> tuple[str, ...]:
        self.asked.set()
        if self.broken:
            raise OSError("the kernel does not answer")
        return self.addresses


class Member(Membership):
    """A member, with the directory of nodes that it was given."""

    directory: NodeDirectory


class Members:
    """Makes members, and ends them all at the end."""

    def __init__(
        self,
        open_store: Callable[[], LeasedStore],
        *,
        ttl_s: float,
        alone: bool = False,
    ) -> None:
        self.open_store = open_store
        self.store = open_store()
        self.ttl_s = ttl_s
        self.alone = alone
        self.only_on: dict[str, dict[str, list[str]]] = {}
        self.machines: dict[str, FakeMachine] = {}
        self._facts: dict[str, FactsInMemory] = {}
        self._running: list[tuple[Member, LeasedStore]] = []

    def started(self, name: str, *, addresses: tuple[str, ...] = ()) -> Member:
        """Return a new node that was started."""
        own = Identity(
            id=str(uuid.uuid4()),
            name=name,
            peer_port=7424,
            host_key="ssh-ed25519 AAAA",
            public_key="ssh-ed25519 BBBB",
            machine_id=f"machine of {name}",
            boot_id=clock.boot_id(),
            session=str(uuid.uuid4()),
        )
        self._facts[own.id] = FactsInMemory()
        self.machines[name] = FakeMachine(addresses)
        made = self._made(own)
        made.start()
        return made

    def crash(self, member: Membership) -> None:
        """End a daemon; its lease goes on for a while."""
        member.stop()

    def restarted(self, member: Member, *, name: str = "") -> Member:
        """Return the same node, started again on the same boot."""
        member.stop()
        made = self.copied(member, name=name or member.own.name)
        made.start()
        return made

    def copied(self, member: Member, **changes: str) -> Member:
        """Return a daemon on a copy of that node's disk, not yet started."""
        own = replace(member.own, session=str(uuid.uuid4()), **changes)
        self.machines.setdefault(own.name, self.machines[member.own.name])
        return self._made(own)

    def listen(self, member: Membership) -> threading.Event:
        """Return an event that each heartbeat sets."""
        heard = threading.Event()
        member.add_listener(heard.set)
        return heard

    def all_members(self) -> list[Member]:
        """Return every daemon that was made, in this order."""
        return [member for member, _ in self._running]

    def all_keys(self) -> set[str]:
        """Return all keys of the store."""
        return {each.key for each in self.store.prefix("")[0]}

    def delete(self, *keys: str) -> None:
        """Delete keys, as somebody with etcdctl does."""
        self.store.transact([], [Delete(key) for key in keys])

    def close(self) -> None:
        """End all of them."""
        for member, store in self._running:
            member.stop()
            if store is not self.store:
                store.close()
        self.store.close()

    def _made(self, own: Identity) -> Member:
        store = self.open_store()
        machine = self.machines[own.name]
        directory = NodeDirectory(
            store,
            data_only_on=lambda node_id: self.only_on.get(node_id, {}),
            always_alive=own.id if self.alone else "",
        )
        made = Member(
            store,
            own,
            facts=self._facts[own.id],
            leases=None if self.alone else store,
            ttl_s=self.ttl_s,
            sources=Sources(machine.capacity, machine.find),
            nodes=directory,
        )
        made.directory = directory
        self._running.append((made, store))
        return made
