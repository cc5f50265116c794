"""In which order several workers begin tests, so that all of them end together."""

from __future__ import annotations

import zlib
from typing import Final

import pytest

# Groups of a minute and more, and modules with such tests, longest first: begun late,
# they would end long after all else. A lab keeps a processor busy, so other groups lie
# between.
LONG: Final = (
    "lab-nfs",
    "managed-plugin",
    "engine-chaos",
    "lab-test_cluster_campaign",
    "engine-checklist",
    "booted",
    "guides",
    "lab-nfs-compose",
    "lab-two-servers",
    "lab-cluster",
    "etcd-members",
    "lab-test_replication_campaign",
    "etcd",
    "lab-test_cluster_outage",
    "tests/cluster/test_replication_writers.py",
    "tests/cluster/test_replication_faults.py",
    "tests/fault/test_crash_points_cluster.py",
    "tests/cluster/test_ownership.py",
)
# Short tests fill what is left of each worker's time.
SHORT: Final = ("unit", "protocol", "contract", "bench")
StagingPlace = tuple[int, int, str]
# Two daemons that a module's tests share: each worker would start its own.
SHARED: Final = "shared_owners"


def keep_together(item: pytest.Item) -> None:
    """Put the tests of a module that share daemons into one group."""
    if SHARED in getattr(item, "fixturenames", ()):
        module = item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(module))


def place(item: pytest.Item) -> StagingPlace:
    """
    Return what tests are sorted by; equal for the tests of one group or one module.

    Between the long groups and the short tests, modules are mixed: tests that wait run
    beside tests that compute. The mixture is the same in each worker and each run.
    """
    marker = item.get_closest_marker("xdist_group")
    module = item.nodeid.partition("::")[0]
    scope = str(marker.args[0]) if marker else module
    if scope in LONG:
        return LONG.index(scope), 0, scope
    short = any(module.startswith(f"tests/{each}/") for each in SHORT)
    return len(LONG) + short, zlib.crc32(scope.encode()), scope
