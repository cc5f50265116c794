"""
What replication takes: `python -m tests.bench.replication [--files N]...`.

For trees of so many files of 1 KiB: the first copy, then a few files are changed, again
and again. *Remora* syncs each second, *rsync* over ssh is run at once, *lsyncd* waits a
second; told is when the change is there, and of Remora what its sync alone took. Then a
bulk of large files, and one block of the largest. At last an owner dies, and another
node waits for the end of its lease.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.protocol import node
from tests.support.owners import Owner

from . import machine
from .mirrors import DEFAULTS, Lsyncd, Mirror, PlainRsync, Remora, place, wait_there

ROUNDS = 5
CHANGES = (1, 10, 100, 2000)
FILES_PER_DIRECTORY = 500
FILE = b"x" * 1024
BULK_FILES = 16
BLOCK_LENGTH = 4096


def main() -> int:
    """Return the exit code: 0, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.replication")
    parser.add_argument("--files", action="append", type=int)
    parser.add_argument("--changed", action="append", type=int)
    parser.add_argument("--bulk-mib", type=int, default=1024, help="0: leave it out")
    arguments = parser.parse_args()
    if missing := node.missing() or Lsyncd.missing():
        parser.error(f"needs {missing}")
    print(f"load {machine.load()} before")
    for count in arguments.files or [1000, 100_000]:
        measure_tree(count, arguments.changed or CHANGES)
    if arguments.bulk_mib:
        measure_bulk(arguments.bulk_mib << 20)
    measure_takeover()
    print(f"load {machine.load()} after")
    return 0


def measure_tree(count: int, changes: Sequence[int]) -> None:
    """Print a table of a tree of *count* files."""
    changes = [each for each in changes if each <= count]
    with place() as (directory, stack, server):
        remora = Remora(directory, stack)
        fill(remora.source, count)
        # What was written within the last two seconds is sent twice; few volumes are.
        time.sleep(3)
        seeds = {"remora": remora.seed()}
        rows: dict[str, dict[int, float]] = {"sync": {}}
        remora.settle()
        rows["remora"] = {}
        for changed in changes:
            before = len(remora.syncs_ms())
            rows["remora"][changed] = followed(remora, remora.source, count, changed)
            remora.settle()
            rows["sync"][changed] = statistics.median(remora.syncs_ms()[before:]) / 1000
        move_s = remora.move()
        peak_mib = [peak_memory_mib(each) for each in (remora.alpha, remora.beta)]
        source = remora.source
        for owner in (remora.alpha, remora.beta):
            owner.stop()
        rsync = PlainRsync(source, directory, server)
        seeds["rsync"] = rsync.seed()
        rows["rsync"] = {
            changed: followed(rsync, source, count, changed) for changed in changes
        }
        lsyncd = Lsyncd(source, directory, server)
        with lsyncd.running():
            began_s = time.monotonic()
            wait_there(source, lsyncd.copy, [name_of(count - 1), name_of(0)])
            seeds["lsyncd"] = time.monotonic() - began_s
            time.sleep(3)
            rows["lsyncd"] = {
                changed: followed(lsyncd, source, count, changed) for changed in changes
            }
    told = ", ".join(f"{name} {took_s:.1f} s" for name, took_s in seeds.items())
    print(f"\n{count} files: first copy {told}; orderly move {move_s:.2f} s")
    print(
        f"most memory of the owner's daemon {peak_mib[0]} MiB, of the other's ", end=""
    )
    print(f"{peak_mib[1]} MiB")
    print("changed", *(f"{name:>8}" for name in rows))
    for changed in changes:
        print(f"{changed:7}", *(f"{row[changed]:7.2f}s" for row in rows.values()))
    sys.stdout.flush()


def measure_bulk(size_bytes: int) -> None:
    """Print what a bulk of large files takes, and one changed block of one of them."""
    with place() as (directory, stack, server):
        remora = Remora(directory, stack)
        names = [f"bulk-{number}" for number in range(BULK_FILES)]
        for name in names:
            with (remora.source / name).open("wb") as file:
                for _ in range(size_bytes // BULK_FILES >> 20):
                    file.write(os.urandom(1 << 20))
        os.sync()
        took_s = {"remora": remora.seed()}
        remora.settle()
        block_s = {"remora": block_followed(remora, remora.source / names[0])}
        source = remora.source
        for owner in (remora.alpha, remora.beta):
            owner.stop()
        rsync = PlainRsync(source, directory, server)
        took_s["rsync"] = rsync.seed()
        block_s["rsync"] = block_followed(rsync, source / names[0])
    ratio = took_s["rsync"] / took_s["remora"]
    print(f"\n{size_bytes >> 20} MiB in {BULK_FILES} files: ", end="")
    print(*(f"{name} {each:.1f} s, " for name, each in took_s.items()), sep="", end="")
    print(f"speed {ratio:.2f} x rsync's")
    print(f"one block of {size_bytes // BULK_FILES >> 20} MiB:", end="")
    print(*(f" {name} {each:.2f} s" for name, each in block_s.items()), flush=True)


def measure_takeover() -> None:
    """Print how long a Mount takes whose volume's owner has just died."""
    took_s = []
    with place() as (directory, stack, _):
        remora = Remora(directory, stack)
        fill(remora.source, FILES_PER_DIRECTORY)
        remora.seed()
        owner, other = remora.alpha, remora.beta
        for _ in range(ROUNDS):
            remora.settle()
            time.sleep(random.uniform(0, DEFAULTS["lease_ttl_s"] / 5))
            took_s.append(remora.take_over(owner, other))
            owner, other = other, owner
    ttl_s = DEFAULTS["lease_ttl_s"]
    print(f"\nan owner dies: Mount elsewhere after {statistics.median(took_s):.1f} s")
    print(f"(at most {max(took_s):.1f} s, {ttl_s} s of them the lease)", flush=True)


def peak_memory_mib(owner: Owner) -> int:
    """Return how much memory the daemon has had at most. Source: proc_pid_status(5)."""
    lines = Path(f"/proc/{owner.process.pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["VmHWM"].split()[0]) >> 10


def name_of(number: int) -> str:
    return f"{number // FILES_PER_DIRECTORY}/{number}"


def fill(live: Path, count: int) -> None:
    for number in range(count):
        if number % FILES_PER_DIRECTORY == 0:
            (live / name_of(number)).parent.mkdir()
        (live / name_of(number)).write_bytes(FILE)


def followed(mirror: Mirror, source: Path, count: int, changed: int) -> float:
    """Return the median of the seconds until *changed* files are there."""
    took_s = []
    for _ in range(ROUNDS):
        names = [name_of(each) for each in random.sample(range(count), changed)]
        content = random.randbytes(700)
        for name in names:
            (source / name).write_bytes(content)
        began_s = time.monotonic()
        mirror.follow()
        wait_there(source, mirror.copy, names)
        took_s.append(time.monotonic() - began_s)
        # Somewhere within the next second, as changes of real programs are.
        time.sleep(1.5 + random.random())
    return statistics.median(took_s)


def block_followed(mirror: Mirror, path: Path) -> float:
    """Return the seconds until a changed block of *path* is there."""
    block = random.randbytes(BLOCK_LENGTH)
    at = path.stat().st_size // 2
    began_s = time.monotonic()
    with path.open("r+b") as file:
        file.seek(at)
        file.write(block)
    mirror.follow()
    while True:
        with (mirror.copy / path.name).open("rb") as file:
            file.seek(at)
            if file.read(BLOCK_LENGTH) == block:
                return time.monotonic() - began_s
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
