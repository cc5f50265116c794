"""An etcd, and members of a cluster that have mirrors of it."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from plugin.store.mirror import MirrorStore
from tests.support import etcd
from tests.support.members import Members

# etcd's shortest is 2 s, and the margin before the lease's end is 4 s.
TTL_S = 7.0


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[etcd.Cluster]:
    """Yield a running etcd of one member."""
    directory = etcd.memory_directory(tmp_path_factory.mktemp("etcd-members"))
    with etcd.single(directory) as cluster:
        yield cluster


@pytest.fixture
def prefix() -> str:
    """Return a prefix that no other test uses."""
    return f"/{uuid.uuid4()}/"


@pytest.fixture
def members(server: etcd.Cluster, prefix: str, tmp_path: Path) -> Iterator[Members]:
    """Yield a cluster without members yet; each of them will have its own mirror."""
    server.heal()
    settings = EtcdSettings(server.endpoints, prefix=prefix, call_deadline_s=2.0)
    numbers = itertools.count()

    def open_store() -> MirrorStore:
        path = tmp_path / f"mirror-{next(numbers)}.db"
        return MirrorStore(EtcdStore(settings), path=path)

    made = Members(open_store, ttl_s=TTL_S)
    try:
        yield made
    finally:
        made.close()
        server.heal()
