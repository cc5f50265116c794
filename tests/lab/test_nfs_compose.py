"""Compose 1.x on two nodes that see one share: labels, and who removes what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import pytest

from tests.lab.lab import Lab
from tests.lab.nfs import NfsServer
from tests.lab.nfs_cluster import WITH_COMPOSE, NfsNode, empty, running
from tests.lab.services import Engine
from tests.support.host import wait_until
from tests.support.images import BUSYBOX_IMAGE

TOPOLOGY = WITH_COMPOSE
DIRECTORY: Final = "/data/shop"
FILE: Final = f"""
services:
  database:
    image: {BUSYBOX_IMAGE}
    network_mode: none
    volumes: ["rows:/v"]
volumes:
  rows:
    name: shop-rows
    driver: remora
"""
OPTIONS: Final = "    driver_opts: {profile: nas}\n"
LABEL: Final = "label=com.docker.compose.project=shop"


class Node:
    """A node with an engine, and the project's file."""

    def __init__(self, daemon: NfsNode, engine: Engine) -> None:
        self.daemon = daemon
        self.engine = engine
        self.write(FILE)
        # As the guides have it, instead of options in the file.
        profile = daemon.node.get("/etc/remora/remora.toml").decode()
        profile += profile.replace("profiles.nas", "profiles.default")
        daemon.node.put(profile, "/etc/remora/remora.toml")
        daemon.remora.restart()

    def write(self, text: str) -> None:
        """Have *text* as the project's file."""
        self.daemon.node.put(text, f"{DIRECTORY}/docker-compose.yml")

    def compose(self, *args: str, check: bool = True) -> str:
        """Return what Compose says of the project."""
        script = f'cd {DIRECTORY}; exec docker-compose "$@" 2>&1'
        command = ["sh", "-euc", script, "sh", *args]
        return self.daemon.node.run(command, timeout_s=180, check=check).stdout

    def inside(self, script: str) -> str:
        """Return what *script* prints in the container."""
        return self.engine.out("exec", "shop_database_1", "sh", "-euc", script)

    def volumes(self, *filters: str) -> list[str]:
        """Return the names of the engine's volumes."""
        return self.engine.out("volume", "ls", "-q", *filters).split()


@pytest.fixture
def pair(lab: Lab, nfs_server: NfsServer) -> Iterator[tuple[Node, Node]]:
    """Yield two nodes; afterwards nothing of the project is left."""
    with ExitStack() as stack:
        daemons = stack.enter_context(running(lab, nfs_server, "alpha", "beta"))
        nodes = []
        for each in daemons:
            engine = each.node.start_docker()
            stack.callback(engine.stop)
            nodes.append(Node(each, engine))
        alpha, beta = nodes
        yield alpha, beta
        for node in nodes:
            node.compose("down", "--volumes", check=False)
            node.daemon.node.run(["rm", "-rf", DIRECTORY])
    empty(nfs_server)


def test_the_second_node_has_the_volume_without_labels_and_may_remove_it(
    pair: tuple[Node, Node],
) -> None:
    """As docs/guides/swarm.md says; of Compose v2 a warning comes beside it."""
    alpha, beta = pair
    alpha.compose("up", "-d")
    alpha.inside("echo kept > /v/file")
    alpha.compose("down")

    beta.compose("up", "-d")
    assert beta.inside("cat /v/file") == "kept"
    assert alpha.volumes("--filter", LABEL) == ["shop-rows"]
    assert beta.volumes("--filter", LABEL) == []

    # Compose 1.x asks its own engine for the options, which only alpha's has.
    beta.write(FILE + OPTIONS)
    told = beta.compose("up", "-d", check=False)
    assert 'uses a different "profile" driver_opt (None)' in told
    beta.write(FILE)

    # Used on beta, it is removed from nowhere.
    told = alpha.compose("down", "--volumes", check=False)
    assert "NFS-INUSE" in told
    assert beta.inside("cat /v/file") == "kept"

    beta.compose("down", "--volumes")
    assert beta.volumes() == []
    # The share's catalogue is looked through every few seconds.
    wait_until(
        lambda: alpha.volumes() == [],
        timeout_s=30,
        what="alpha sees that it is gone",
        evidence=alpha.daemon.names,
    )

    # And what the removal kept is there again, whoever makes it.
    alpha.compose("up", "-d")
    assert alpha.inside("cat /v/file") == "kept"
