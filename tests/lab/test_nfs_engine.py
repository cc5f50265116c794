"""NFS volumes under a Docker Engine: `docker cp`, and what a dead server delays."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.lab import Lab
from tests.lab.labs import Labs
from tests.lab.nfs import XFS, NfsServer, started_server
from tests.lab.nfs_cluster import NfsNode, empty, running
from tests.lab.nfs_faults import (
    HEALED_S,
    TWO_SERVERS,
    measured,
    reach,
    remove_all,
)
from tests.lab.services import Engine
from tests.support.images import BUSYBOX_IMAGE

TOPOLOGY = TWO_SERVERS
TURNS = 3
# What a call may take beside a dead server: two seconds, or as much more than before
# as a busy machine explains.
LIMIT_S = 2.0
FACTOR = 3.0


@pytest.fixture(scope="module")
def other(labs: Labs, shared_lab: Lab) -> NfsServer:
    """Return a second server, which nobody harms."""
    return labs.part("other", lambda: started_server(shared_lab["other"]))


@pytest.fixture(scope="module")
def daemon(shared_lab: Lab, shared_nfs_server: NfsServer) -> Iterator[NfsNode]:
    """Yield the daemon on alpha, started once for the module."""
    with running(shared_lab, shared_nfs_server, "alpha") as (alpha,):
        yield alpha


@pytest.fixture(scope="module")
def engine(daemon: NfsNode) -> Iterator[Engine]:
    """Yield an engine beside the daemon."""
    engine = daemon.node.start_docker()
    yield engine
    engine.stop()


@pytest.fixture
def alpha(
    daemon: NfsNode, engine: Engine, nfs_server: NfsServer, other: NfsServer
) -> Iterator[NfsNode]:
    """Yield the daemon; afterwards no container and no volume is left."""
    yield daemon
    nfs_server.heal()
    if containers := engine.out("ps", "-aq").split():
        engine.docker("rm", "-f", *containers)
    remove_all(daemon)
    empty(nfs_server)
    empty(other)


def _run_container(engine: Engine, server: NfsServer, volume: str) -> str:
    """Return a container that sleeps with *volume* at /v."""
    options = ("-o", f"server={server.ipv4}", "-o", f"share={XFS}")
    engine.docker("volume", "create", "-d", "remora", *options, volume)
    return engine.out(
        *("run", "-d", "--network", "none", "-v", f"{volume}:/v"),
        *(BUSYBOX_IMAGE, "sleep", "1000"),
    )


def test_22_docker_cp_leaves_the_volume_mounted(
    alpha: NfsNode, engine: Engine, nfs_server: NfsServer
) -> None:
    container = _run_container(engine, nfs_server, "data")
    (target,) = alpha.mounted()
    alpha.node.put("copied in\n", "/data/in")
    for turn in range(2):
        engine.docker("cp", "/data/in", f"{container}:/v/file{turn}")
        assert alpha.mounted() == [target]
        engine.docker("cp", f"{container}:/v/file{turn}", "/data/out")
        assert alpha.mounted() == [target]
        assert alpha.node.out(["cat", "/data/out"]) == "copied in"
    engine.docker("exec", container, "sh", "-c", "echo written > /v/file2")
    path = nfs_server.local(f"{XFS}/data")
    assert nfs_server.run(f"cat {path}/file0 {path}/file2") == "copied in\nwritten\n"
    engine.docker("rm", "-f", container)
    assert alpha.mounted() == []


def test_beside_a_dead_server_nothing_else_takes_longer(
    alpha: NfsNode, engine: Engine, nfs_server: NfsServer, other: NfsServer
) -> None:
    container = _run_container(engine, nfs_server, "dead")
    before = _medians(alpha, engine, other)
    nfs_server.cut()
    at_once = _medians(alpha, engine, other)
    reach(alpha, "dead", "unreachable")
    later = _medians(alpha, engine, other)
    for what, before_s in before.items():
        print(
            f"[measured] {what}: {before_s:.2f} s before, {at_once[what]:.2f} s just "
            f"after the server died, {later[what]:.2f} s once that is known"
        )
        limit_s = max(LIMIT_S, FACTOR * before_s)
        assert at_once[what] < limit_s, what
        assert later[what] < limit_s, what
    with measured("docker rm -f of the dead volume's container", 30):
        engine.docker("rm", "-f", container)
    assert alpha.mounted() == []
    nfs_server.heal()
    with measured("a container on it when the server is back", HEALED_S):
        assert engine.shell("dead", "echo back > /v/file; cat /v/file") == "back"


def _medians(alpha: NfsNode, engine: Engine, other: NfsServer) -> dict[str, float]:
    """Return how long each thing takes that has nothing to do with the dead server."""
    kinds = {
        "of the other server": {"server": other.ipv4, "share": XFS},
        "of backend rsync": {"backend": "rsync"},
    }
    found = {
        "docker ps": _median(lambda _: engine.out("ps")),
        "docker volume ls": _median(lambda _: engine.out("volume", "ls")),
    }
    for kind, options in kinds.items():
        steps = {
            "Create": {"Opts": {**options, **_delete(options)}},
            "Mount": {"ID": "id"},
            "Unmount": {"ID": "id"},
            "Remove": {},
        }
        for method, more in steps.items():
            found[f"{method} {kind}"] = _median(_call(alpha, method, more))
    return found


def _delete(options: dict[str, str]) -> dict[str, str]:
    return {"onDelete": "delete"} if "server" in options else {}


def _call(alpha: NfsNode, method: str, more: dict[str, Any]) -> Callable[[int], object]:
    def call(turn: int) -> None:
        answer = alpha.remora.call(method, {"Name": f"turn{turn}", **more})
        assert not answer.get("Err"), answer

    return call


def _median(act: Callable[[int], object]) -> float:
    """Return the middle one of the seconds that some turns of *act* take."""
    took_s = []
    for turn in range(TURNS):
        began_s = time.monotonic()
        act(turn)
        took_s.append(time.monotonic() - began_s)
    return statistics.median(took_s)
