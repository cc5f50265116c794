"""
How long a volume is away when its node's power fails, and how often that seems so.

    python -m tests.bench.failover [--ttl SECONDS]... [--rounds N] [--alarms MINUTES]

Two daemons, and etcd with its data in memory. Power fails as others see it: every
process of the node stands still, its sockets are open and silent, and nothing of it
comes to etcd. Told is the time until a Mount on the other node has returned. Then the
false alarms: nodes that are well, beside two busy loops for each processor, and how
many leases end all the same.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.protocol.node import wait_until
from tests.support import etcd
from tests.support.link import Link
from tests.support.owners import WAIT_S, Owner
from tests.support.processes import descendants, with_argument

from . import machine

NAME: Final = "v"
# A daemon that was just started keeps its predecessor's word for ten seconds.
SETTLE_S: Final = 12.0
BUSY: Final = "while True: pass"
BUSY_PER_PROCESSOR: Final = 2
MOUNT_S: Final = 110.0


class Pair:
    """Two nodes with a volume, each with a way to etcd of its own."""

    def __init__(self, stack: ExitStack, ttl_s: float) -> None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        memory = etcd.memory_directory(directory)
        stack.callback(subprocess.run, ["umount", memory], check=True, timeout=30)
        server = stack.enter_context(etcd.single(memory))
        self.links: dict[str, Link] = {}
        self.nodes: list[Owner] = []
        for name in ("alpha", "beta"):
            link = self.links[name] = stack.enter_context(closing(Link(server)))
            settings = {"lease_ttl_s": ttl_s, "mount_wait_s": 20, "link": link}
            owner = Owner(name, server, "/bench/", tuning={}, **settings)
            self.nodes.append(stack.enter_context(closing(owner)))
            owner.start()
            owner.wait_member()
        members = ",".join(self.links)
        self.volume = self.nodes[0].create(NAME, interval="1s", members=members)
        self.nodes[1].wait_known(NAME)

    def fail(self, ttl_s: float) -> float:
        """Return how long the volume was away after its owner's power failed."""
        owner, other = self.nodes
        target = owner.mount(NAME)
        content = str(random.random())
        owner.path(target / "file").write_text(content)
        copy = other.copy(self.volume) / "live/file"
        wait_until(
            lambda: copy.exists() and copy.read_text() == content,
            "the copy follows",
            timeout_s=WAIT_S,
        )
        # Anywhere between two keepalives, which are a fifth of the lease apart.
        time.sleep(SETTLE_S + random.uniform(0, ttl_s / 5))
        began_s = time.monotonic()
        pids = processes_of(owner)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        self.links[owner.name].cut()
        error = "nobody has asked"
        while error:
            error = other.call(
                "Mount", {"Name": NAME, "ID": "one"}, timeout_s=MOUNT_S
            ).error
        took_s = time.monotonic() - began_s
        assert copy.read_text() == content
        self._restore(owner, other, pids)
        self.nodes.reverse()
        return took_s

    def _restore(self, owner: Owner, other: Owner, pids: Sequence[int]) -> None:
        """Have *owner* start after its power failure, and nobody use the volume."""
        owner.kill()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(AssertionError):
            owner.run("umount", str(owner.mount_dir / self.volume))
        self.links[owner.name].mend()
        owner.start()
        owner.wait_member()
        other.unmount(NAME)
        owner.call("Unmount", {"Name": NAME, "ID": "one"})


def processes_of(owner: Owner) -> list[int]:
    """Return what runs on the node: the daemon, its sshd and sessions, the guard."""
    assert owner.process is not None
    pid = owner.process.pid
    guards = with_argument(str(owner.state_dir / "fencing"))
    return list(dict.fromkeys([pid, *descendants(pid), *guards]))


@contextmanager
def busy() -> Iterator[None]:
    """Have every processor contended for meanwhile."""
    count = BUSY_PER_PROCESSOR * (os.cpu_count() or 1)
    loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for each in loops:
            each.kill()
            each.wait(WAIT_S)


def false_alarms(ttl_s: float, minutes: float) -> tuple[int, int, int]:
    """Return leases and volumes that were lost, and how often writers were stopped."""
    with ExitStack() as stack:
        pair = Pair(stack, ttl_s)
        pair.nodes[0].mount(NAME)
        with busy():
            time.sleep(minutes * 60)
        logs = [line for each in pair.nodes for line in each.log_lines()]
        ended = sum("the lease has ended" in str(each.get("event")) for each in logs)
        lost = sum(each.get("event") == "lost" for each in logs)
        stops = sum(each.guard_log().count(" stops ") for each in pair.nodes)
        return ended, lost, stops


def main() -> int:
    """Return the exit code: 0, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.failover")
    parser.add_argument("--ttl", action="append", type=float)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--alarms", type=float, default=5.0, metavar="MINUTES")
    arguments = parser.parse_args()
    print(f"load {machine.load()} before")
    for ttl_s in arguments.ttl or [8, 15]:
        with ExitStack() as stack:
            pair = Pair(stack, ttl_s)
            took_s = [pair.fail(ttl_s) for _ in range(arguments.rounds)]
        print(f"lease_ttl_s = {ttl_s:g}: a power failure until mounted elsewhere:")
        print(f"  median {statistics.median(took_s):.1f} s, of", end="")
        print(*(f" {each:.1f}" for each in sorted(took_s)), sep="", flush=True)
        if arguments.alarms:
            ended, lost, stops = false_alarms(ttl_s, arguments.alarms)
            print(f"  two busy nodes, {arguments.alarms:g} min: {ended} leases ended,")
            print(f"  {lost} volumes lost, writers stopped {stops} times", flush=True)
    print(f"load {machine.load()} after")
    return 0


if __name__ == "__main__":
    sys.exit(main())
