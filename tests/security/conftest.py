"""Nodes that anybody on the machine may look for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.protocol import node as nodes
from tests.protocol.node import Node


@pytest.fixture
def make_node() -> Iterator[Callable[..., Node]]:
    """Return a function that makes a node, not started, in an open directory."""
    if lacking := nodes.missing():
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
