"""An etcd, and members of a cluster that have mirrors of it."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from plugin.store.mirror import MirrorStore
from tests.protocol import node
from tests.protocol.command import Cli, caller
from tests.support import etcd, peers
from tests.support.joining import Machine
from tests.support.link import Link
from tests.support.members import Members
from tests.support.owners import Owner, Records

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
    settings = EtcdSettings(server.endpoints, prefix=prefix, call_deadline_s=20.0)
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


@pytest.fixture
def records(server: etcd.Cluster, prefix: str) -> Iterator[Records]:
    """Yield the records of the cluster that `make_owner` makes nodes of."""
    server.heal()
    found = Records(server, prefix)
    yield found
    found.close()
    server.heal()


@pytest.fixture
def make_owner(
    server: etcd.Cluster, prefix: str, records: Records
) -> Iterator[Callable[..., Owner]]:
    """Return a function that starts a node of the test's own cluster, as a member."""
    del records  # what it ends comes after the nodes
    yield from owners_of(server, prefix)


@pytest.fixture(scope="module")
def shared_records(server: etcd.Cluster) -> Iterator[Records]:
    """Yield the records of `alpha` and `beta`."""
    found = Records(server, f"/{uuid.uuid4()}/")
    yield found
    found.close()


@pytest.fixture(scope="module")
def shared_owners(
    server: etcd.Cluster, shared_records: Records
) -> Iterator[tuple[Owner, Owner]]:
    """
    Yield two nodes for tests that leave them as they were.

    A Mount there waits for no other node's owner: it is refused at once.
    """
    server.heal()
    owners = owners_of(server, shared_records.store.settings.prefix)
    make = next(owners)
    yield make("alpha", mount_wait_s=0), make("beta", mount_wait_s=0)
    next(owners, None)


@pytest.fixture
def alpha(shared_owners: tuple[Owner, Owner]) -> Owner:
    """Return a node of the shared cluster."""
    return shared_owners[0]


@pytest.fixture
def beta(shared_owners: tuple[Owner, Owner]) -> Owner:
    """Return the other node of the shared cluster."""
    return shared_owners[1]


@pytest.fixture
def link(server: etcd.Cluster) -> Iterator[Link]:
    """Yield one node's own way to etcd."""
    found = Link(server)
    yield found
    found.close()


_alive: list[Owner] = []


def owners_of(server: etcd.Cluster, prefix: str) -> Iterator[Callable[..., Owner]]:
    """Yield what makes nodes; they end, whatever happens, with the generator."""
    if lacking := node.missing():
        pytest.skip(f"needs {lacking}")
    peers.require_programs()
    made: list[Owner] = []

    def make(name: str, *, start: bool = True, **arguments: Any) -> Owner:
        owner = Owner(name, server, prefix, **arguments)
        made.append(owner)
        _alive.append(owner)
        if start:
            owner.start()
            owner.wait_member()
        return owner

    try:
        yield make
    finally:
        for each in made:
            _alive.remove(each)
            each.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:
    report = yield
    if report.failed:
        for each in _alive:
            text = f"{each.log_tail()}\n{each.guard_log()[-2000:]}"
            report.sections.append((f"log of {each.name}", text))
    return report
