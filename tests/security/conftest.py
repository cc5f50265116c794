"""What is attacked: nodes that anybody may look for, and clusters and channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.cluster.conftest import make_owner, prefix, records, server
from tests.peers.conftest import nodes
from tests.protocol import node as protocol_node
from tests.protocol.node import Node

__all__ = ["make_node", "make_owner", "nodes", "prefix", "records", "server"]


@pytest.fixture
def make_node() -> Iterator[Callable[..., Node]]:
    """Return a function that makes a node, not started, in an open directory."""
    if lacking := protocol_node.missing():
        pytest.skip(f"needs {lacking}")
    made: list[Node] = []

    def make(**arguments: object) -> Node:
        node = Node(**arguments)
        node.directory.chmod(0o755)
        made.append(node)
        return node

    yield make
    for node in made:
        node.close()
