"""A volume service with a backend in memory, restartable on its durable files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from backends.base import Backend, Volume
from backends.errors import BackendError
from backends.registry import Registry
from backends.rsync.backend import RsyncBackend
from backends.rsync.quarantine import Quarantine
from plugin.daemon.node import Node
from plugin.daemon.use_cases import Given, Owning, Times, build_use_cases
from plugin.events.log import Events
from plugin.membership.directory import NodeDirectory
from plugin.membership.membership import Membership
from plugin.membership.nodes import Identity
from plugin.membership.quarantine_records import QuarantineRecords
from plugin.membership.registration import Sources
from plugin.model import Phase
from plugin.ownership.acquisition import Acquisition
from plugin.ownership.bytes_port import Alone
from plugin.ownership.copy_states import CopyStates, locate_with
from plugin.ownership.heads import Heads
from plugin.ownership.release import Release
from plugin.ownership.view import OwnershipView
from plugin.ownership.votes import Votes
from plugin.store.base import Store
from plugin.store.sqlite import SqliteStore
from plugin.volumes.catalogue import Catalogue, Stored
from plugin.volumes.options import OptionResolver
from plugin.volumes.propagation import Propagation
from plugin.volumes.references import Count
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
        self.events = Events(self.directory)
        owning = owning_alone(
            self.store,
            self.node,
            registry,
            self.backend,
            self.events,
            self.directory / "mounts",
        )
        self.ownership = owning.view
        self.catalogue = Catalogue(self.store)
        self.volumes = build_use_cases(
            Given(
                catalogue=self.catalogue,
                resolver=OptionResolver(registry, {"default": {"backend": "rsync"}}),
                references=self.node.references,
                owning=owning,
                propagation=Propagation(self.directory / "mounts", self.node),
                quarantine=no_quarantine(self.directory),
                events=self.events,
                mount_dir=self.directory / "mounts",
                times=Times(self.deadline_s, self.grace_s, 10.0),
                fit=lambda _volume, _deadline_s: None,
            )
        )

    def count(self, name: str) -> Count:
        record = self.catalogue.find(name)
        assert record is not None
        return self.node.references.total(record.record.id)

    def is_mounted(self) -> bool:
        return bool(self.backend.mounted)

    def volume_id(self, name: str) -> str:
        return self.volumes.views.get(name).record.id

    def close(self) -> None:
        self.events.close()
        self.store.close()
        self.node.close()


def owning_alone(
    store: Store,
    node: Node,
    registry: Registry,
    backend: Backend,
    events: Events,
    mount_dir: Path,
) -> Owning:
    """Return how a node without a cluster owns volumes."""
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
    nodes = NodeDirectory(store, data_only_on=lambda _: {}, always_alive=own.id)
    membership = Membership(
        store,
        own,
        facts=node,
        leases=None,
        ttl_s=15.0,
        sources=Sources(capacity=lambda: (0, 0), addresses=lambda _: ()),
        nodes=nodes,
    )
    view = OwnershipView(
        heads=Heads(store, QuarantineRecords(store)),
        copy_states=CopyStates(locate_with(backend)),
        nodes=nodes,
        membership=membership,
        registry=registry,
        events=events,
        mount_dir=mount_dir,
    )
    votes = Votes(None, node_id=node.id)
    return Owning(view, Acquisition(view, votes, Alone()), Release(view, Alone()))


def no_quarantine(directory: Path) -> Quarantine:
    """Return the quarantine of a pool that has nothing in it."""
    return RsyncBackend(directory / "no-pool", pool_id=None).quarantine


def failing(
    operation: str, error: BackendError | None = None
) -> Callable[[str, Volume], None]:
    """Return a hook that makes the backend fail at *operation*."""

    def before(name: str, _volume: Volume) -> None:
        if name == operation:
            raise error or BackendError(f"{operation} failed")

    return before


def set_phase(catalogue: Catalogue, stored: Stored, phase: Phase, node: str) -> None:
    """Leave a record in *phase*, as a crash does; *node* has to go on with it."""
    record = msgspec.structs.replace(stored.record, phase=phase, node=node)
    catalogue.replace(stored, record)
