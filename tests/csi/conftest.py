"""A node with its daemon and its driver."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.conftest import (  # noqa: F401 - fixtures
    make_owner,
    prefix,
    records,
    server,
)
from tests.protocol.node import Node, running
from tests.support.csi import Driver


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """Yield the module's node; tests have volumes of their own."""
    with running() as made:
        yield made


@pytest.fixture(scope="module")
def driver(node: Node) -> Iterator[Driver]:
    """Yield the driver of the module's node."""
    made = Driver(node)
    made.start()
    yield made
    made.stop()
