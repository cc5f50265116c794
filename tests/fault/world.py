"""The inside of a daemon that is alone, on real files, real mounts and real SQLite."""

from __future__ import annotations

from pathlib import Path

from backends.registry import Registry
from backends.rsync.backend import RsyncBackend
from plugin.daemon.node import Node
from plugin.daemon.use_cases import Given, Times, build_use_cases
from plugin.events.log import Events
from plugin.store.sqlite import SqliteStore
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.options import OptionResolver
from plugin.volumes.propagation import Propagation
from tests.support.world import owning_alone

# The reconciler leaves nothing to a later pass.
PATIENCE_S = 60.0


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
        self.events = Events(directory)
        owning = owning_alone(
            self.store, self.node, registry, backend, self.events, directory / "mounts"
        )
        self.ownership = owning.view
        self.catalogue = Catalogue(self.store)
        self.volumes = build_use_cases(
            Given(
                catalogue=self.catalogue,
                resolver=OptionResolver(registry, {}),
                references=self.node.references,
                owning=owning,
                propagation=Propagation(directory / "mounts", self.node),
                quarantine=backend.quarantine,
                events=self.events,
                mount_dir=directory / "mounts",
                times=Times(30, 0, 10.0),
            )
        )

    def close(self) -> None:
        self.events.close()
        self.store.close()
        self.node.close()
