"""
What happened in a cluster: who owned what, what was tried, what was broken.

Three sources make one history. Each daemon logs a line for what happens to its
ownership of a volume (`owned`, `regained`, `released`, `lost`); each node's client
writes one when it sends a call and one when it has the answer; the test writes down its
faults. Nodes tell time by their own boot clocks, which nobody sets: the test notes for
each boot how far that clock is from this machine's, and all times here are this
machine's monotonic seconds. `invariants.py` judges a history.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

OWNING: Final = ("owned", "regained")
ENDING: Final = ("released", "lost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What a daemon says has happened to its ownership of a volume."""

    kind: str
    node: str
    boot: str
    volume: str
    volume_id: str
    epoch: int
    at_s: float
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """
    A Mount or Unmount that a node's client tried.

    Without `end_s` nobody had the answer; `outcome` then is "unknown", as it is when
    the connection broke: it may have happened or not.
    """

    kind: str
    node: str
    boot: str
    volume: str
    mount_id: str
    start_s: float
    end_s: float | None = None
    outcome: str = "unknown"
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What the test broke, and until when."""

    kind: str
    node: str
    start_s: float
    end_s: float | None = None


@dataclass(slots=True)
class History:
    """All of it; a node's events and attempts are in the order of their writing."""

    events: list[Event] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def mounts(self) -> list[Attempt]:
        """Return the Mounts that were answered with success."""
        return [
            each
            for each in self.attempts
            if each.kind == "mount" and each.outcome == "ok"
        ]


@dataclass(slots=True)
class Recorder:
    """Reads a history from the nodes' logs, and writes the test's own part of it."""

    history: History = field(default_factory=History)
    # For each boot, by the kernel's boot id: this machine's clock less the node's.
    offsets_s: dict[str, float] = field(default_factory=dict)

    def boot(self, boot: str, *, uptime_s: float, before_s: float) -> None:
        """Note that a node's boot clock showed *uptime_s* when ours was *before_s*."""
        self.offsets_s.setdefault(boot, before_s - uptime_s)

    def began(self, kind: str, node: str) -> float:
        """Return the time, for `ended`; call it before the fault is made."""
        start_s = time.monotonic()
        self.history.faults.append(Fault(kind=kind, node=node, start_s=start_s))
        return start_s

    def ended(self, kind: str, node: str, start_s: float) -> None:
        """Note that the fault that began at *start_s* is over."""
        faults = self.history.faults
        open_fault = Fault(kind=kind, node=node, start_s=start_s)
        faults[faults.index(open_fault)] = Fault(
            kind=kind, node=node, start_s=start_s, end_s=time.monotonic()
        )

    def read_events(self, node: str, log: str) -> None:
        """Add the events of a daemon's *log*, which has other lines too."""
        for line in objects(log):
            if line.get("event") not in {*OWNING, *ENDING}:
                continue
            offset_s = self._offset_s(node, line["boot_id"])
            deadline_s = line.get("lease_deadline_s")
            self.history.events.append(
                Event(
                    kind=line["event"],
                    node=node,
                    boot=line["boot_id"],
                    volume=line["volume"],
                    volume_id=line["id"],
                    epoch=int(line["epoch"]),
                    at_s=line["at_s"] + offset_s,
                    deadline_s=None if deadline_s is None else deadline_s + offset_s,
                )
            )

    def read_attempts(self, node: str, log: str) -> None:
        """Add the attempts of a client's *log*: a line at its start, one at its end."""
        starts: dict[tuple[str, int], dict[str, Any]] = {}
        ends: dict[tuple[str, int], dict[str, Any]] = {}
        for line in objects(log):
            if "n" not in line:
                continue
            (ends if "outcome" in line else starts)[line["boot_id"], line["n"]] = line
        for key, start in starts.items():
            offset_s = self._offset_s(node, start["boot_id"])
            end = ends.get(key, {})
            self.history.attempts.append(
                Attempt(
                    kind=start["kind"],
                    node=node,
                    boot=start["boot_id"],
                    volume=start["volume"],
                    mount_id=start["mount_id"],
                    start_s=start["start_s"] + offset_s,
                    end_s=end["end_s"] + offset_s if end else None,
                    outcome=end.get("outcome", "unknown"),
                    error=end.get("error", ""),
                )
            )

    def _offset_s(self, node: str, boot: str) -> float:
        if boot not in self.offsets_s:
            raise AssertionError(f"nobody noted the clock of {node}'s boot {boot}")
        return self.offsets_s[boot]


def count_attempts(log: str) -> int:
    """Return how many Mounts the client of *log* has sent."""
    return sum(
        1
        for line in objects(log)
        if line.get("kind") == "mount" and "outcome" not in line
    )


def codes(attempts: list[Attempt]) -> Mapping[str, int]:
    """Return how often each error's code was answered, the most frequent first."""
    counts: dict[str, int] = {}
    for each in attempts:
        if each.outcome == "error":
            code = each.error.partition(":")[0]
            counts[code] = counts.get(code, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def objects(log: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects among the lines; a killed process may have torn one."""
    for line in log.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value
