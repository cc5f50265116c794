"""An etcd, and members of a cluster that have mirrors of it."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from plugin.store.mirror import MirrorStore
from tests.protocol.command import Cli, caller
from tests.support import etcd
from tests.support.joining import Machine
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


@pytest.fixture
def machine(server: etcd.Cluster, tmp_path: Path) -> Machine:
    """Return a machine that is alone, and its own part of etcd."""
    return Machine(tmp_path / "a", server.endpoints)


@pytest.fixture
def cli(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Cli:
    """Return a function that calls the command on the machine."""
    return caller(SimpleNamespace(config=machine.config), monkeypatch, capsys)  # type: ignore[arg-type]
