"""The inside of a daemon that is alone, on real files, real mounts and real SQLite."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from backends.nfs.backend import NfsBackend
from backends.readonly.backend import ReadonlyBackend
from backends.readonly.sources import Source, Tree
from backends.registry import Registry
from backends.rsync.backend import RsyncBackend
from backends.system.clock import Deadline
from plugin.daemon.cluster_node import record_of
from plugin.daemon.node import Node
from plugin.daemon.use_cases import Given, Times, build_use_cases
from plugin.events.log import Events
from plugin.replication.journals import Journals
from plugin.replication.last_commits import LastCommits
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
        mount_dir = directory / "mounts"
        nfs = NfsBackend(directory, node="node")
        readonly = ReadonlyBackend(backend, nfs, self, mount_dir)
        registry = Registry([readonly, backend])
        (directory / "mounts").mkdir(exist_ok=True)
        self.events = Events(directory)
        owning = owning_alone(
            self.store, self.node, registry, backend, self.events, directory / "mounts"
        )
        self.ownership = ownership = owning.view
        self.catalogue = Catalogue(self.store)
        self._last_commits = LastCommits(
            Journals(backend, ownership.copy_states),
            *(ownership.heads, ownership.nodes, ownership.membership),
            record_of=partial(record_of, self.catalogue),
            knows=lambda volume_id: volume_id in self.catalogue.names(),
        )
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
                fit=lambda _volume, _deadline_s: None,
                times=Times(30, 0, 10.0),
            )
        )

    # What can be read: see `backends.readonly.sources.Sources`.

    def find(self, name: str) -> Source | None:
        return self._last_commits.find(name)

    def has_record(self, volume_id: str) -> bool:
        return self._last_commits.has_record(volume_id)

    def reading(self, name: str, deadline: Deadline) -> AbstractContextManager[Tree]:
        return self._last_commits.reading(name, deadline)

    def close(self) -> None:
        self.events.close()
        self.store.close()
        self.node.close()
