"""
Many mounted volumes on many nodes: `python -m tests.bench.scale`.

So many real daemons on this machine and one etcd, its data in memory, as are the pools.
The volumes are spread over the nodes, each with two copies. First they rest, and then a
file is written now here and now there. Told is what etcd has to do, what the daemons
take, and how late volumes are in step: the longest time between two moments in which a
volume was, and the time from a write to its copy, both in intervals.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Final

from plugin.ownership.heads import Heads
from tests.protocol import node
from tests.support.owners import Owner, Records

from . import machine
from .figures import percentile
from .fleet import INSIDE, PREFIX, Fleet, Place, Used, run_apart, wait
from .mirrors import DEFAULTS

# The product's own.
INTERVAL_S: Final = 10.0
INTERVAL_QUICK_S: Final = 1.0
SETTLE_S: Final = 30.0
LOOK_S: Final = 2.0
# A write that is not there after so many intervals is lost or starved.
ARRIVES_WITHIN: Final = 30
WARNINGS_TOLD: Final = 8


def main() -> int:
    """Return the exit code: 0, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale")
    parser.add_argument("--nodes", type=int, default=30)
    parser.add_argument("--volumes", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each part")
    parser.add_argument("--writes", type=float, default=5.0, help="in a second, of all")
    parser.add_argument("--ttl", type=float, default=DEFAULTS["lease_ttl_s"])
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    arguments = parser.parse_args()
    if missing := node.missing():
        parser.error(f"needs {missing}")
    if INSIDE not in os.environ:
        # What was begun ends with the processes' namespace.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        return run_apart("tests.bench.scale", sys.argv[1:])
    interval_s, settle_s = INTERVAL_S, SETTLE_S
    if arguments.quick:
        arguments.nodes, arguments.volumes, arguments.seconds = 3, 6, 2.0
        interval_s, settle_s = INTERVAL_QUICK_S, 0.0
    print(f"load {machine.load()} before\n\n| what | |\n|---|---|", flush=True)
    began_s = time.monotonic()
    fleet = Fleet(arguments.nodes, arguments.ttl)
    print(f"| {arguments.nodes} nodes started | {_passed(began_s)} |", flush=True)
    bench = Bench(fleet, interval_s, settle_s, arguments.seconds)
    for what, value in bench.measure(arguments.volumes, arguments.writes):
        print(f"| {what} | {value} |", flush=True)
    print(f"\nload {machine.load()} after")
    return 0


@dataclass(frozen=True, slots=True)
class Write:
    """A file of a volume, each with a name of its own: their times tell all."""

    place: Place
    name: str
    # The node with the other copy.
    other: Owner

    def lag_s(self) -> float | None:
        """Return the time until it was at the other node, None if it is not there."""
        with suppress(FileNotFoundError):
            written = (self.place.live(self.place.owner) / self.name).stat()
            arrived = (self.place.live(self.other) / self.name).stat()
            return arrived.st_ctime - written.st_mtime
        return None


class Bench:
    """One run; each part takes *seconds*."""

    def __init__(
        self, fleet: Fleet, interval_s: float, settle_s: float, seconds: float
    ) -> None:
        self._fleet = fleet
        self._interval_s = interval_s
        self._settle_s = settle_s
        self._seconds = seconds
        self._places: list[Place] = []

    def measure(
        self, volumes: int, writes_in_second: float
    ) -> Iterator[tuple[str, str]]:
        """Yield what was measured, and its value."""
        fleet = self._fleet
        began_s = time.monotonic()
        wait(self._all_connected, "every node has a connection to every other one")
        yield "each of them connected to each", _passed(began_s)
        began_s = time.monotonic()
        interval = f"{self._interval_s:g}s"
        before = fleet.used()
        self._places = fleet.create(volumes, interval=interval)
        cpu_ms = 1000 * (fleet.used().all_s - before.all_s) / volumes
        what = f"{volumes} volumes created and mounted"
        yield what, f"{_passed(began_s)}, {cpu_ms:.0f} ms of CPU each"
        began_s = time.monotonic()
        with closing(Records(fleet.server, PREFIX)) as records:
            wait(lambda: self._filled(records.heads), "every volume has two copies")
            yield "then, until each has its second copy", _passed(began_s)
            others = self._others(records.heads)
        held = Counter(each.name for each in others.values())
        counts = [held[each.name] for each in fleet.nodes]
        yield "second copies of a node: fewest, most", f"{min(counts)}, {max(counts)}"
        time.sleep(self._settle_s)
        yield from self._at_rest()
        yield from self._under_writing(others, writes_in_second)
        yield from self._alarms()

    def _all_connected(self) -> bool:
        counts, _ = self._fleet.processes()
        count = len(self._fleet.nodes)
        return counts["ssh"] >= count * (count - 1)

    def _filled(self, heads: Heads) -> bool:
        return len(self._others(heads)) == len(self._places)

    def _others(self, heads: Heads) -> dict[str, Owner]:
        """Return the node with the second copy of each volume that has one, by id."""
        nodes = {each.id: each for each in self._fleet.nodes}
        found = {}
        for place in self._places:
            head = heads.read(place.id).head
            holders = {*head.holders} - {place.owner.id} if head else ()
            for other in holders:
                found[place.id] = nodes[other]
        return found

    def _at_rest(self) -> Iterator[tuple[str, str]]:
        before, etcd_before = self._fleet.used(), self._fleet.etcd_counts()
        began_s = time.monotonic()
        time.sleep(self._seconds)
        passed_s = time.monotonic() - began_s
        yield from self._work("at rest", etcd_before, before, passed_s)
        rss_mb = self._fleet.rss_mb()
        yield (
            "at rest: Rss of a daemon, median and most",
            f"{statistics.median(rss_mb):.0f}, {max(rss_mb):.0f} MB",
        )
        counts, sizes_mb = self._fleet.processes()
        for name, count in counts.most_common(6):
            yield f"processes: {name}", f"{count}, Pss {sizes_mb[name]:.0f} MB"
        ages = self._longest_ages(lambda: None)
        yield "at rest: longest time out of step, p50, p99, max", self._spread(ages)

    def _under_writing(
        self, others: Mapping[str, Owner], in_second: float
    ) -> Iterator[tuple[str, str]]:
        writes: list[Write] = []
        began_s = time.monotonic()

        def write() -> None:
            while len(writes) < (time.monotonic() - began_s) * in_second:
                place = self._places[len(writes) * 7 % len(self._places)]
                made = Write(place, f"file{len(writes)}", others[place.id])
                (place.live(place.owner) / made.name).write_text(made.name)
                writes.append(made)

        before, etcd_before = self._fleet.used(), self._fleet.etcd_counts()
        ages = self._longest_ages(write)
        passed_s = time.monotonic() - began_s
        what = f"{len(writes) / passed_s:.1f} writes a second"
        yield from self._work(what, etcd_before, before, passed_s)
        yield f"{what}: longest time out of step, p50, p99, max", self._spread(ages)
        end_s = time.monotonic() + ARRIVES_WITHIN * self._interval_s
        while time.monotonic() < end_s and any(e.lag_s() is None for e in writes):
            time.sleep(LOOK_S)
        lags_s = [each.lag_s() for each in writes]
        there = [each for each in lags_s if each is not None]
        yield f"{what}: from a write to its copy, p50, p99, max", self._spread(there)
        yield f"{what}: never copied", str(len(lags_s) - len(there))

    def _longest_ages(self, work: object) -> Sequence[float]:
        """Return for each volume how long it was not in step, while *work* is done."""
        longest: dict[str, float] = {}
        end_s = time.monotonic() + max(self._seconds, 2 * self._interval_s)
        while time.monotonic() < end_s:
            work()  # type: ignore[operator]
            for name, age_s in self._fleet.ages_s().items():
                longest[name] = max(age_s, longest.get(name, 0.0))
            time.sleep(min(LOOK_S, self._interval_s / 5))
        return list(longest.values())

    def _work(
        self, what: str, etcd_before: Counter[str], before: Used, passed_s: float
    ) -> Iterator[tuple[str, str]]:
        """Yield what was done since *before*."""
        etcd = self._fleet.etcd_counts()
        etcd.subtract(etcd_before)
        now = self._fleet.used()

        def rate(key: str) -> str:
            return f"{etcd[key] / passed_s:.1f}"

        parts = {
            "Txn": "Txn",
            "Range": "Range",
            "keepalives": "LeaseKeepAlive",
            "events": "etcd_debugging_mvcc_events_total",
        }
        told = ", ".join(f"{name} {rate(key)}" for name, key in parts.items())
        written = rate("etcd_server_proposals_applied_total")
        yield f"{what}: etcd's transactions a second", f"{written} ({told})"
        for kind, after, first in (
            ("daemon", now.daemons_s, before.daemons_s),
            ("node", now.nodes_s, before.nodes_s),
        ):
            shares = [100 * (after[key] - first[key]) / passed_s for key in after]
            yield (
                f"{what}: of a core, a {kind}: median and most",
                f"{statistics.median(shares):.1f}, {max(shares):.1f} %",
            )
        etcd_share = 100 * (now.etcd_s - before.etcd_s) / passed_s
        all_share = 100 * (now.all_s - before.all_s) / passed_s
        yield (
            f"{what}: of a core, etcd, and all",
            f"{etcd_share:.0f}, {all_share:.0f} %",
        )

    def _spread(self, samples_s: Sequence[float]) -> str:
        found = [each / self._interval_s for each in samples_s]
        if not found:
            return "none"
        cells = (percentile(found, 0.5), percentile(found, 0.99), max(found))
        return (
            ", ".join(f"{each:.2f}" for each in cells) + f" intervals of {len(found)}"
        )

    def _alarms(self) -> Iterator[tuple[str, str]]:
        lines = self._fleet.log_lines()
        ended = sum("the lease has ended" in str(e.get("event")) for e in lines)
        lost = sum(each.get("event") == "lost" for each in lines)
        stops = sum(each.guard_log().count(" stops ") for each in self._fleet.nodes)
        yield "leases ended, volumes lost, writers stopped", f"{ended}, {lost}, {stops}"
        told = Counter(
            str(each.get("event"))[:90]
            for each in lines
            if each.get("level") in ("warning", "error")
        )
        for text, count in told.most_common(WARNINGS_TOLD):
            yield f"warning: {text}", str(count)


def _passed(began_s: float) -> str:
    return f"{time.monotonic() - began_s:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
