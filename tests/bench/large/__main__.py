"""
Large files with small changes: `python -m tests.bench.large [--case NAME]...`.

Two daemons on this machine, each with its pool on a disk of its own in a file. Peers
are run in turn with them, between the same disks and over the same kind of ssh: rsync,
rsync --inplace, lsyncd. Told are seconds, bytes that the disks wrote (the loop devices'
own counters, with all that the filesystems had to write), and bytes on the line (TCP
between the nodes, both ways).

file      a large file of which 100 x 4 KiB change, on XFS, btrfs and ext4
database  MariaDB at work: commits in time, its throughput, its orderly moves
pause     how long consistency=pause stops it
chown     `chown -R` of many files
first     the first copy of many small files
drbd      writes on DRBD and on our replication, and a power failure, in the lab

Each case has processes, mounts and a network of its own, which end with it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

from tests.bench import machine
from tests.bench.fleet import INSIDE, run_apart
from tests.bench.mirrors import Lsyncd
from tests.protocol import node

from . import databases, drbd, one_file, trees
from .disks import SPARE_BYTES, free_bytes
from .pair import Pair
from .sizes import QUICK, Sizes

MODULE: Final = "tests.bench.large"
FILESYSTEMS: Final = ("xfs", "btrfs", "ext4")
GIB: Final = 1 << 30
# Of what one disk may hold, so much is held at once by both.
ROOM: Final = 1.5
# Of files of a tree with their inodes, on any filesystem.
FILE_BYTES: Final = 20 << 10


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured, on which filesystems, and the most that a disk holds of it."""

    measure: Callable[[Any, Sizes], None]
    filesystems: tuple[str, ...]
    held_bytes: Callable[[Sizes], int]
    place: Callable[[ExitStack, str, int], Any] = Pair


CASES: Final = {
    # The file, its copy for the line, and what was overwritten.
    "file": Case(one_file.measure, FILESYSTEMS, lambda sizes: 3 * sizes.file_bytes),
    # Its tables and log, their copy for the line, and what was overwritten.
    "database": Case(
        databases.measure, FILESYSTEMS, lambda sizes: 4 * sizes.database_bytes
    ),
    "pause": Case(
        databases.measure_pause, ("xfs",), lambda sizes: 4 * sizes.database_bytes
    ),
    "chown": Case(
        trees.measure_chown, FILESYSTEMS, lambda sizes: 3 * sizes.files * FILE_BYTES
    ),
    "first": Case(
        trees.measure_first, FILESYSTEMS, lambda sizes: 3 * sizes.files * FILE_BYTES
    ),
    # Three loop devices.
    "drbd": Case(
        drbd.measure, ("xfs",), lambda sizes: 9 * sizes.drbd_bytes, place=drbd.place
    ),
}


def main() -> int:
    """Return the exit code: 0 if every case could be measured."""
    arguments = parsed()
    sizes = sizes_of(arguments)
    if INSIDE in os.environ:
        name, kind = arguments.case[-1], arguments.filesystem[-1]
        with ExitStack() as stack:
            disk_bytes = CASES[name].held_bytes(sizes) + SPARE_BYTES
            place = CASES[name].place(stack, kind, disk_bytes)
            CASES[name].measure(place, sizes)
        return 0
    # What was begun ends with the processes' namespace.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"load {machine.load()} before; commit {machine.describe()['commit']}")
    if missing := Lsyncd.missing():
        print(f"without {missing}, which is not installed")
    failed = [
        f"{name} on {kind}"
        for name in arguments.case or CASES
        for kind in arguments.filesystem or CASES[name].filesystems
        if kind in CASES[name].filesystems and not measured(name, kind, sizes)
    ]
    if failed:
        print(f"\ncould not be measured: {', '.join(failed)}")
    return 1 if failed else 0


def measured(name: str, kind: str, sizes: Sizes) -> bool:
    """Return whether the case could be measured; it ends with all that it began."""
    needed_bytes = int(ROOM * CASES[name].held_bytes(sizes)) + SPARE_BYTES
    if free_bytes() < needed_bytes:
        print(f"\n{name} on {kind} needs {needed_bytes / GIB:.0f} GiB of disk")
        return False
    if CASES[name].place is drbd.place and (missing := drbd.missing()):
        print(f"\n{name} needs {missing}")
        return False
    began_s = time.monotonic()
    arguments = [*sys.argv[1:], "--case", name, "--filesystem", kind]
    if CASES[name].place is Pair:
        code = run_apart(MODULE, arguments, own_network=True)
    else:  # the lab has its own way, and other labs' processes have to be seen there
        command = [sys.executable, "-m", MODULE, *arguments]
        inside = {**os.environ, INSIDE: "yes"}
        code = subprocess.run(command, env=inside, check=False).returncode
    passed_s = time.monotonic() - began_s
    print(f"\n{name} on {kind}: {passed_s:.0f} s, load {machine.load()} after")
    sys.stdout.flush()
    return code == 0


def sizes_of(arguments: argparse.Namespace) -> Sizes:
    """Return what the arguments ask for."""
    if arguments.quick:
        return QUICK
    sizes = Sizes(
        files=arguments.files,
        seconds=arguments.seconds,
        rate=arguments.rate,
        rounds=arguments.rounds,
    )
    if arguments.size_gib is None:
        return sizes
    size_bytes = int(arguments.size_gib * GIB)
    return replace(sizes, file_bytes=size_bytes, database_bytes=size_bytes)


def parsed() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Sizes()
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--filesystem", action="append", choices=FILESYSTEMS)
    parser.add_argument("--size-gib", type=float, help="of the file, or the database")
    parser.add_argument("--files", type=int, default=default.files)
    parser.add_argument("--seconds", type=float, default=default.seconds)
    parser.add_argument("--rate", type=float, default=default.rate)
    parser.add_argument("--rounds", type=int, default=default.rounds)
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    arguments = parser.parse_args()
    if missing := node.missing():
        parser.error(f"needs {missing}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
