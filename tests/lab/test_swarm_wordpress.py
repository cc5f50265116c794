"""
The shipped stack with WordPress moves from node to node with its rows.

The images are Debian's MariaDB and WordPress under the names that the stack has, see
`tests.support.wordpress`. The file is deployed as it is but for its network, which is
the nodes' own: their kernel cannot filter packets, so it has no names of services and
no published ports.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.cluster import Cluster
from tests.lab.lab import Topology
from tests.lab.node import NodeSpec
from tests.lab.swarm import Swarm
from tests.support import wordpress
from tests.support.host import REPOSITORY, wait_until
from tests.support.wordpress import Site

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
TOPOLOGY = Topology.of(
    NodeSpec("alpha", memory="1536M"), NodeSpec("beta", memory="1536M"), "gamma"
)
START_DEADLINE_S = 300.0
SERVICES = ("blog_database", "blog_wordpress")
PORT = 80
# What the file says of the network, and what it says here.
ON_THE_NODE = {
    "    image: mariadb:10.11\n": "    image: mariadb:10.11\n    networks: [node]\n",
    '    ports: ["8080:80"]\n': "    networks: [node]\n",
    "WORDPRESS_DB_HOST: database\n": "WORDPRESS_DB_HOST: 127.0.0.1\n",
    "\nsecrets:\n": "\nnetworks:\n  node: {name: host, external: true}\n\nsecrets:\n",
}


def stack() -> bytes:
    """Return the shipped file, on the nodes' own network."""
    text = (REPOSITORY / "examples/stack-wordpress.yaml").read_text()
    for shipped, here in ON_THE_NODE.items():
        assert text.count(shipped) == 1, shipped
        text = text.replace(shipped, here)
    return text.encode()


@pytest.fixture
def swarm(cluster: Cluster) -> Iterator[Swarm]:
    """Yield a swarm whose nodes alpha and beta have the images."""
    swarm = Swarm(cluster)
    swarm.start()
    swarm.available("gamma", "drain")
    for name in ("alpha", "beta"):
        wordpress.load(swarm.engines[name].docker)
    yield swarm
    swarm.out("stack", "rm", "blog")
    swarm.stop()


def site(swarm: Swarm, name: str) -> Site:
    """Return the site as it is seen on the node *name*."""
    node = swarm.cluster.lab[name]
    return Site(
        lambda argv: node.run(argv, timeout_s=90, check=False).stdout, port=PORT
    )


def wait_page(swarm: Swarm, name: str, page: str) -> None:
    wait_until(
        lambda: site(swarm, name).page(page) != "",
        timeout_s=START_DEADLINE_S,
        what=f"WordPress answers on {name}",
        evidence=lambda: "".join(map(swarm.history, SERVICES)),
        interval_s=1.0,
    )


def test_the_pair_is_moved_with_its_rows(swarm: Swarm) -> None:
    swarm.available("beta", "pause")
    swarm.manager.docker(
        "secret", "create", "wordpress-db-password", "-", stdin=b"not-guessed"
    )
    deploy = ("stack", "deploy", "--resolve-image", "never", "-c", "-", "blog")
    swarm.manager.docker(*deploy, stdin=stack())
    wait_page(swarm, "alpha", "/wp-admin/install.php")
    site(swarm, "alpha").install()
    site(swarm, "alpha").post("from alpha")
    swarm.available("beta")
    swarm.available("alpha", "drain")
    for service in SERVICES:
        assert swarm.wait_running(service, but_not_on="alpha") == "beta"
    wait_page(swarm, "beta", "/")
    assert site(swarm, "beta").titles() == ["Hello world!", "from alpha"]
    assert "from alpha" in site(swarm, "beta").page("/")
