"""
Asking another node: `python -m tests.bench.peers`.

Two nodes in this process, each with an sshd of its own, on loopback: how long a
connection takes to open, and a call over it; alone and beside an rsync that fills the
line. With `--mbit N` the line is a slow one, in a network namespace of its own. Last,
the memory of two daemons that know each other, at rest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import etcd
from tests.support.owners import Owner
from tests.support.peers import PeerNode
from tests.support.processes import command, descendants

from . import machine
from .report import Spread
from .subjects import memory_mb, settle

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CALLS, CALLS_QUICK = 2000, 20
CONNECTIONS, CONNECTIONS_QUICK = 40, 2
SIZE_MIB, SIZE_MIB_SLOW, SIZE_MIB_QUICK = 1024, 32, 8
DEADLINE_S = 60.0
# A call now and then, as the daemon has them, not one after the other.
PAUSE_S = 0.01
INSIDE = "REMORA_BENCH_LINE"


def main() -> int:
    """Return the exit code: 0, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--mbit", type=int, help="the line's speed; no memory then")
    arguments = parser.parse_args()
    if arguments.mbit and INSIDE not in os.environ:
        os.environ[INSIDE] = "slow"
        os.execvp("unshare", ["unshare", "--net", sys.executable, "-m", *_again()])
    load = machine.load()
    print("| what | p50 | p99 | worst |\n|---|---|---|---|")
    with ExitStack() as stack:
        if arguments.mbit:
            _slow_line(arguments.mbit)
        first, second = (stack.enter_context(closing(PeerNode(n))) for n in "ab")
        first.knows(second.record())
        second.knows(first.record())
        for each in (first, second):
            each.start()
        for what, samples_ms in measured(first, second, arguments):
            spread = Spread.of(samples_ms)
            cells = (spread.p50, spread.p99, max(samples_ms))
            print(f"| {what} | " + " | ".join(f"{each:.2f}" for each in cells) + " |")
        first.ssh.close(second.record())
    print(f"\nMilliseconds. Load {load} before, {machine.load()} after.\n")
    if not arguments.mbit:
        print("\n".join(memory(settle_s=5 if arguments.quick else 70)))
    return 0


def _again() -> list[str]:
    return ["tests.bench.peers", *sys.argv[1:]]


def _slow_line(mbit: int) -> None:
    limit = ("rate", f"{mbit}mbit", "burst", "64kb", "latency", "100ms")
    for line in (
        ("ip", "link", "set", "lo", "mtu", "1500", "up"),
        ("tc", "qdisc", "add", "dev", "lo", "root", "tbf", *limit),
    ):
        subprocess.run(line, check=True, timeout=30)


def measured(
    first: PeerNode, second: PeerNode, arguments: argparse.Namespace
) -> Iterator[tuple[str, Sequence[float]]]:
    """Yield what was measured, and its samples in ms."""
    peer = second.record()
    count = CALLS_QUICK if arguments.quick else CALLS

    def call() -> float:
        began_s = time.perf_counter()
        first.peers.call(second.id, "hello", {}, deadline_s=DEADLINE_S)
        return (time.perf_counter() - began_s) * 1000

    def first_call() -> float:
        first.peers.update([])
        first.peers.update([peer])
        return call()

    yield "the first connection of the process, and a call", [first_call()]
    connections = CONNECTIONS_QUICK if arguments.quick else CONNECTIONS
    yield "a connection and a call", [first_call() for _ in range(connections)]
    yield "a call, one after the other", [call() for _ in range(count)]
    source = first.directory / "source"
    source.mkdir()
    size_mib = SIZE_MIB_SLOW if arguments.mbit else SIZE_MIB
    size_mib = SIZE_MIB_QUICK if arguments.quick else size_mib
    (source / "file").write_bytes(os.urandom(size_mib << 20))
    assert first.send(second, source, []).returncode == 0  # its connection is there
    transfer = threading.Thread(target=first.send, args=(second, source, ["file"]))
    transfer.start()
    samples = []
    while transfer.is_alive():
        time.sleep(PAUSE_S)
        samples.append(call())
    yield "a call beside a transfer that fills the line", samples


def memory(*, settle_s: float) -> Iterator[str]:
    """Yield the lines of a table of the memory of a daemon with one peer."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        server = stack.enter_context(etcd.single(directory))
        owners = [
            stack.enter_context(closing(Owner(name, server, "/bench/")))
            for name in ("alpha", "beta")
        ]
        for each in owners:
            each.start()
            each.wait_member()
        settle(settle_s)  # until they have greeted each other, if need be twice
        pid = owners[0].process.pid
        yield "| process | Rss | Pss |"
        yield "|---|---|---|"
        total = [0.0, 0.0]
        for process in (pid, *descendants(pid)):
            rss, pss = memory_mb(process)
            total = [total[0] + rss, total[1] + pss]
            yield f"| {command(process)} | {rss:.1f} | {pss:.1f} |"
        yield f"| together | {total[0]:.1f} | {total[1]:.1f} |"
        yield "\nMB, of a daemon in a cluster of two, at rest."


if __name__ == "__main__":
    sys.exit(main())
