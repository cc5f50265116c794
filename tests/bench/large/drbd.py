"""
DRBD beside our replication, between nodes with kernels of their own.

Blocks of 16 KiB are written anywhere in a file on XFS, each with an fdatasync: on a
plain loop device, on DRBD with protocol A and C above another one, and in a volume
whose pool is on a third. Then the power of the node fails in the middle of it: how long
until the other node serves the file, and what of the writes is not there. Nodes have
one emulated processor: only ratios count.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from tests.lab import lab as lab_module
from tests.lab.cluster import NAMES, Cluster
from tests.lab.commands import NodeProcess
from tests.lab.disks import Disk
from tests.lab.lab import Lab, Topology
from tests.lab.node import Node, NodeSpec
from tests.support.host import wait_until

from .following import MIB, line, mib, table
from .sizes import Sizes

DISK: Final = "/disk"
# The least that XFS takes, and more than the file in it.
SPARE_BYTES: Final = 400 * MIB
OURS: Final = "/ours"
NAME: Final = "v"
INTERVAL: Final = "2s"
PORT: Final = 7789
WAIT_S: Final = 600.0
# Into the writing, power fails.
BEFORE_FAILURE_S: Final = 6.0
# Its writes are numbered from here, above all those of the first run.
SECOND_RUN: Final = 10**9
FILL: Final = """
import os, sys
with open(sys.argv[1], "wb") as file:
    for _ in range(int(sys.argv[2]) >> 14):
        file.write(bytes(8) + os.urandom(16376))
    os.fsync(file.fileno())
"""
# Prints now and then the last number and the time, at the end the figures. Numbers
# begin after the third argument.
WRITE: Final = """
import os, random, sys, time
file = os.open(sys.argv[1], os.O_RDWR)
blocks, first = os.fstat(file).st_size >> 14, int(sys.argv[3])
began, number, took = time.monotonic(), 0, []
while time.monotonic() - began < float(sys.argv[2]):
    number += 1
    block = (first + number).to_bytes(8, "big") + os.urandom(16376)
    start = time.monotonic()
    os.pwrite(file, block, random.randrange(blocks) << 14)
    os.fdatasync(file)
    took.append(time.monotonic() - start)
    if number % 10 == 0:
        print(first + number, time.monotonic() - began, flush=True)
took.sort()
passed = time.monotonic() - began
print(number / passed, took[len(took) // 2], took[len(took) * 99 // 100], flush=True)
"""
LAST: Final = """
import os, sys
file, last = os.open(sys.argv[1], os.O_RDONLY), 0
for at in range(0, os.fstat(file).st_size, 1 << 14):
    last = max(last, int.from_bytes(os.pread(file, 8, at), "big"))
print(last)
"""
RESOURCE: Final = """
resource r0 {{
    net {{ protocol {protocol}; }}
    device /dev/drbd0;
    meta-disk internal;
    {hosts}
}}
"""
HOST: Final = "on {name} {{ disk {device}; address {address}:{port}; }}"


@dataclass(frozen=True, slots=True)
class Subject:
    """
    A filesystem: ``begin`` returns the file's directory on the serving node.

    ``take_over`` has the other node serve, and returns its directory there.
    """

    name: str
    begin: Callable[[], str]
    take_over: Callable[[], str] | None = None
    settle: Callable[[str], object] = str


def missing() -> str:
    """Return what this machine lacks for it, or ''."""
    return lab_module.missing() or ("" if shutil.which("drbdadm") else "drbd-utils")


def place(stack: ExitStack, kind: str, disk_bytes: int) -> Cluster:
    """Return three nodes; on one of them etcd will run."""
    disk = Disk("ext4", at=DISK, size=f"{disk_bytes // MIB}M")
    specs = (NodeSpec(name, disks=(disk,)) for name in NAMES)
    lab = stack.enter_context(Lab(Topology.of(*specs)))
    lab.boot()
    return Cluster(lab, NAMES[-1:], {name: {"pool": f"{OURS}/pool"} for name in NAMES})


def measure(cluster: Cluster, sizes: Sizes) -> None:
    """Print what each does while it serves, and when the node's power fails."""
    alpha, beta = (cluster.lab[name] for name in NAMES[:2])
    what = f"{mib(sizes.drbd_bytes)}, writes of 16 KiB with fdatasync"
    table(what, "a second", "p50", "p99", "on the line, a write", "served", "lost")
    rates = {}
    for subject in subjects(cluster, sizes):
        directory = subject.begin()
        path = f"{directory}/file"
        run(alpha, FILL, path, str(sizes.drbd_bytes))
        subject.settle(directory)
        before = carried_bytes(alpha)
        writing = begun(alpha, path, sizes.drbd_seconds)
        assert writing.wait(sizes.drbd_seconds + WAIT_S) == 0, writing.error_output()
        rate, p50_s, p99_s = map(float, writing.output().splitlines()[-1].split())
        rates[subject.name] = rate
        writes = rate * sizes.drbd_seconds
        carried = (carried_bytes(alpha) - before) / writes
        cells = [f"{rate:.0f}", f"{1000 * p50_s:.1f} ms", f"{1000 * p99_s:.1f} ms"]
        cells.append(f"{carried / 1024:.1f} KiB")
        if subject.take_over:
            served_s, lost, lost_s = failed(alpha, beta, subject, path)
            cells += [f"{served_s:.1f} s", f"{lost} writes, {lost_s:.1f} s"]
        line(subject.name, *cells, *[""] * (6 - len(cells)))
    table("remora's writes, against", "")
    for name, rate in rates.items():
        line(name, f"{rates['remora'] / rate:.2f} x")


def subjects(cluster: Cluster, sizes: Sizes) -> Iterator[Subject]:
    """Yield what is measured; the serving node has nothing else to do each time."""
    alpha, beta = nodes = [cluster.lab[name] for name in NAMES[:2]]
    yield from plain("plain", alpha, sizes)
    for protocol in "AC":
        yield Subject(
            f"DRBD, protocol {protocol}",
            lambda protocol=protocol: on_drbd(nodes, protocol, sizes),
            lambda: promoted(beta),
        )
        beta.run(f"umount /drbd; drbdadm down r0; losetup -D; rm {DISK}/drbd")
        cluster.lab.restore()
    # What differs from the first one is noise.
    yield from plain("plain again", alpha, sizes)
    for name in NAMES:
        on_loop(cluster.lab[name], OURS, sizes)
    cluster.start()
    cluster.wait_members()
    yield Subject(
        "remora",
        lambda: mounted(cluster, NAMES[0]),
        lambda: mounted(cluster, NAMES[1]),
        lambda directory: wait_in_step(cluster, f"{directory}/file"),
    )
    cluster.stop()


def plain(name: str, node: Node, sizes: Sizes) -> Iterator[Subject]:
    """Yield a filesystem that nothing copies."""
    yield Subject(name, lambda: on_loop(node, "/plain", sizes))
    node.run("umount /plain; losetup -D")


def on_loop(node: Node, at: str, sizes: Sizes) -> str:
    """Return *at*, made an XFS of its own."""
    device = loop(node, at.strip("/"), sizes)
    node.run(f"mkfs.xfs -q -K {device}; mkdir -p {at}; mount {device} {at}")
    return at


def loop(node: Node, name: str, sizes: Sizes) -> str:
    """Return a device of the node's that is empty."""
    size_bytes = 3 * sizes.drbd_bytes + SPARE_BYTES
    path = f"{DISK}/{name}"
    node.run(f"rm -f {path}; truncate -s {size_bytes} {path}")
    return node.out(f"losetup --find --show {path}")


def on_drbd(nodes: list[Node], protocol: str, sizes: Sizes) -> str:
    """Return the directory of an XFS on DRBD, where the first of *nodes* serves."""
    hosts = "\n".join(
        HOST.format(
            name=each.name,
            device=loop(each, "drbd", sizes),
            address=each.ipv4,
            port=PORT,
        )
        for each in nodes
    )
    for each in nodes:
        text = RESOURCE.format(protocol=protocol, hosts=hosts)
        each.put(text.encode(), "/etc/drbd.d/r0.res")
        each.run("modprobe drbd; yes yes | drbdadm create-md --force r0; drbdadm up r0")
    first = nodes[0]
    wait_until(
        lambda: "Connected" in first.out("drbdadm cstate r0"),
        timeout_s=WAIT_S,
        what="the nodes' DRBD are connected",
    )
    first.run(
        "drbdadm -- --clear-bitmap new-current-uuid r0; drbdadm primary --force r0;"
        " mkfs.xfs -q -K /dev/drbd0; mkdir -p /drbd; mount /dev/drbd0 /drbd",
        timeout_s=WAIT_S,
    )
    return "/drbd"


def promoted(node: Node) -> str:
    """Return the directory, once DRBD takes its peer for gone and *node* serves."""
    node.run(
        "until drbdadm primary r0 2> /dev/null; do sleep 0.1; done;"
        " mkdir -p /drbd; mount /dev/drbd0 /drbd",
        timeout_s=WAIT_S,
    )
    return "/drbd"


def mounted(cluster: Cluster, name: str) -> str:
    """Return the directory of the volume's bytes, once node *name* has mounted it."""
    member = cluster[name]
    if name == NAMES[0]:
        member.made(NAME, interval=INTERVAL, members=",".join(NAMES[:2]))
    wait_until(
        lambda: "Mountpoint" in member.call("Mount", NAME, ID="id"),
        timeout_s=WAIT_S,
        what=f"{name} has mounted it",
    )
    return f"{OURS}/pool/volumes/{member.facts(NAME)['id']}/live"


def wait_in_step(cluster: Cluster, path: str) -> None:
    """Return when the other node has the file as it is."""

    def same() -> bool:
        sums = [
            cluster.lab[name]
            .run(f"md5sum {path}", check=False, timeout_s=WAIT_S)
            .stdout
            for name in NAMES[:2]
        ]
        return bool(sums[0]) and sums[0] == sums[1]

    wait_until(same, timeout_s=WAIT_S, what="the copy is there", interval_s=2.0)


def failed(
    alpha: Node, beta: Node, subject: Subject, path: str
) -> tuple[float, int, float]:
    """Return the seconds until the other node serves; what it lacks, in seconds too."""
    assert subject.take_over is not None
    writing = begun(alpha, path, WAIT_S, first=SECOND_RUN)
    time.sleep(BEFORE_FAILURE_S)
    began_s = time.monotonic()
    alpha.power_off()
    directory = subject.take_over()
    served_s = time.monotonic() - began_s
    lines = writing.output().rpartition("\n")[0].splitlines()
    acknowledged = [(int(n), float(s)) for n, s in map(str.split, lines)]
    last, last_s = acknowledged[-1]
    there = max(SECOND_RUN, int(run(beta, LAST, f"{directory}/file")))
    there_s = max((s for number, s in acknowledged if number <= there), default=0.0)
    return served_s, max(0, last - there), last_s - there_s


def begun(node: Node, path: str, seconds: float, *, first: int = 0) -> NodeProcess:
    """Return the writer."""
    arguments = (path, str(seconds), str(first))
    return node.popen([sys.executable, "-IS", "-c", WRITE, *arguments])


def run(node: Node, program: str, *arguments: str) -> str:
    """Return what the Python *program* prints."""
    command = [sys.executable, "-IS", "-c", program, *arguments]
    return node.out(command, timeout_s=WAIT_S)


def carried_bytes(node: Node) -> int:
    """Return what has gone over the node's line, both ways, etcd's part with it."""
    shown = node.out("cd /sys/class/net/vec0/statistics; cat rx_bytes tx_bytes")
    return sum(map(int, shown.split()))
