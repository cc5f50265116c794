"""Measure, print tables, write JSON: `python -m tests.bench [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import engine as engine_support
from tests.support.engine import started_engine
from tests.support.host import Host

from . import containers, disk, files, machine, protocol, start
from .report import Row, tables
from .sizes import FULL, QUICK, Sizes
from .subjects import InstalledDaemon, NoOp, Rclone

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.support.engine import Engine

SECTIONS = ("protocol", "start", "containers", "files")


def main() -> int:
    """Return the exit code: 0, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument(
        "--section", action="append", choices=SECTIONS, help="only this (repeatable)"
    )
    parser.add_argument(
        "--filesystem",
        choices=disk.FILESYSTEMS,
        default=disk.FILESYSTEMS[0],
        help="a fresh one for the volumes, or the machine's own (default: %(default)s)",
    )
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else FULL
    if missing := engine_support.missing():
        parser.error(f"needs {missing}")
    peer_missing = Rclone.missing()
    if peer_missing:
        _say(f"without the peer plugin: {peer_missing} is missing")
    began = time.monotonic()
    with Host("bench") as host:
        described = machine.describe()
        described["filesystem"] = disk.prepare(host, arguments.filesystem)
        peers = disk.peer_directory(host, arguments.filesystem)
        _say("\n".join(f"{key}: {text}" for key, text in described.items()))
        bench = Bench(host, sizes, peers, with_rclone=not peer_missing)
        rows = list(bench.sections(arguments.section or SECTIONS))
    duration_s = round(time.monotonic() - began, 1)
    print(tables(rows))
    print("\np50 / p99; ratios of medians with the interval of 95 % of resamplings.")
    print(f"Load at the end {machine.load()}; {duration_s:.0f} s in all.")
    if arguments.json:
        result = {
            "machine": described,
            "sizes": sizes.name,
            "duration_s": duration_s,
            "sections": bench.conditions,
            "rows": [each.json() for each in rows],
        }
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


class Bench:
    """One run in one host."""

    def __init__(
        self, host: Host, sizes: Sizes, peers: str, *, with_rclone: bool
    ) -> None:
        self._host = host
        self._sizes = sizes
        self._rclone = Rclone(host, peers) if with_rclone else None
        self._no_op = NoOp(host, peers)
        self._empty = self._daemon("empty")
        self._full = self._daemon("full")
        self._engine: Engine | None = None
        self.conditions: dict[str, dict[str, Any]] = {}

    def _daemon(self, state: str) -> InstalledDaemon:
        return InstalledDaemon(self._host, state_dir=f"/var/lib/remora/{state}")

    def sections(self, wanted: Iterable[str]) -> Iterator[Row]:
        """Yield the rows of the sections *wanted*."""
        for name in SECTIONS:
            if name not in wanted:
                continue
            begin_load, began = machine.load(), time.monotonic()
            for each in getattr(self, f"_{name}")():
                _say(f"  {each.what}")
                yield each
            self.conditions[name] = {
                "load_before": begin_load,
                "load_after": machine.load(),
                "duration_s": round(time.monotonic() - began, 1),
            }

    def _protocol(self) -> Iterator[Row]:
        _say("calls on the plugin's socket")
        with _running(self._empty, self._rclone):
            yield from protocol.measure(self._empty, self._rclone, self._sizes)
        self._fill()
        with _running(self._full):
            yield from protocol.measure_many(self._full, self._sizes)

    def _start(self) -> Iterator[Row]:
        _say("start and memory")
        self._fill()
        yield from start.measure(self._empty, self._full, self._rclone, self._sizes)

    def _containers(self) -> Iterator[Row]:
        _say("volumes and containers of an engine")
        with _running(self._empty, self._rclone, self._no_op):
            engine = self._started_engine()
            yield from containers.measure(engine, self._rclone, self._sizes)

    def _files(self) -> Iterator[Row]:
        _say("file operations in a container")
        with _running(self._empty):
            yield from files.measure(self._started_engine(), self._sizes)

    def _started_engine(self) -> Engine:
        """Return the engine that the sections share; it ends with the host."""
        if self._engine is None:
            self._engine = started_engine(self._host)
        return self._engine

    def _fill(self) -> None:
        """Make the many volumes, once, by the daemon's own Create."""
        if self._host.path("/var/lib/remora/full").exists():
            return
        with _running(self._full):
            began = time.monotonic()
            protocol.create_many(
                self._full.socket,
                self._sizes.many_volumes,
                {},
                parallel=protocol.PARALLEL_CREATES,
            )
            taken_s = time.monotonic() - began
            _say(f"  {self._sizes.many_volumes} volumes made in {taken_s:.1f} s")


class _running:  # noqa: N801 - reads as a statement
    """Run plugins while the block does."""

    def __init__(self, *subjects: InstalledDaemon | Rclone | NoOp | None) -> None:
        self._subjects = [each for each in subjects if each is not None]

    def __enter__(self) -> None:
        for each in self._subjects:
            each.timed_start_ms()

    def __exit__(self, *_: object) -> None:
        for each in self._subjects:
            each.stop()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
