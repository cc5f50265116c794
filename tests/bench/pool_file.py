"""
What a pool in a file costs: `python -m tests.bench.pool_file`, against the ext4 below.

`remora pool make` makes one on XFS and one on btrfs; the same file is written and read
in turns in each of them and in a plain directory. A second such directory against the
first is the noise.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.host import WORK_ROOT
from tests.support.namespaces import enter_private_mounts

from . import machine
from .figures import ratio

# Many short turns: what else a machine does then meets all alike.
ROUNDS, ROUNDS_QUICK = 60, 1
FILE_BYTES, FILE_BYTES_QUICK = 128 << 20, 16 << 20
PIECE, PAGE = 1 << 20, 16 << 10
SYNCED_WRITES, SYNCED_WRITES_QUICK = 40, 10
DEADLINE_S = 120.0


def write(file: int, size: int, _: int) -> None:
    piece = random.Random(1).randbytes(PIECE)
    for at in range(0, size, PIECE):
        os.pwrite(file, piece, at)
    os.fdatasync(file)


def read(file: int, size: int, _: int) -> None:
    for at in range(0, size, PIECE):
        os.pread(file, PIECE, at)


def write_pages(file: int, size: int, count: int) -> None:
    chosen, page = random.Random(2), os.urandom(PAGE)
    for _ in range(count):
        os.pwrite(file, page, chosen.randrange(size // PAGE) * PAGE)
        os.fdatasync(file)


# In this order: the first one writes blocks that nobody has written before.
WORK: dict[str, Callable[[int, int, int], None]] = {
    "sequential write, new file": write,
    "the same, again": write,
    "sequential read": read,
    "16 KiB at random, fdatasync each": write_pages,
}


@contextmanager
def pools(directory: Path) -> Iterator[dict[str, Path]]:
    """Yield the directories that are compared, below *directory*."""
    found = {name: directory / name for name in ("ext4", "control", "xfs", "btrfs")}
    config = directory / "remora.toml"
    config.write_text(f'[daemon]\nstate_dir = "{directory}/state"\n')
    make = [sys.executable, "-m", "plugin.cli.main", "--config", config, "pool", "make"]
    try:
        for name, path in found.items():
            path.mkdir(mode=0o700)
            if name in {"xfs", "btrfs"}:
                place = ["--file", directory / f"{name}.img", "--size", "3G"]
                command = [*make, *place, "--filesystem", name, "--at", path]
                subprocess.run(
                    command, check=True, capture_output=True, timeout=DEADLINE_S
                )
        yield found
    finally:
        for name in ("xfs", "btrfs"):
            subprocess.run(["umount", found[name]], check=False, timeout=DEADLINE_S)
        subprocess.run(["rm", "-r", directory], check=True, timeout=DEADLINE_S)


def forget(*paths: Path) -> None:
    """Take what is clean of files out of memory; a loop device keeps it twice."""
    for path in paths:
        if path.exists():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(directory: Path, size: int, count: int) -> dict[str, float]:
    """Return how long each work took, in seconds, on a file of *directory*."""
    found = {}
    path = directory / "file"
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for name, work in WORK.items():
        forget(path, directory.with_suffix(".img"))
        began_s = time.monotonic()
        work(file, size, count)
        found[name] = time.monotonic() - began_s
    os.close(file)
    path.unlink()
    os.sync()
    return found


def main() -> int:
    """Return the exit code: 0, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pool_file")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    quick = parser.parse_args().quick
    enter_private_mounts()
    size = FILE_BYTES_QUICK if quick else FILE_BYTES
    count = SYNCED_WRITES_QUICK if quick else SYNCED_WRITES
    directory = WORK_ROOT / f"bench-pool-{os.getpid()}"
    directory.mkdir(parents=True, mode=0o700)
    times: dict[str, dict[str, list[float]]] = {}
    print(f"load {machine.load()} before")
    with pools(directory) as places:
        for _ in range(ROUNDS_QUICK if quick else ROUNDS):
            for name, path in places.items():
                for work, took_s in measured(path, size, count).items():
                    times.setdefault(work, {}).setdefault(name, []).append(took_s)
    print("speed against ext4 itself; control is another directory of it")
    for work, found in times.items():
        shown = (
            f"{name} {speed.value:.2f} ({speed.low:.2f} to {speed.high:.2f})"
            for name in ("xfs", "btrfs", "control")
            for speed in [ratio(found["ext4"], found[name])]
        )
        print(f"{work}: {', '.join(shown)}")
    print(f"load {machine.load()} after")
    return 0


if __name__ == "__main__":
    sys.exit(main())
