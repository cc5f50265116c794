"""Clusters and channels that are attacked: those of the tests that use them rightly."""

from __future__ import annotations

from tests.cluster.conftest import make_owner, prefix, records, server
from tests.peers.conftest import nodes

__all__ = ["make_owner", "nodes", "prefix", "records", "server"]
