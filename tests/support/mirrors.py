"""Mirrors, and an etcd that they follow."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path

from plugin.store.base import Put
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from plugin.store.mirror import MirrorStore
from tests.support import etcd

WITHIN_S = 60.0


@dataclass
class MirrorBench:
    """An etcd of one test, and stores on it."""

    cluster: etcd.Cluster
    directory: Path
    # Longer than a busy machine keeps etcd from its processor: a member that is down is
    # told by a refused connection, long before.
    call_deadline_s: float = 20.0
    prefix: str = field(default_factory=lambda: f"/{uuid.uuid4()}/")
    opened: list[MirrorStore | EtcdStore] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.directory / "mirror.db"

    def etcd(self) -> EtcdStore:
        settings = EtcdSettings(
            self.cluster.endpoints,
            prefix=self.prefix,
            call_deadline_s=self.call_deadline_s,
            watch_idle_s=2.0,
        )
        store = EtcdStore(settings)
        self.opened.append(store)
        return store

    def mirror(self) -> MirrorStore:
        store = MirrorStore(self.etcd(), path=self.path)
        self.opened.append(store)
        return store

    def ready(self) -> MirrorStore:
        store = self.mirror()
        store.refresh(WITHIN_S)
        return store

    def kill(self) -> None:
        self.cluster.members[0].kill()

    def close(self) -> None:
        for store in reversed(self.opened):
            store.close()


def put(store: MirrorStore | EtcdStore, key: str, value: bytes = b"") -> int:
    outcome = store.transact([], [Put(key, value)])
    assert outcome.succeeded
    return outcome.revision


def keys(store: MirrorStore | EtcdStore) -> list[str]:
    return [each.key for each in store.prefix("")[0]]


def facts(store: MirrorStore | EtcdStore) -> list[tuple[str, bytes, int]]:
    return [(each.key, each.value, each.mod_revision) for each in store.prefix("")[0]]
