"""What the tests with failing NFS servers share: a second server, and measuring."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.lab.lab import Topology
from tests.lab.nfs import SERVER
from tests.support.host import wait_until

if TYPE_CHECKING:
    from tests.lab.nfs_cluster import NfsNode
    from tests.lab.node import NodeProcess

OTHER = dataclasses.replace(SERVER, name="other")
TWO_SERVERS = Topology.of(SERVER, OTHER, "alpha", shared_as="two-servers")
IDS = ("id", "a", "b", "c")
# The monitor looks every 15 s, and a server that is dead takes it two calls of 3 s.
NOTICED_S = 40.0
# A client that was cut off waits ever longer between its attempts.
HEALED_S = 90.0


@contextlib.contextmanager
def measured(what: str, limit_s: float) -> Iterator[None]:
    """Print how long the block took, and fail if that is longer than *limit_s*."""
    began_s = time.monotonic()
    yield
    took_s = time.monotonic() - began_s
    print(f"[measured] {what}: {took_s:.2f} s of {limit_s:g}")
    assert took_s < limit_s, f"{what} took {took_s:.1f} s of {limit_s:g}"


def remove_all(node: NfsNode) -> None:
    """Unmount and remove every volume; its servers answer again."""
    for name in node.names():
        for mount_id in IDS:
            node.remora.call("Unmount", {"Name": name, "ID": mount_id})
        node.remora.call("Remove", {"Name": name})


def reach(node: NfsNode, name: str, health: str) -> None:
    """Return when the volume's Status has *health*."""
    wait_until(
        lambda: node.status(name)["health"] == health,
        timeout_s=NOTICED_S,
        what=f"'{name}' is {health}",
        interval_s=0.2,
        evidence=lambda: node.status(name),
    )


def processes(node: NfsNode, name: str) -> list[str]:
    """Return the processes of that name: their ids and states."""
    shown = node.node.run(["ps", "-C", name, "-o", "pid=,stat=,args="], check=False)
    return shown.stdout.splitlines()


@contextlib.contextmanager
def container_like(node: NfsNode, target: str) -> Iterator[NodeProcess]:
    """Have the volume at *target* mounted in a namespace of its own, as containers."""
    script = f"mkdir -p /mnt/c; mount --bind {target} /mnt/c; echo held; sleep 600"
    holder = node.node.popen(["unshare", "--mount", "sh", "-euc", script])
    wait_until(holder.output, timeout_s=30, what="the volume is held")
    try:
        yield holder
    finally:
        holder.kill()
        holder.wait()
