"""
Many attempts to own volumes from three nodes, while everything breaks at random.

Two kinds: `Mounts` mounts through the daemons, as engines do; `Claims` lets nothing but
ownership contend, much faster. Both record a history, and have it judged. What is
chosen at random follows from the seed that is printed, though not when it meets what.
"""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .cluster import NAMES, Cluster
from .commands import text_of
from .faults import KINDS, Faults
from .history import History, Recorder, codes, count_attempts
from .invariants import Violation, violations

QUIET_MAX_S: Final = 6.0
# After the last fault: leases end, nodes come back, what was begun is finished.
WORKS_AGAIN_S: Final = 180.0


@dataclass(slots=True, kw_only=True)
class Plan:
    """How much, how fast, and from which seed."""

    seed: int
    attempts: int
    duration_s: float
    volumes: int = 4
    threads: int = 2
    hold_s: float = 0.5
    pause_s: float = 0.5
    fault_max_s: float = 20.0

    @property
    def names(self) -> list[str]:
        """The volumes' names."""
        return [f"seed{self.seed}-{number}" for number in range(self.volumes)]

    def arguments(self, node: str) -> list[str]:
        """Return what a client on *node* is told."""
        numbers = (self.threads, self.hold_s, self.pause_s)
        return [f"{self.seed}-{node}", *map(str, numbers), *self.names]


@dataclass(slots=True)
class Result:
    """What a campaign has seen."""

    history: History
    violations: list[Violation]
    # Daemons that ended without having been killed.
    deaths: list[str] = field(default_factory=list)
    duration_s: float = 0.0

    def table(self) -> str:
        """Return the figures, for people."""
        mounts = [each for each in self.history.attempts if each.kind == "mount"]
        outcomes = Counter(each.outcome for each in mounts)
        parts: dict[str, Mapping[str, int]] = {
            "attempts": {"in all": len(mounts), **outcomes},
            "refused with": codes(mounts),
            "faults": Counter(each.kind for each in self.history.faults),
            "events": Counter(each.kind for each in self.history.events),
            "broken rules": Counter(each.rule for each in self.violations),
            "daemons that ended": Counter(self.deaths),
            "seconds": {"in all": round(self.duration_s)},
        }
        return "\n".join(
            f"{title:20} " + (", ".join(f"{k} {v}" for k, v in each.items()) or "none")
            for title, each in parts.items()
        )


class Campaign:
    """One run over *cluster*; a subclass says who tries what."""

    kinds: tuple[str, ...] = KINDS

    def __init__(self, cluster: Cluster, plan: Plan) -> None:
        self.cluster = cluster
        self.plan = plan
        self.recorder = Recorder()
        self._deaths: list[str] = []
        chance = random.Random(plan.seed)
        self._pause_s = lambda: chance.uniform(1, QUIET_MAX_S)
        self._faults = Faults(
            cluster,
            self.recorder,
            chance,
            kinds=self.kinds,
            longest_s=plan.fault_max_s,
            booted=self._booted,
        )
        # Each log begins with what earlier campaigns have left there.
        self._marks = {
            path: len(text_of(path)) for name in NAMES for path in self._logs(name)
        }

    def run(self) -> Result:
        """Return the outcome; raise if the cluster does not work again afterwards."""
        print(f"campaign with seed {self.plan.seed}", flush=True)
        start_s = time.monotonic()
        self._begin()
        try:
            while time.monotonic() - start_s < self.plan.duration_s:
                self._faults.break_something()
                self._revive()
                if self._enough():
                    break
                time.sleep(self._pause_s())
        finally:
            self.cluster.restore()
        self._end()
        return self._result(time.monotonic() - start_s)

    def save(self, directory: Path) -> None:
        """Leave the nodes' logs and the history in *directory*, to look at."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            for log in self._logs(name):
                (directory / f"{name}-{log.name}").write_text(self._text(log))
        history = dataclasses.asdict(self.recorder.history)
        (directory / "history.json").write_text(json.dumps(history, indent=1))

    # What a subclass says

    def _begin(self) -> None:
        raise NotImplementedError

    def _booted(self, name: str) -> None:
        """The power of *name* is back."""
        self._note_clock(name)

    def _end(self) -> None:
        """See that everything works again, and end the attempts."""
        raise NotImplementedError

    def _attempts_log(self, name: str) -> Path:
        raise NotImplementedError

    # The rest

    def _note_clock(self, name: str) -> None:
        clock = self.cluster[name].boot_clock()
        self.recorder.boot(clock.boot, uptime_s=clock.uptime_s, before_s=clock.at_s)

    def _revive(self) -> None:
        """Start daemons that ended by themselves, as systemd does; remember them."""
        for name in NAMES:
            if self.cluster.launch_daemon(name):
                self._deaths.append(name)

    def _enough(self) -> bool:
        logs = [self._text(self._attempts_log(name)) for name in NAMES]
        attempts = sum(map(count_attempts, logs))
        return attempts >= self.plan.attempts and self._faults.all_seen

    def _result(self, duration_s: float) -> Result:
        for name in NAMES:
            self.recorder.read_attempts(name, self._text(self._attempts_log(name)))
            self.recorder.read_events(name, self._text(self.cluster[name].daemon.log))
        history = self.recorder.history
        return Result(history, violations(history), self._deaths, duration_s)

    def _logs(self, name: str) -> set[Path]:
        return {self._attempts_log(name), self.cluster[name].daemon.log}

    def _text(self, path: Path) -> str:
        return text_of(path)[self._marks[path] :]
