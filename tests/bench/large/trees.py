"""Trees of many small files: a change of their owner alone, and their first copy."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from tests.bench.mirrors import PlainRsync

from .following import (
    HEADINGS,
    MIB,
    Row,
    all_hold,
    followed,
    judged,
    line,
    mib,
    ours,
    peers,
    table,
)
from .pair import Pair
from .sizes import Sizes
from .volume import Volume

FILES_PER_DIRECTORY: Final = 500
CHOWNED_BYTES: Final = 10 << 10
FIRST_BYTES: Final = 1 << 10
# 20 MiB of 100,000 files.
LINE_BYTES_MAX: Final = 20 * MIB / 100_000
# What is told of the files, instead of the files.
COPIED_SHARE_MAX: Final = 0.1
FIRST_SPEED_MIN: Final = 0.9
INTERVAL: Final = "2s"
_users: Final = itertools.count(1000)


def measure_chown(pair: Pair, sizes: Sizes) -> None:
    """Print what each follower takes when all files get another owner."""
    source = pair.owner_disk.path / "source"
    fill(source, sizes.files, CHOWNED_BYTES)
    table(f"{pair.kind}: chown -R of {sizes.files:,} files of 10 KiB", *HEADINGS[1:])
    change = partial(chown_all, sizes.files)
    alone = []
    for _ in range(sizes.rounds):
        before = pair.owner_disk.written_bytes()
        change(source)
        alone.append(pair.owner_disk.written_bytes() - before)
    for follower, first_s in peers(pair, source, inplace=False):
        found = [followed(pair, follower, change) for _ in range(sizes.rounds)]
        line(*Row(follower.name, first_s, found).cells())
    shutil.rmtree(source)
    pair.give_back()
    volume = Volume(pair, "chown", interval=INTERVAL)
    fill(volume.source, sizes.files, CHOWNED_BYTES)
    with volume.watched():
        first_s = volume.seed()
        volume.settle()
        follower = ours(volume)
        found = [followed(pair, follower, change) for _ in range(sizes.rounds)]
    row = Row(follower.name, first_s, found)
    line(*row.cells())
    change_bytes = statistics.median(alone)
    line("the change alone", "", "", "", mib(change_bytes), "", "")
    table(f"{pair.kind}: chown -R", "", "to reach", "")
    carried = row.median(lambda each: each.spent.line_bytes)
    most = LINE_BYTES_MAX * sizes.files
    judged("on the line", mib(carried), f"< {mib(most)}", carried < most)
    more = row.median(lambda each: each.spent.owner_bytes) - change_bytes
    most = COPIED_SHARE_MAX * sizes.files * CHOWNED_BYTES
    to_reach = f"< {mib(most)}: no copies"
    judged("written at the owner for it", mib(more), to_reach, more < most)
    sent = row.median(lambda each: sum(sync.files_bytes for sync in each.syncs))
    line("the sync's files, as the log has it", mib(sent), "", "")


def measure_first(pair: Pair, sizes: Sizes) -> None:
    """Print what the first copy of a tree takes, in turns with rsync and a sync."""
    table(
        f"{pair.kind}: first copy of {sizes.files:,} files of 1 KiB", "remora", "rsync"
    )
    times: dict[str, list[float]] = {"remora": [], "rsync": []}
    for number in range(sizes.first_rounds):
        volume = Volume(pair, f"first{number}", interval=INTERVAL)
        fill(volume.source, sizes.files, FIRST_BYTES)
        pair.owner_disk.sync()
        with volume.watched():
            times["remora"].append(volume.seed())
            volume.settle()
        volume.remove()
        source = pair.owner_disk.path / "source"
        fill(source, sizes.files, FIRST_BYTES)
        pair.owner_disk.sync()
        rsync = PlainRsync(source, pair.member_disk.path, pair.server)
        times["rsync"].append(rsync.seed())
        for each in (source, rsync.copy):
            shutil.rmtree(each)
        pair.give_back()
        line(f"round {number + 1}", *(f"{each[-1]:.1f} s" for each in times.values()))
    speed = statistics.median(times["rsync"]) / statistics.median(times["remora"])
    table(f"{pair.kind}: first copy", "", "to reach", "")
    to_reach = f"≥ {FIRST_SPEED_MIN} x rsync's speed"
    judged("speed", f"{speed:.2f} x", to_reach, speed >= FIRST_SPEED_MIN)


def paths(top: Path, count: int) -> Iterator[Path]:
    """Yield the files of a tree."""
    for number in range(count):
        yield top / str(number // FILES_PER_DIRECTORY) / str(number)


def fill(top: Path, count: int, size_bytes: int) -> None:
    """Make a tree of *count* files."""
    content = random.randbytes(size_bytes)
    for path in paths(top, count):
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
        # No two are alike.
        path.write_bytes(path.name.encode() + content[len(path.name) :])


def chown_all(count: int, top: Path) -> Callable[[Path], bool]:
    """Give all files to another user; return what tells whether a copy has that."""
    user = next(_users)
    names = [each.relative_to(top) for each in paths(top, count)]
    for name in names:
        os.chown(top / name, user, user)
    return lambda copy: all_hold(names, lambda n: (copy / n).stat().st_uid == user)
