"""
What a sync takes: `python -m tests.bench.replication [FILES ...]`.

Two daemons on this machine, an etcd, a volume of so many files of 1 KiB. Then a few
files are changed, again and again: what the owner's log says of each sync (finding,
copying, sending, the member's checks and applying), beside a plain rsync of the same
tree on the same disk, without ssh: its floor.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

from tests.protocol import node
from tests.support import etcd
from tests.support.owners import Owner

from . import machine

NAME = "bench"
ROUNDS = 7
CHANGED = 10
FILES_PER_DIRECTORY = 500
SEED_DEADLINE_S = 3600.0
RSYNC = ("rsync", "-aHAXS", "--numeric-ids", "--delete")


def main() -> int:
    """Return the exit code: 0, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.replication")
    parser.add_argument("files", nargs="*", type=int, default=[1000, 100_000])
    arguments = parser.parse_args()
    if missing := node.missing():
        parser.error(f"needs {missing}")
    print(f"load {machine.load()} before")
    for count in arguments.files:
        seed_s, syncs_ms, rsync_ms = measured(count)
        print(
            f"{count:>9} files: all of it {seed_s:6.1f} s;"
            f" {CHANGED} changed p50 {statistics.median(syncs_ms):6.0f} ms"
            f" (max {max(syncs_ms):.0f});"
            f" rsync of the tree, local {statistics.median(rsync_ms):6.0f} ms",
            flush=True,
        )
    print(f"load {machine.load()} after")
    return 0


def measured(count: int) -> tuple[float, list[float], list[float]]:
    """Return seconds for the first copy, and ms of syncs and of plain rsyncs."""
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp"))
        )
        memory = etcd.memory_directory(directory / "memory")
        stack.callback(subprocess.run, ["umount", memory], check=True, timeout=30)
        server = stack.enter_context(etcd.single(memory))
        owners = []
        for name in ("alpha", "beta"):
            owner = Owner(name, server, "/bench/", lease_ttl_s=15)
            owners.append(stack.enter_context(closing(owner)))
            owner.start()
            owner.wait_member()
        alpha, beta = owners
        volume_id = alpha.create(NAME, interval="1s", members="alpha,beta")
        alpha.mount(NAME)
        live = alpha.copy(volume_id) / "live"
        fill(live, count)
        began_s = time.monotonic()
        wait_held(alpha)
        seed_s = time.monotonic() - began_s
        syncs_ms = [change(alpha, live, count, number) for number in range(ROUNDS)]
        target = directory / "plain"
        rsync_ms = [rsync(live, target) for _ in range(4)][1:]
        alpha.unmount(NAME)
        beta.wait_known(NAME)
    return seed_s, syncs_ms, rsync_ms


def fill(live: Path, count: int) -> None:
    for number in range(count):
        directory = live / f"{number // FILES_PER_DIRECTORY}"
        if number % FILES_PER_DIRECTORY == 0:
            directory.mkdir()
        (directory / f"{number}").write_bytes(b"x" * 1024)


def synced(owner: Owner) -> list[float]:
    """Return the durations of all syncs so far that reached the member."""
    return [
        float(each["duration_ms"])
        for each in owner.log_lines()
        if each.get("event") == "synced" and each.get("copies")
    ]


def wait_held(owner: Owner) -> None:
    """Return when the member has everything, and nothing is sent any more."""
    deadline_s = time.monotonic() + SEED_DEADLINE_S
    before, quiet = -1, 0
    while quiet < 4:
        assert time.monotonic() < deadline_s, owner.log_tail()
        time.sleep(1.5)
        now = len(synced(owner))
        quiet = quiet + 1 if now == before and now else 0
        before = now


def change(owner: Owner, live: Path, count: int, number: int) -> float:
    """Return how long the sync took, in ms, that brought a few changed files over."""
    before = len(synced(owner))
    for each in range(CHANGED):
        chosen = (number * 7919 + each * 104_729) % count
        path = live / f"{chosen // FILES_PER_DIRECTORY}" / f"{chosen}"
        path.write_bytes(b"y%d" % number * 300)
    while len(synced(owner)) == before:
        time.sleep(0.05)
    found = synced(owner)[before]
    wait_held(owner)
    return found


def rsync(live: Path, target: Path) -> float:
    began_s = time.monotonic()
    subprocess.run([*RSYNC, f"{live}/", f"{target}/"], check=True, timeout=600)
    return 1000 * (time.monotonic() - began_s)


if __name__ == "__main__":
    sys.exit(main())
