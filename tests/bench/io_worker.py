"""
Measures file operations below directories in turns; prints the ms as JSON.

Runs in a container that has nothing but the machine's /usr: standard library only.
Arguments: rounds, bytes of the long file, number of small files, number of synced
writes, then the directories.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

BLOCK_BYTES = 1 << 20
SMALL = b"x" * 4096


def main() -> None:
    """Measure as the command line says."""
    rounds, long_bytes, small_files, synced_writes = map(int, sys.argv[1:5])
    directories = [Path(each) for each in sys.argv[5:]]
    blocks = long_bytes // BLOCK_BYTES
    actions = {
        "write": lambda at: write_long(at, blocks),
        "read-cold": lambda at: read_long(at, cold=True),
        "read-cached": lambda at: read_long(at, cold=False),
        "create": lambda at: create_small(at, small_files),
        "stat": lambda at: stat_small(at, small_files),
        "unlink": lambda at: unlink_small(at, small_files),
        "synced-write": lambda at: write_synced(at, synced_writes),
    }
    for directory in directories:
        write_synced(directory, synced_writes)
        write_long(directory, blocks)
    times = {key: {each.name: [] for each in directories} for key in actions}
    for number in range(rounds):
        start = number % len(directories)
        for key, action in actions.items():
            for directory in directories[start:] + directories[:start]:
                times[key][directory.name].append(action(directory))
    json.dump(times, sys.stdout)


def write_long(at: Path, blocks: int) -> float:
    """
    Return the ms for writing a file over, with an fsync at its end.

    A new file would lie elsewhere on the disk each time, and one volume's luck with
    that would look like its driver's speed.
    """
    path = at / "long"
    block = os.urandom(BLOCK_BYTES)
    start = time.perf_counter()
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    for _ in range(blocks):
        os.write(descriptor, block)
    os.fsync(descriptor)
    os.close(descriptor)
    return elapsed_ms(start)


def read_long(at: Path, *, cold: bool) -> float:
    """Return the ms for reading that file, *cold* from the disk."""
    descriptor = os.open(at / "long", os.O_RDONLY)
    if cold:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    while os.read(descriptor, BLOCK_BYTES):
        pass
    duration_ms = elapsed_ms(start)
    os.close(descriptor)
    return duration_ms


def create_small(at: Path, count: int) -> float:
    """Return the ms for creating files of 4 KiB."""
    names = small_names(at, count)
    start = time.perf_counter()
    for name in names:
        descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(descriptor, SMALL)
        os.close(descriptor)
    return elapsed_ms(start)


def stat_small(at: Path, count: int) -> float:
    """Return the ms for asking for their attributes."""
    names = small_names(at, count)
    start = time.perf_counter()
    for name in names:
        os.stat(name)  # noqa: PTH116 - a Path would take longer than the call
    return elapsed_ms(start)


def unlink_small(at: Path, count: int) -> float:
    """Return the ms for removing them."""
    names = small_names(at, count)
    start = time.perf_counter()
    for name in names:
        os.unlink(name)  # noqa: PTH108 - as above
    return elapsed_ms(start)


def write_synced(at: Path, count: int) -> float:
    """Return the ms for writes of 4 KiB, each followed by an fsync."""
    descriptor = os.open(at / "synced", os.O_CREAT | os.O_WRONLY)
    start = time.perf_counter()
    for number in range(count):
        os.pwrite(descriptor, SMALL, number * len(SMALL))
        os.fsync(descriptor)
    duration_ms = elapsed_ms(start)
    os.close(descriptor)
    return duration_ms


def small_names(at: Path, count: int) -> list[str]:
    """Return the small files' paths."""
    return [f"{at}/small-{number}" for number in range(count)]


def elapsed_ms(start: float) -> float:
    """Return the ms since *start*."""
    return (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    main()
