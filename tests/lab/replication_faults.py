"""What a campaign of replicated volumes breaks besides: disks, and etcd's majority."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Final

from .cluster import NAMES, Cluster
from .faults import KINDS as COMMON_KINDS
from .faults import Faults

POOL_DISK: Final = "/pool"
_FILLER: Final = f"{POOL_DISK}/filler"
# Blocks that are kept for root are filled as well.
_FILL: Final = f"""
set -- $(stat -f -c '%f %S' {POOL_DISK})
fallocate -l $(($1 * $2)) {_FILLER} 2>/dev/null ||
    dd if=/dev/zero of={_FILLER} bs=64K 2>/dev/null || :
sync -f {POOL_DISK}
"""


def empty_disks(cluster: Cluster) -> None:
    """Remove what a fault that was not mended has filled the pools with."""
    for name in NAMES:
        cluster.lab[name].run(["rm", "-f", _FILLER])


class ReplicationFaults(Faults):
    """The common faults, and those of pools and of etcd as a whole."""

    def _context(self, kind: str, name: str) -> AbstractContextManager[None]:
        if kind == "pool-full":
            return self._pool_full(name)
        if kind == "etcd-majority":
            return self._etcd_majority(name)
        return super()._context(kind, name)

    @contextlib.contextmanager
    def _pool_full(self, name: str) -> Iterator[None]:
        node = self.cluster.lab[name]
        node.run(_FILL, timeout_s=60)
        yield
        node.run(["rm", "-f", _FILLER])

    @contextlib.contextmanager
    def _etcd_majority(self, name: str) -> Iterator[None]:
        """All but the member on *name* are frozen: nothing is decided."""
        others = [each for each in NAMES if each != name]
        for each in others:
            self.cluster.etcd.freeze(each)
        yield
        for each in others:
            self.cluster.etcd.thaw(each)


KINDS: Final = (*COMMON_KINDS, "pool-full", "etcd-majority")
