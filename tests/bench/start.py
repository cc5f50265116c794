"""From the start of a daemon to its first answer, and what memory it then takes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from . import protocol
from .figures import turns
from .report import Row, Target, row
from .subjects import InstalledDaemon, Rclone, exchange, memory_mb, request, settle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .sizes import Sizes

START = Target(p50_max=600.0)
MEMORY = Target(p50_max=60.0)
SECTION = "Start and memory"
# One call in ten is a List, the one that takes memory.
LIST_EVERY = 10


def measure(
    empty: InstalledDaemon,
    full: InstalledDaemon,
    rclone: Rclone | None,
    sizes: Sizes,
) -> Iterator[Row]:
    """Yield the rows; *full* has `sizes.many_volumes`, and nothing runs."""
    subjects = {"empty": empty, "full": full}
    if rclone is not None:
        subjects["rclone"] = rclone
    for subject in subjects.values() if sizes.warm_up else ():
        subject.timed_start_ms()  # reads the programs from disk, makes directories
        subject.stop()
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for order in turns(tuple(subjects), sizes.start_rounds):
        for name in order:
            times[name].append(subjects[name].timed_start_ms())
            subjects[name].stop()
    many = f"{sizes.many_volumes:,} volumes"
    peer = {"rclone": times["rclone"]} if rclone is not None else {}
    what = "start to first answer, "
    first = {"remora": times["empty"], **peer}
    second = {"remora": times["full"]}
    yield row(SECTION, "start-empty", what + "no volumes", first, target=START)
    yield row(SECTION, "start-many", what + many, second, target=START)
    yield from _memory("empty", "no volumes", empty, rclone, sizes)
    yield from _memory("many", many, full, None, sizes)


def _memory(
    key: str,
    what: str,
    daemon: InstalledDaemon,
    rclone: Rclone | None,
    sizes: Sizes,
) -> Iterator[Row]:
    subjects: dict[str, InstalledDaemon | Rclone] = {"remora": daemon}
    if rclone is not None:
        subjects["rclone"] = rclone
    calls = f"{sizes.calls_before_memory:,} calls"
    found: dict[str, dict[str, list[float]]] = {}
    for name, subject in subjects.items():
        subject.timed_start_ms()
        try:
            settle(sizes.settle_s)
            _note(found, name, "start", subject.pid)
            _call(subject.socket, sizes.calls_before_memory)
            _note(found, name, "calls", subject.pid)
        finally:
            subject.stop()
    for moment, words in (("start", "after the start"), ("calls", f"after {calls}")):
        for kind in ("Rss", "Pss"):
            yield row(
                SECTION,
                f"memory-{key}-{moment}-{kind.lower()}",
                f"{kind} {words}, {what}",
                found[f"{moment}-{kind}"],
                unit="MB",
                target=MEMORY,
            )


def _note(
    found: dict[str, dict[str, list[float]]], name: str, moment: str, pid: int
) -> None:
    for kind, value in zip(("Rss", "Pss"), memory_mb(pid), strict=True):
        found.setdefault(f"{moment}-{kind}", {})[name] = [value]


def _call(path: Path, count: int) -> None:
    get = json.dumps({"Name": protocol.volume(1)}).encode()
    for number in range(count):
        if number % LIST_EVERY == 0:
            exchange(path, request("VolumeDriver.List", b"{}"))
        else:
            exchange(path, request("VolumeDriver.Get", get))
