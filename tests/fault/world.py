"""The inside of a daemon that is alone, on real files, real mounts and real SQLite."""

from __future__ import annotations

from pathlib import Path

from backends.registry import Registry
from backends.rsync.backend import RsyncBackend
from plugin.daemon.node import Node
from plugin.store.sqlite import SqliteStore
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.discovery import Discovery
from plugin.volumes.operations import Operations
from plugin.volumes.options import OptionResolver
from plugin.volumes.propagation import Propagation
from plugin.volumes.reconciler import Reconciler
from plugin.volumes.service import VolumeService
from tests.support.world import ownership_alone


class World:
    """One start of the daemon's inside on the files of *directory*."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.node = Node(directory)
        self.store = SqliteStore(directory / "store.db")
        backend = RsyncBackend(directory / "pool", pool_id=self.node.fact("pool_id"))
        if self.node.fact("pool_id") is None:
            self.node.set_fact("pool_id", backend.pool.initialise())
        registry = Registry([backend])
        (directory / "mounts").mkdir(exist_ok=True)
        catalogue = Catalogue(self.store)
        operations = Operations()
        self.service = VolumeService(
            catalogue=catalogue,
            registry=registry,
            resolver=OptionResolver(registry, {}),
            references=self.node.references,
            operations=operations,
            discovery=Discovery(
                catalogue=catalogue,
                registry=registry,
                references=self.node.references,
                locks=operations.locks,
            ),
            ownership=ownership_alone(self.store, self.node, registry, backend),
            keeper=None,
            propagation=Propagation(directory / "mounts", self.node),
            mount_dir=directory / "mounts",
            mount_deadline_s=30,
            disuse_grace_s=0,
        )
        self.reconciler = Reconciler(self.service, interval_s=10.0)

    def close(self) -> None:
        self.store.close()
        self.node.close()
