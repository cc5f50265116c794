"""
Fixtures of the tests with kernels of their own.

A module says which nodes it wants with `TOPOLOGY = Topology.of(...)`; they boot once
for it, or for all modules that share them. Every test gets them as `lab` with the
network whole and every node on, and the next one again, whatever it cut or switched
off. A failure shows the nodes' consoles and logs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab import cluster as cluster_module
from tests.lab import kernels, nfs_cluster
from tests.lab import lab as lab_module
from tests.lab.cluster import Cluster
from tests.lab.lab import Lab, Topology
from tests.lab.labs import Labs
from tests.lab.nfs import NfsServer, started_server

if TYPE_CHECKING:
    from collections.abc import Iterator

LINES_MAX = 60
LABS = pytest.StashKey[Labs]()


@pytest.fixture(scope="session", autouse=True)
def _requirements() -> None:
    if missing := lab_module.missing():
        pytest.skip(f"needs {missing}")
    # Not a skip: the kernel is the tests' to bring.
    try:
        kernels.chosen()
    except RuntimeError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def labs(_requirements: None, request: pytest.FixtureRequest) -> Iterator[Labs]:
    """Yield where labs come from."""
    labs = request.session.stash.setdefault(LABS, Labs())
    yield labs
    labs.close()


@pytest.fixture(scope="module")
def shared_lab(labs: Labs, request: pytest.FixtureRequest) -> Lab:
    """Return the module's lab with every node on; tests take it as `lab`."""
    return labs.lab(topology_of(request.module))


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    """Return the module's lab; afterwards it is whole again."""
    yield shared_lab
    shared_lab.restore()


@pytest.fixture(scope="module")
def shared_nfs_server(labs: Labs, shared_lab: Lab) -> NfsServer:
    """Return the NFS server on the module's node `server`."""
    return labs.part("server", lambda: started_server(shared_lab["server"]))


@pytest.fixture
def nfs_server(lab: Lab, shared_nfs_server: NfsServer) -> Iterator[NfsServer]:
    """Return the NFS server; afterwards it serves its exports again."""
    yield shared_nfs_server
    lab.restore()
    shared_nfs_server.restore()


@pytest.fixture(scope="module")
def shared_cluster(
    labs: Labs, shared_lab: Lab, request: pytest.FixtureRequest
) -> Cluster:
    """Return the daemons on etcd; the module may say `ETCD_NODES` and `SETTINGS`."""
    etcd_nodes = getattr(request.module, "ETCD_NODES", cluster_module.NAMES)
    settings = getattr(request.module, "SETTINGS", {})
    own = (etcd_nodes, settings) != (cluster_module.NAMES, {})
    assert not (own and labs.is_shared), "it needs its own lab"

    def started() -> Cluster:
        cluster = Cluster(shared_lab, etcd_nodes, settings)
        try:
            cluster.start()
        except BaseException:
            labs.close()  # what of it runs is in nobody's hands
            raise
        return cluster

    return labs.part("cluster", started, Cluster.stop)


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """Yield the daemons on etcd; afterwards all of it works again."""
    shared_cluster.wait_members()
    yield shared_cluster
    shared_cluster.restore()


def topology_of(module: object) -> Topology:
    """Return the nodes that the tests of *module* want."""
    topology: Topology = getattr(module, "TOPOLOGY", nfs_cluster.SHARED)
    return topology


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep the tests that share nodes on one worker."""
    item.add_marker(pytest.mark.xdist_group(f"lab-{_sharing(item)}"))


def _sharing(item: pytest.Item) -> str:
    """Return the name that all tests with the same lab have in common."""
    assert isinstance(item, pytest.Function)
    return topology_of(item.module).shared_as or item.path.stem


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Iterator[None]:
    """End the lab with its last test: the kernels take time from what comes next."""
    yield
    goes_on = (
        nextitem is not None
        and nextitem.path.parent == item.path.parent
        and _sharing(nextitem) == _sharing(item)
    )
    if LABS in item.session.stash and not goes_on:
        item.session.stash[LABS].close()


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
