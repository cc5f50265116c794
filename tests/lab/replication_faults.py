"""
What a campaign of replicated volumes breaks besides.

Disks fill up, etcd has no majority, a daemon answers late (it stands still most of the
time), has no descriptor left, or is killed again and again while it recovers.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Final

from .cluster import NAMES, Cluster
from .faults import KINDS as COMMON_KINDS
from .faults import Faults
from .replication_pools import POOL_DISK

_STANDS_S, _RUNS_S = 2.5, 0.4
_RESTARTS_S: Final = (0.3, 0.8, 1.5, 2.5)
_DESCRIPTORS_MAX: Final = 4096
_LIMIT: Final = "set -- {pid}; prlimit --pid $1 --nofile={most}:"
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
        if kind == "late":
            return self._late(name)
        if kind == "emfile":
            return self._emfile(name)
        if kind == "restarts":
            return self._restarts(name)
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

    @contextlib.contextmanager
    def _late(self, name: str) -> Iterator[None]:
        """The daemon answers all that it is asked, but seconds later."""
        ended = threading.Event()

        def stutter() -> None:
            while not ended.is_set():
                self.cluster.signal_daemon(name, signal.SIGSTOP)
                ended.wait(_STANDS_S)
                self.cluster.signal_daemon(name, signal.SIGCONT)
                ended.wait(_RUNS_S)

        thread = threading.Thread(target=stutter)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @contextlib.contextmanager
    def _emfile(self, name: str) -> Iterator[None]:
        """The daemon can open nothing more than it has open now."""
        daemon = self.cluster[name].daemon
        if not daemon.running:
            yield
            return
        node, pid = self.cluster.lab[name], daemon.pid
        node.run(_LIMIT.format(pid=pid, most="$(ls /proc/$1/fd | wc -l)"), check=False)
        yield
        node.run(_LIMIT.format(pid=pid, most=_DESCRIPTORS_MAX), check=False)

    @contextlib.contextmanager
    def _restarts(self, name: str) -> Iterator[None]:
        """The daemon is killed while it recovers from having been killed."""
        for pause_s in _RESTARTS_S:
            self.cluster.kill_daemon(name)
            self.cluster.launch_daemon(name)
            time.sleep(pause_s)
        self.cluster.kill_daemon(name)
        yield
        self.cluster.launch_daemon(name)


KINDS: Final = (
    *(*COMMON_KINDS, "pool-full", "etcd-majority"),
    *("late", "emfile", "restarts"),
)
