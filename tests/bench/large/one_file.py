"""One large file of which a few blocks change, on each filesystem."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from .following import (
    HEADINGS,
    MIB,
    Follower,
    Row,
    evict,
    followed,
    judged,
    line,
    mib,
    ours,
    peers,
    read_once,
    table,
)
from .pair import Pair
from .sizes import Sizes
from .volume import Volume

BLOCK_BYTES: Final = 4096
BLOCKS: Final = 100
CHANGED_BYTES: Final = BLOCKS * BLOCK_BYTES
FILE: Final = "file"
INTERVAL: Final = "2s"
SYNC_S_MAX: Final = 0.5
READINGS_MAX: Final = 1.2
COPY_DEADLINE_S: Final = 3600.0


def measure(pair: Pair, sizes: Sizes) -> None:
    """Print what each follower takes for such a change, and what is to be reached."""
    source = pair.owner_disk.path / "source"
    source.mkdir()
    path = source / FILE
    write_random(path, sizes.file_bytes)
    size = f"{sizes.file_bytes / MIB:,.0f} MiB"
    table(f"{pair.kind}: {size}, {BLOCKS} x 4 KiB changed", *HEADINGS[1:])
    reading_s = statistics.median(read_cold(path) for _ in range(sizes.rounds))
    alone = [change_alone(pair, source) for _ in range(sizes.rounds)]
    for follower, first_s in peers(pair, source, inplace=True):
        line(*rounds(pair, follower, first_s, sizes.rounds).cells())
    volume = Volume(pair, "file", interval=INTERVAL)
    hand_over(path, volume.source / FILE)
    with volume.watched():
        first_s = volume.seed()
        volume.settle()
        row = rounds(pair, ours(volume), first_s, sizes.rounds)
    line(*row.cells())
    change_bytes = statistics.median(alone)
    line("the change alone", "", "", "", mib(change_bytes), "", "")
    line("reading the file once", "", "", f"{reading_s:.2f} s", "", "", "")
    judge(pair.kind, row, change_bytes, reading_s)


def judge(kind: str, row: Row, change_bytes: float, reading_s: float) -> None:
    """Print what is to be reached on *kind*, and whether it is."""
    table(f"{kind}: one sync", "", "to reach", "")
    sync_s = row.median(lambda each: each.sync_s)
    if kind == "ext4":
        readings = sync_s / reading_s
        to_reach = f"≤ {READINGS_MAX} x reading the file once"
        judged("seconds", f"{readings:.2f} x", to_reach, readings <= READINGS_MAX)
        # The program's own writes are no cost of the sync.
        more = row.median(lambda each: each.spent.owner_bytes) - change_bytes
        to_reach = f"≤ {mib(2 * CHANGED_BYTES)} (2 x what changed)"
        judged(
            "written at the owner for it",
            mib(more),
            to_reach,
            more <= 2 * CHANGED_BYTES,
        )
    else:
        judged("seconds", f"{sync_s:.2f} s", f"≤ {SYNC_S_MAX} s", sync_s <= SYNC_S_MAX)
    most = 4 * CHANGED_BYTES + MIB
    written = row.median(lambda each: each.spent.member_bytes)
    to_reach = f"≤ {mib(most)} (4 x what changed + 1 MiB)"
    judged("written at the member", mib(written), to_reach, written <= most)
    counts = ", ".join(str(len(each.syncs)) for each in row.rounds)
    line("syncs in each round", counts, "", "")


def rounds(pair: Pair, follower: Follower, first_s: float, count: int) -> Row:
    """Return the row of *follower*; neither file is in memory when a round begins."""
    found = []
    for _ in range(count):
        for directory in (follower.source, follower.copy):
            evict(directory / FILE)
        found.append(followed(pair, follower, change_blocks))
    return Row(follower.name, first_s, found)


def change_blocks(source: Path) -> Callable[[Path], bool]:
    """Change some blocks; return what tells whether a copy of the file has them."""
    path = source / FILE
    numbers = random.sample(range(path.stat().st_size // BLOCK_BYTES), BLOCKS)
    blocks = {n * BLOCK_BYTES: random.randbytes(BLOCK_BYTES) for n in numbers}
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for at, block in blocks.items():
            os.pwrite(descriptor, block, at)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

    def is_there(copy: Path) -> bool:
        descriptor = os.open(copy / FILE, os.O_RDONLY)
        try:
            return all(
                os.pread(descriptor, BLOCK_BYTES, at) == block
                for at, block in blocks.items()
            )
        finally:
            os.close(descriptor)

    return is_there


def change_alone(pair: Pair, source: Path) -> int:
    """Return what the disk writes for a change that nothing follows."""
    before = pair.owner_disk.written_bytes()
    change_blocks(source)
    return pair.owner_disk.written_bytes() - before


def read_cold(path: Path) -> float:
    """Return the seconds that reading the file from the disk takes."""
    evict(path)
    return read_once(path)


def write_random(path: Path, size_bytes: int) -> None:
    """Make the file."""
    with path.open("wb", buffering=0) as file:
        for _ in range(size_bytes // MIB):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())


def hand_over(path: Path, to: Path) -> None:
    """Move the file; between subvolumes its blocks are shared, then it is removed."""
    try:
        path.rename(to)
    except OSError:
        command = ["cp", "--reflink=auto", "--sparse=never", "-p", path, to]
        subprocess.run(command, check=True, timeout=COPY_DEADLINE_S)
        path.unlink()
    shutil.rmtree(path.parent)
