"""Two nodes that know each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.peers import PeerNode, require_programs


@pytest.fixture
def nodes() -> Iterator[tuple[PeerNode, PeerNode]]:
    """Yield two nodes whose channels are up."""
    require_programs()
    made: list[PeerNode] = []
    try:
        for name in ("alpha", "beta"):
            made.append(PeerNode(name))
        first, second = made
        first.knows(second.record())
        second.knows(first.record())
        for node in made:
            node.start()
        yield first, second
        for node in made:
            # The masters of shared connections end with the test, not a minute later.
            for other in made:
                node.ssh.close(other.record())
    finally:
        for node in made:
            node.close()
