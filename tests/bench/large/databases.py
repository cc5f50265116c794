"""A database on a volume: commits in time, throughput, orderly moves, and pauses."""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from plugin.fencing import cgroups
from tests.bench.figures import percentile
from tests.bench.mirrors import DEADLINE_S
from tests.support.owners import Owner

from .database import Database, Load, within
from .following import judged, line, mib, table
from .pair import Pair, Spent
from .sizes import Sizes
from .volume import Volume

NAME: Final = "database"
INTERVAL_S: Final = 2.0
LATE_MAX: Final = 1.5
THROUGHPUT_MIN: Final = 0.9
MOVE_S_MAX: Final = 2.0
PAUSE_P50_MS_MAX, PAUSE_P99_MS_MAX = 20.0, 100.0
# Of the time of a measured part, until the server has in memory what it uses.
WARM_UP: Final = 0.1
WARM_UP_S_MIN: Final = 2.0
CALL_S: Final = 120.0
# Prints when it did not run for longer than it wanted to sleep, and how long.
TICKER: Final = """
import time
last = time.monotonic()
while True:
    time.sleep(0.001)
    now = time.monotonic()
    if now - last > 0.004:
        print(time.time(), now - last, flush=True)
    last = now
"""
JOIN: Final = 'echo $$ > "$0/cgroup.procs" && exec "$@"'


def measure(pair: Pair, sizes: Sizes) -> None:
    """Print throughput without and with a copy, how late commits are, and moves."""
    volume = Volume(pair, NAME, members="alpha", interval=f"{INTERVAL_S:g}s")
    with database_on(pair, volume, sizes) as database:
        what = f"{mib(sizes.database_bytes)}, {sizes.rate:g} transactions a second"
        table(f"{pair.kind}: MariaDB, {what}", "a second", "p50", "p99")
        warm_up(database, sizes)
        loads = [database.work(sizes.seconds, sizes.rate) for _ in range(2)]
        for name, each in zip(("unreplicated", "and again"), loads, strict=True):
            line(name, *each.cells())
        first_s, spent, load = replicated(pair, volume, database, sizes)
        line("replicated", *load.cells())
        told_spent(pair.kind, spent, load, first_s)
        table(f"{pair.kind}: MariaDB", "", "to reach", "")
        ratio = load.rate / statistics.mean(each.rate for each in loads)
        to_reach = f"≥ {THROUGHPUT_MIN} x an unreplicated volume"
        judged("throughput", f"{ratio:.2f} x", to_reach, ratio >= THROUGHPUT_MIN)
        judge_commits(volume, load)
        there_and_back = itertools.cycle([pair.nodes, pair.nodes[::-1]])
        moves_s = [
            moved(volume, database, sizes, *nodes)
            for nodes in itertools.islice(there_and_back, sizes.moves)
        ]
    value = f"{statistics.median(moves_s):.2f} s, at most {max(moves_s):.2f} s"
    reached = max(moves_s) < MOVE_S_MAX
    judged("orderly move, our part", value, f"< {MOVE_S_MAX} s", reached)


def replicated(
    pair: Pair, volume: Volume, database: Database, sizes: Sizes
) -> tuple[float, Spent, Load]:
    """Return the seconds of the first copy, and what work takes with it."""
    with volume.watched():
        began_s = time.monotonic()
        volume.add_member("beta")
        volume.wait_there()
        first_s = time.monotonic() - began_s
        volume.settle()
        warm_up(database, sizes)
        before = pair.spent()
        load = database.work(sizes.seconds, sizes.rate)
        spent = pair.spent() - before
        # What is on its way is no part of a move.
        volume.settle()
    return first_s, spent, load


@contextmanager
def database_on(
    pair: Pair,
    volume: Volume,
    sizes: Sizes,
    *join: str,
) -> Iterator[Database]:
    """Yield a database on the volume, mounted and filled; *join* is run before it."""
    database = Database(pair.directory / "mariadb", sizes.database_bytes)
    try:
        data = pair.owner.mount(volume.name)
        database.start(data, lambda *argv: [*join, *pair.owner.inside(*argv)])
        database.fill()
        yield database
    finally:
        database.end()


def warm_up(database: Database, sizes: Sizes) -> None:
    """Have the database busy for a while."""
    database.work(max(WARM_UP_S_MIN, sizes.seconds * WARM_UP), sizes.rate)


def moved(
    volume: Volume, database: Database, sizes: Sizes, owner: Owner, other: Owner
) -> float:
    """
    Return the seconds of our part of a move to *other*: Unmount and Mount.

    The database is busy before; all that it has done must be there.
    """
    warm_up(database, sizes)
    stop_s = database.stop()
    began_s = time.monotonic()
    until_done(owner, "Unmount", volume)
    until_done(other, "Mount", volume)
    our_s = time.monotonic() - began_s
    data = Path(other.get(volume.name)["Mountpoint"])
    start_s = database.start(data, other.inside)
    database.check()
    print(
        f"moved to {other.name}: it stopped in {stop_s:.2f} s, our part {our_s:.2f} s,"
        f" it started in {start_s:.2f} s",
        file=sys.stderr,
        flush=True,
    )
    return our_s


def until_done(node: Owner, operation: str, volume: Volume) -> None:
    """Have it done; what is refused for now is asked again, as schedulers do."""
    end_s = time.monotonic() + DEADLINE_S
    body = {"Name": volume.name, "ID": "one"}
    while error := node.call(operation, body, timeout_s=CALL_S).error:
        assert time.monotonic() < end_s, error
        time.sleep(0.05)


def told_spent(kind: str, spent: Spent, load: Load, first_s: float) -> None:
    """Print what a second of work costs."""
    seconds = load.ended_at_s - load.began_at_s
    table(f"{kind}: MariaDB, replicated, in a second", "")
    line("written at the owner", mib(spent.owner_bytes / seconds))
    line("written at the member", mib(spent.member_bytes / seconds))
    line("on the line", mib(spent.line_bytes / seconds))
    line("first copy", f"{first_s:.1f} s")


def judge_commits(volume: Volume, load: Load) -> None:
    """Print how far the commits of *load* were apart."""
    syncs = volume.syncs()
    apart_s = within([each.ended_at_s for each in syncs], load)
    took_s = [
        each.took_s
        for each in syncs
        if load.began_at_s < each.ended_at_s < load.ended_at_s
    ] or [load.ended_at_s - load.began_at_s]
    most_s = LATE_MAX * INTERVAL_S
    value = f"{statistics.median(apart_s):.2f} s, at most {max(apart_s):.2f} s"
    to_reach = f"≤ {most_s:g} s ({LATE_MAX} x interval)"
    judged("from commit to commit", value, to_reach, max(apart_s) <= most_s)
    late = sum(each > most_s for each in apart_s)
    line("of them late", f"{late} of {len(apart_s)}", "", "")
    value = f"{statistics.median(took_s):.2f} s, at most {max(took_s):.2f} s"
    line("a sync", value, "", "")


def measure_pause(pair: Pair, sizes: Sizes) -> None:
    """Print how long the database stands still for a commit, as it sees that itself."""
    table(f"{pair.kind}: consistency=pause", "", "to reach", "")
    options = {"interval": f"{INTERVAL_S:g}s", "consistency": "pause"}
    if error := pair.owner.call("Create", {"Name": "probe", "Opts": options}).error:
        line("not built", error, "", "")
        return
    volume = Volume(pair, NAME, members="alpha,beta", **options)
    with ExitStack() as stack:
        group = stack.enter_context(control_group())
        join = ("sh", "-c", JOIN, str(group))
        database = stack.enter_context(database_on(pair, volume, sizes, *join))
        stack.enter_context(volume.watched())
        volume.wait_there()
        volume.settle()
        # In the group and the mounts of the database, so that both stop.
        inside = ("nsenter", f"--mount=/proc/{database.pid}/ns/mnt", "--")
        ticker = stack.enter_context(closing(Ticker(pair.directory, *join, *inside)))
        control = stack.enter_context(closing(Ticker(pair.directory)))
        warm_up(database, sizes)
        load = database.work(sizes.seconds, sizes.rate)
        syncs = [s for s in volume.syncs() if s.ended_at_s > load.began_at_s]
        windows = [(each.ended_at_s - each.took_s, each.ended_at_s) for each in syncs]
        pauses_ms, noise_ms = (each.longest_ms(windows) for each in (ticker, control))
    for share, most_ms in ((0.5, PAUSE_P50_MS_MAX), (0.99, PAUSE_P99_MS_MAX)):
        found_ms = percentile(pauses_ms, share)
        value = f"{found_ms:.0f} ms (outside {percentile(noise_ms, share):.0f} ms)"
        what = f"p{100 * share:g} of {len(pauses_ms)} pauses"
        judged(what, value, f"< {most_ms:g} ms", found_ms < most_ms)


class Ticker:
    """A process that notes when it did not run; *before* is what it is run by."""

    _numbers = itertools.count()

    def __init__(self, directory: Path, *before: str) -> None:
        self._path = directory / f"ticks{next(self._numbers)}"
        with self._path.open("wb") as file:
            self._process = subprocess.Popen(
                [*before, sys.executable, "-S", "-c", TICKER], stdout=file
            )

    def longest_ms(self, windows: Sequence[tuple[float, float]]) -> list[float]:
        """Return for each of *windows* how long it stood still at most."""
        lines = self._path.read_text().rpartition("\n")[0].splitlines()
        stood = [tuple(map(float, each.split())) for each in lines]
        return [
            max((1000 * s for at, s in stood if began < at < end + s), default=0.0)
            for began, end in windows
        ] or [float("nan")]

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


@contextmanager
def control_group() -> Iterator[Path]:
    """Yield a control group that can be frozen."""
    top = cgroups.hierarchies()[0]
    group = Path(top.mount_point) / f"remora-bench-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        with suppress(OSError):
            group.rmdir()
