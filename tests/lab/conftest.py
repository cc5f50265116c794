"""
Fixtures of the tests with kernels of their own.

A module says which nodes it wants with `TOPOLOGY = Topology.of(...)`; they boot once
for it. Every test gets them as `lab` with the network whole and every node on, and the
next one again, whatever it cut or switched off. A failure shows the nodes' consoles and
logs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab import cluster as cluster_module
from tests.lab import kernels
from tests.lab import lab as lab_module
from tests.lab.cluster import Cluster
from tests.lab.lab import Lab, Topology
from tests.lab.nfs import SERVER, NfsServer

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_TOPOLOGY = Topology.of(SERVER, "alpha", "beta")
LINES_MAX = 60


@pytest.fixture(scope="session", autouse=True)
def _requirements() -> None:
    if missing := lab_module.missing():
        pytest.skip(f"needs {missing}")
    # Not a skip: the kernel is the tests' to bring.
    try:
        kernels.chosen()
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="module")
def shared_lab(_requirements: None, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Return the module's lab with every node on; tests take it as `lab`."""
    with Lab(getattr(request.module, "TOPOLOGY", DEFAULT_TOPOLOGY)) as lab:
        lab.boot()
        yield lab


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    """Return the module's lab; afterwards it is whole again."""
    yield shared_lab
    shared_lab.restore()


@pytest.fixture(scope="module")
def shared_nfs_server(shared_lab: Lab) -> NfsServer:
    """Return the NFS server on the module's node `server`."""
    server = NfsServer(shared_lab["server"])
    server.prepare()
    server.start_nfs()
    return server


@pytest.fixture
def nfs_server(lab: Lab, shared_nfs_server: NfsServer) -> Iterator[NfsServer]:
    """Return the NFS server; afterwards it serves its exports again."""
    yield shared_nfs_server
    lab.restore()
    shared_nfs_server.restore()


@pytest.fixture(scope="module")
def shared_cluster(
    shared_lab: Lab, request: pytest.FixtureRequest
) -> Iterator[Cluster]:
    """Yield the daemons on etcd; the module may say `ETCD_NODES` and `SETTINGS`."""
    etcd_nodes = getattr(request.module, "ETCD_NODES", cluster_module.NAMES)
    settings = getattr(request.module, "SETTINGS", {})
    cluster = Cluster(shared_lab, etcd_nodes, settings)
    cluster.start()
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """Yield the daemons on etcd; afterwards all of it works again."""
    yield shared_cluster
    shared_cluster.restore()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep a module's tests on one worker: they share its nodes."""
    item.add_marker(pytest.mark.xdist_group(f"lab-{item.path.stem}"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for lab in Lab.alive:
        for node in lab.nodes.values():
            node.mark_logs()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None]:
    report = yield
    if report.failed:
        for lab in Lab.alive:
            for node in lab.nodes.values():
                for title, text in node.new_log_text().items():
                    tail = "\n".join(text.splitlines()[-LINES_MAX:])
                    report.sections.append((f"log of {title}", tail))
                blocked = node.blocked_tasks()
                report.sections.append((f"blocked tasks of {node.name}", blocked))
    return report
