"""
Many attempts to own volumes from three nodes, while everything breaks at random.

`python -m tests.lab.campaign --attempts 1000` runs one and judges its history; what is
chosen at random follows from the seed that it prints, though not when it meets what.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.host import wait_until

from .cluster import NAMES, TOPOLOGY, Cluster, missing
from .commands import text_of
from .history import History, Recorder, codes, count_attempts
from .invariants import Violation, violations
from .lab import Lab
from .node import Node
from .services import Service

CLIENT: Final = Path(__file__).resolve().parent / "attempts.py"
THREADS: Final = 2
HOUR_S: Final = 3600.0
FAULT_MIN_S, FAULT_MAX_S = 1.0, 20.0
QUIET_MAX_S: Final = 6.0
TWO_FAULTS_CHANCE: Final = 0.3
# A client first ends its last calls; a Mount of it may take two minutes.
CLIENT_END_S: Final = 420.0
KNOWN_S: Final = 60.0
# After the last fault: leases end, nodes come back, what was begun is finished.
WORKS_AGAIN_S: Final = 180.0


class Client(Service):
    """`attempts.py` on a node."""

    def __init__(self, node: Node, *arguments: str) -> None:
        super().__init__(node, "attempts")
        self._arguments = arguments

    def _argv(self) -> list[str]:
        return ["/usr/bin/python3", "-ISE", str(CLIENT), *self._arguments]

    def _ready(self) -> bool:
        return True


@dataclass(slots=True, kw_only=True)
class Plan:
    """How much, how fast, and from which seed."""

    seed: int
    attempts: int
    duration_s: float
    volumes: int = 4
    hold_s: float = 0.5
    pause_s: float = 0.5


@dataclass(slots=True)
class Result:
    """What a campaign has seen."""

    history: History
    violations: list[Violation]
    # Daemons that ended without having been killed.
    deaths: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Return the figures, for people."""
        mounts = [each for each in self.history.attempts if each.kind == "mount"]
        outcomes = Counter(each.outcome for each in mounts)
        parts = {
            "attempts": {"in all": len(mounts), **outcomes},
            "refused with": codes(mounts),
            "faults": Counter(each.kind for each in self.history.faults),
            "events": Counter(each.kind for each in self.history.events),
            "broken rules": Counter(each.rule for each in self.violations),
            "daemons that ended": Counter(self.deaths),
        }
        return "\n".join(
            f"{title:20} " + (", ".join(f"{k} {v}" for k, v in each.items()) or "none")
            for title, each in parts.items()
        )


class Campaign:
    """One run over *cluster*, which is started and whole, and is whole afterwards."""

    def __init__(self, cluster: Cluster, plan: Plan) -> None:
        self.cluster = cluster
        self.plan = plan
        self.recorder = Recorder()
        self.volumes = [f"seed{plan.seed}-{number}" for number in range(plan.volumes)]
        self._chance = random.Random(plan.seed)
        self._deaths: list[str] = []
        self._deck: list[str] = []
        # With members on nodes of their own, each is broken in a node's name.
        self._etcd_of = dict(zip(NAMES, cluster.etcd.members, strict=True))
        arguments = (str(THREADS), str(plan.hold_s), str(plan.pause_s), *self.volumes)
        self._clients = {
            name: Client(cluster[name].node, f"{plan.seed}-{name}", *arguments)
            for name in NAMES
        }
        # Each log begins with what earlier campaigns have left there.
        self._marks = {
            path: len(text_of(path)) for name in NAMES for path in self._logs(name)
        }

    def run(self) -> Result:
        """Return the outcome; raise if the cluster does not work again afterwards."""
        print(f"campaign with seed {self.plan.seed}", flush=True)
        self._make_volumes()
        for name in NAMES:
            self._note_clock(name)
            self._clients[name].start()
        end_s = time.monotonic() + self.plan.duration_s
        try:
            while time.monotonic() < end_s and not self._enough():
                self._break_something()
                time.sleep(self._chance.uniform(1, QUIET_MAX_S))
        finally:
            self.cluster.restore()
            self._stop_clients()
        self._await_progress()
        return self._result()

    def save(self, directory: Path) -> None:
        """Leave the nodes' logs and the history in *directory*, to look at."""
        for name in NAMES:
            for log in self._logs(name):
                (directory / f"{name}-{log.name}").write_text(self._text(log))
        history = dataclasses.asdict(self.recorder.history)
        (directory / "history.json").write_text(json.dumps(history, indent=1))

    # Faults: each a context, broken inside of it

    def _break_something(self) -> None:
        count = 2 if self._chance.random() < TWO_FAULTS_CHANCE else 1
        with contextlib.ExitStack() as stack:
            for name in self._chance.sample(NAMES, count):
                stack.enter_context(self._fault(self._next_kind(), name))
            time.sleep(self._chance.uniform(FAULT_MIN_S, FAULT_MAX_S))
        self._revive()

    def _next_kind(self) -> str:
        """Return a kind of fault: all of them in random order, then all again."""
        if not self._deck:
            self._deck = sorted(FAULTS)
            self._chance.shuffle(self._deck)
        return self._deck.pop()

    @contextlib.contextmanager
    def _fault(self, kind: str, name: str) -> Iterator[None]:
        start_s = self.recorder.began(kind, name)
        with FAULTS[kind](self, name):
            yield
        self.recorder.ended(kind, name, start_s)

    @contextlib.contextmanager
    def _power(self, name: str) -> Iterator[None]:
        self.cluster.lab[name].power_off()
        yield
        self.cluster.boot(name)
        self._note_clock(name)
        self._clients[name].start()

    @contextlib.contextmanager
    def _cut(self, name: str) -> Iterator[None]:
        self.cluster.lab[name].cut()
        yield
        self.cluster.lab[name].heal()

    @contextlib.contextmanager
    def _separation(self, name: str) -> Iterator[None]:
        lab = self.cluster.lab
        other = self._chance.choice([each for each in NAMES if each != name])
        lab.separate(lab[name], lab[other])
        yield
        lab.heal()

    @contextlib.contextmanager
    def _cut_from_etcd(self, name: str) -> Iterator[None]:
        self.cluster.cut_from_etcd(name)
        yield
        self.cluster.end_filters(name)

    @contextlib.contextmanager
    def _cut_from_peers(self, name: str) -> Iterator[None]:
        self.cluster.cut_from_peers(name)
        yield
        self.cluster.end_filters(name)

    @contextlib.contextmanager
    def _etcd_freeze(self, name: str) -> Iterator[None]:
        self.cluster.etcd.freeze(self._etcd_of[name])
        yield
        self.cluster.etcd.thaw(self._etcd_of[name])

    @contextlib.contextmanager
    def _etcd_kill(self, name: str) -> Iterator[None]:
        self.cluster.etcd.kill(self._etcd_of[name])
        yield
        self.cluster.etcd.launch(self._etcd_of[name])

    @contextlib.contextmanager
    def _daemon_freeze(self, name: str) -> Iterator[None]:
        self.cluster.signal_daemon(name, signal.SIGSTOP)
        yield
        self.cluster.signal_daemon(name, signal.SIGCONT)

    @contextlib.contextmanager
    def _daemon_kill(self, name: str) -> Iterator[None]:
        self.cluster.kill_daemon(name)
        yield
        self.cluster.launch_daemon(name)

    @contextlib.contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        self.cluster.set_clock(name, self._chance.choice([-HOUR_S, HOUR_S]))
        yield
        self.cluster.set_clock(name, 0)

    # The rest

    def _make_volumes(self) -> None:
        for volume in self.volumes:
            self.cluster["alpha"].made(volume)
        for name in NAMES:
            wait_until(
                lambda name=name: {*self.volumes} <= {*self.cluster[name].names()},
                timeout_s=KNOWN_S,
                what=f"{name} knows the volumes",
            )

    def _note_clock(self, name: str) -> None:
        clock = self.cluster[name].boot_clock()
        self.recorder.boot(clock.boot, uptime_s=clock.uptime_s, before_s=clock.at_s)

    def _revive(self) -> None:
        """Start daemons that ended by themselves, as systemd does; remember them."""
        for name in NAMES:
            if self.cluster.launch_daemon(name):
                self._deaths.append(name)

    def _enough(self) -> bool:
        kinds = {each.kind for each in self.recorder.history.faults}
        logs = [self._text(self._clients[name].log) for name in NAMES]
        attempts = sum(map(count_attempts, logs))
        return attempts >= self.plan.attempts and kinds == set(FAULTS)

    def _stop_clients(self) -> None:
        running = [each for each in self._clients.values() if each.running]
        for each in running:
            each.signal(signal.SIGTERM)
        for each in running:
            each.stop(CLIENT_END_S)

    def _await_progress(self) -> None:
        """Return when every node has owned every volume again."""
        for name in NAMES:
            for volume in self.volumes:
                self._await_turn(name, volume)

    def _await_turn(self, name: str, volume: str) -> None:
        answers: list[object] = []

        def mounted() -> bool:
            answers.append(self.cluster[name].call("Mount", volume, ID="last"))
            return bool(answers[-1].get("Mountpoint"))  # type: ignore[attr-defined]

        wait_until(
            mounted,
            timeout_s=WORKS_AGAIN_S,
            what=f"{name} mounts {volume} (seed {self.plan.seed})",
            interval_s=0.5,
            evidence=lambda: answers[-1],
        )
        self.cluster[name].unmount(volume, "last")

    def _result(self) -> Result:
        for name in NAMES:
            self.recorder.read_attempts(name, self._text(self._clients[name].log))
            self.recorder.read_events(name, self._text(self.cluster[name].remora.log))
        history = self.recorder.history
        return Result(history, violations(history), self._deaths)

    def _logs(self, name: str) -> tuple[Path, Path]:
        return self._clients[name].log, self.cluster[name].remora.log

    def _text(self, path: Path) -> str:
        return text_of(path)[self._marks[path] :]


FAULTS: Final = {
    "power": Campaign._power,
    "cut": Campaign._cut,
    "separate": Campaign._separation,
    "etcd-cut": Campaign._cut_from_etcd,
    "peers-cut": Campaign._cut_from_peers,
    "etcd-freeze": Campaign._etcd_freeze,
    "etcd-kill": Campaign._etcd_kill,
    "daemon-freeze": Campaign._daemon_freeze,
    "daemon-kill": Campaign._daemon_kill,
    "clock": Campaign._clock,
}


def main() -> int:
    """Return 0 if the history of a campaign holds."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.campaign")
    parser.add_argument("--attempts", type=int, default=300)
    parser.add_argument("--duration", type=float, default=600, help="seconds, at most")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--save", type=Path, help="a directory for logs and history")
    arguments = parser.parse_args()
    if lacking := missing():
        parser.error(f"needs {lacking}")
    plan = Plan(
        seed=arguments.seed,
        attempts=arguments.attempts,
        duration_s=arguments.duration,
    )
    with Lab(TOPOLOGY) as lab:
        lab.boot()
        cluster = Cluster(lab)
        cluster.start()
        campaign = Campaign(cluster, plan)
        result = campaign.run()
        if arguments.save:
            campaign.save(arguments.save)
    print(result.table())
    for each in result.violations:
        print(f"{each.rule}: {each.evidence}")
    return 1 if result.violations or result.deaths else 0


if __name__ == "__main__":
    sys.exit(main())
