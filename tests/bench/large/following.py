"""A copy that follows a change: how long until it is there, and what was spent."""

from __future__ import annotations

import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from tests.bench.mirrors import DEADLINE_S, LOOK_AGAIN_S, Lsyncd, PlainRsync

from .pair import Pair, Spent
from .volume import Sync, Volume

T = TypeVar("T")
MIB: Final = 1 << 20
READ_BYTES: Final = 1 << 20
# lsyncd's delay, and the rsync that it starts then.
LSYNCD_SETTLE_S: Final = 3.0
# Makes a change below the first path; returns what tells whether a copy at the second
# path has it.
Change = Callable[[Path], Callable[[Path], bool]]


@dataclass(frozen=True, slots=True)
class Follower:
    """
    A copy of ``source``.

    ``follow`` brings what has changed, or nothing, if it does that by itself; it is
    quiet once ``settle`` has returned.
    """

    name: str
    source: Path
    copy: Path
    follow: Callable[[], object]
    settle: Callable[[], object]
    syncs: Callable[[], Sequence[Sync]] = tuple


@dataclass(frozen=True, slots=True)
class Followed:
    """One change: the seconds until it was there, what was spent, and the syncs."""

    there_s: float
    spent: Spent
    syncs: Sequence[Sync]

    @property
    def sync_s(self) -> float:
        """What the sync took, the longest if there was more than one; inf without."""
        return max((each.took_s for each in self.syncs), default=math.inf)


@dataclass(frozen=True, slots=True)
class Row:
    """The medians of one follower."""

    name: str
    first_s: float
    rounds: Sequence[Followed]

    def median(self, value: Callable[[Followed], float]) -> float:
        """Return the median of *value* of all rounds."""
        return statistics.median(map(value, self.rounds))

    def cells(self) -> Iterator[str]:
        """Yield name, first copy, until there, sync, written at both, on the line."""
        yield self.name
        yield f"{self.first_s:.1f} s"
        yield f"{self.median(lambda each: each.there_s):.2f} s"
        sync_s = self.median(lambda each: each.sync_s)
        yield f"{sync_s:.2f} s" if sync_s < math.inf else ""
        yield mib(self.median(lambda each: each.spent.owner_bytes))
        yield mib(self.median(lambda each: each.spent.member_bytes))
        yield mib(self.median(lambda each: each.spent.line_bytes))


HEADINGS: Final = (
    *("", "first copy", "until it is there", "sync alone"),
    *("written at the owner", "at the member", "on the line"),
)


def followed(pair: Pair, follower: Follower, change: Change) -> Followed:
    """Return what it took until *follower* had *change*, and was quiet again."""
    before, syncs_before = pair.spent(), len(follower.syncs())
    is_there = change(follower.source)
    began_s = time.monotonic()
    follower.follow()
    while not is_there(follower.copy):
        passed_s = time.monotonic() - began_s
        assert passed_s < DEADLINE_S, f"{follower.name}: {pair.owner.log_tail()}"
        time.sleep(LOOK_AGAIN_S)
    there_s = time.monotonic() - began_s
    follower.settle()
    return Followed(there_s, pair.spent() - before, follower.syncs()[syncs_before:])


def peers(
    pair: Pair, source: Path, *, inplace: bool
) -> Iterator[tuple[Follower, float]]:
    """Yield each peer with a copy of *source*, and what that took; it goes then."""
    rsyncs = [PlainRsync(source, pair.member_disk.path, pair.server)]
    if inplace:
        rsyncs.append(
            PlainRsync(source, pair.member_disk.path, pair.server, "--inplace")
        )
    for rsync in rsyncs:
        first_s = rsync.seed()
        # With a sync of the disk each time: Remora's copies are durable, too.
        follower = Follower(rsync.name, source, rsync.copy, rsync.seed, _nothing)
        yield follower, first_s
        shutil.rmtree(rsync.copy)
        pair.give_back()
    if Lsyncd.missing():
        return
    lsyncd = Lsyncd(source, pair.member_disk.path, pair.server)
    with _lsyncd_of(lsyncd, source) as first_s:
        settle = _after(LSYNCD_SETTLE_S)
        yield Follower(lsyncd.name, source, lsyncd.copy, _nothing, settle), first_s
    shutil.rmtree(lsyncd.copy)
    pair.give_back()


@contextmanager
def _lsyncd_of(lsyncd: Lsyncd, source: Path) -> Iterator[float]:
    """Run it; yield the seconds until it had all of *source*."""
    names = [path.relative_to(source) for path in sorted(source.rglob("*"))]
    began_s = time.monotonic()
    with lsyncd.running():
        # rsync names a file when it is whole.
        while not all_hold(names, lambda name: (lsyncd.copy / name).exists()):
            assert time.monotonic() - began_s < DEADLINE_S, "lsyncd has not copied"
            time.sleep(LOOK_AGAIN_S)
        first_s = time.monotonic() - began_s
        time.sleep(LSYNCD_SETTLE_S)
        yield first_s


def ours(volume: Volume) -> Follower:
    """Return *volume* as a follower."""
    return Follower(
        *("remora", volume.source, volume.copy, _nothing, volume.settle, volume.syncs)
    )


def _nothing() -> None:
    """Do nothing: it was told by the kernel."""


def _after(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


def all_hold(left: list[T], holds: Callable[[T], bool]) -> bool:
    """Return whether *holds* is true of all; those of which it was leave *left*."""
    while left and holds(left[-1]):
        left.pop()
    return not left


def evict(path: Path) -> None:
    """Have the kernel keep nothing of the file in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read_once(path: Path) -> float:
    """Return the seconds that reading the file takes."""
    began_s = time.monotonic()
    with path.open("rb", buffering=0) as file:
        while file.read(READ_BYTES):
            pass
    return time.monotonic() - began_s


def mib(size_bytes: float) -> str:
    """Return *size_bytes* in MiB, as text."""
    return f"{size_bytes / MIB:,.1f} MiB"


def line(*cells: str) -> None:
    """Print a line of a table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def table(*headings: str) -> None:
    """Print the head of a table."""
    print()
    line(*headings)
    print("|---" * len(headings) + "|", flush=True)


def judged(what: str, value: str, to_reach: str, reached: bool) -> None:
    """Print a line of a table of what is to be reached."""
    line(what, value, to_reach, "reached" if reached else "**missed**")
