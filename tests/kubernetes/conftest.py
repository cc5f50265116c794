"""
Fixtures of the tests with a real Kubernetes.

`cluster` is one for all of them; each test leaves it without pods and claims, with
everything running, and the next one gets it so whatever the test has broken.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.engine.conftest import pytest_runtest_makereport, pytest_runtest_setup
from tests.kubernetes.cluster import Cluster
from tests.support import engine as engine_support

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["pytest_runtest_makereport", "pytest_runtest_setup"]


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    """Yield the cluster with two nodes that are ready."""
    lacking = engine_support.missing() or (
        "" if shutil.which("mmdebstrap") else "mmdebstrap"
    )
    if lacking:
        pytest.skip(f"needs {lacking}")
    made = Cluster()
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """Yield the cluster without pods; afterwards it is so again."""
    yield shared_cluster
    shared_cluster.restore()
