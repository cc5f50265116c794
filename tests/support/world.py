"""A volume service with a backend in memory, restartable on its durable files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from backends.base import Backend, Volume
from backends.errors import BackendError
from backends.registry import Registry
from plugin.daemon.node import Node
from plugin.membership.membership import Membership
from plugin.membership.nodes import Identity
from plugin.membership.registration import Sources
from plugin.ownership.heads import Heads
from plugin.ownership.ownership import Ownership
from plugin.ownership.replica_files import Replicas, locate_with
from plugin.ownership.votes import Votes
from plugin.store.base import Store
from plugin.store.sqlite import SqliteStore
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.discovery import Discovery
from plugin.volumes.operations import Operations
from plugin.volumes.options import OptionResolver
from plugin.volumes.propagation import Propagation
from plugin.volumes.reconciler import Reconciler
from plugin.volumes.references import Count
from plugin.volumes.service import VolumeService
from tests.support.memory_backend import MemoryBackend


@dataclass
class World:
    """A service and what lies below it; `restart` keeps only what is durable."""

    directory: Path
    disk: dict[str, Volume] = field(default_factory=dict)
    grace_s: float = 0.0
    deadline_s: float = 5.0

    def __post_init__(self) -> None:
        (self.directory / "mounts").mkdir()
        self.restart()

    def restart(self) -> None:
        self.store = SqliteStore(self.directory / "store.db")
        self.node = Node(self.directory)
        (self.directory / "copies").mkdir(exist_ok=True)
        self.backend = MemoryBackend(self.disk, self.directory / "copies")
        registry = Registry([self.backend])
        catalogue = Catalogue(self.store)
        operations = Operations()
        self.service = VolumeService(
            catalogue=catalogue,
            registry=registry,
            resolver=OptionResolver(registry, {"default": {"backend": "memory"}}),
            references=self.node.references,
            operations=operations,
            discovery=Discovery(
                catalogue=catalogue,
                registry=registry,
                references=self.node.references,
                locks=operations.locks,
            ),
            ownership=ownership_alone(self.store, self.node, registry, self.backend),
            keeper=None,
            propagation=Propagation(self.directory / "mounts", self.node),
            mount_dir=self.directory / "mounts",
            mount_deadline_s=self.deadline_s,
            disuse_grace_s=self.grace_s,
        )
        self.reconciler = Reconciler(self.service, interval_s=10.0)

    def count(self, name: str) -> Count:
        record = self.service.catalogue.find(name)
        assert record is not None
        return self.service.references.total(record.record.id)

    def is_mounted(self) -> bool:
        return bool(self.backend.mounted)

    def volume_id(self, name: str) -> str:
        return str(self.service.get(name).status["id"])

    def close(self) -> None:
        self.store.close()
        self.node.close()


def ownership_alone(
    store: Store, node: Node, registry: Registry, backend: Backend
) -> Ownership:
    """Return the ownership of a node without a cluster."""
    own = Identity(
        id=node.id,
        name="alone",
        peer_port=7424,
        host_key="",
        public_key="",
        machine_id="",
        boot_id="boot",
        session="session",
    )
    membership = Membership(
        store,
        own,
        facts=node,
        leases=None,
        ttl_s=15.0,
        sources=Sources(capacity=lambda: (0, 0), addresses=lambda _: ()),
        data_only_on=lambda _: [],
    )
    return Ownership(
        heads=Heads(store),
        replicas=Replicas(locate_with(backend)),
        membership=membership,
        registry=registry,
        votes=Votes(None, node_id=node.id),
    )


def failing(operation: str) -> Callable[[str, Volume], None]:
    """Return a hook that makes the backend fail at *operation*."""

    def before(name: str, _volume: Volume) -> None:
        if name == operation:
            raise BackendError(f"{operation} failed")

    return before
