"""
A campaign over replicated volumes: writers, moves, and faults, from one seed.

`python -m tests.lab.replication_campaign --minutes 30 --seed 7`, or `make campaign`.
Volumes are mounted, written to, moved orderly, and taken over from nodes that are cut
off, frozen or dead. What is chosen follows from the seed, though not when it meets
what; each action is printed. At the end all is mended, every volume is moved once more,
and `replication_checker.py` judges what was seen.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from . import invariants, replication_checker
from .cluster import NAMES, Cluster
from .commands import text_of
from .engine_side import (
    FENCED_S,
    WRITER,
    Use,
    facts,
    let_go,
    mount,
    wait_all_hold,
    works,
)
from .history import Recorder
from .invariants import Violation
from .lab import Lab
from .replication_facts import Begun, Copy, Facts, Head, commit_of, pair
from .replication_faults import KINDS, ReplicationFaults, empty_disks
from .replication_pools import POOL, SETTINGS, topology

# After these the volumes of a node may be had by another one.
TAKEN_FROM: Final = frozenset(
    {"power", "cut", "etcd-cut", "daemon-kill", "daemon-freeze"}
)
# However slow the machine is.
ACTIONS_MIN: Final = 4
OBSERVE_S: Final = 0.7
MOUNT_S: Final = 120.0
# A lease, what a failsafe has promised, and the rest; nobody has to be able to.
TAKE_S: Final = 45.0
KNOWN_S: Final = 60.0
FIRST_COMMIT_S: Final = 120.0
ALL_HOLD_S: Final = 180.0
# Etcd's keys of what each epoch began with.
EPOCHS: Final = "/remora/records/v/{}/epochs/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long, how hard, and from which seed."""

    seed: int
    duration_s: float
    volumes: int = 2
    write_max_s: float = 4.0
    fault_max_s: float = 12.0
    move_chance: float = 0.35
    take_chance: float = 0.85
    kinds: tuple[str, ...] = KINDS
    # Beside its records each writer has a file of this size, and many small ones.
    big_mib: int = 0

    @property
    def names(self) -> list[str]:
        """The volumes' names."""
        return [f"replicated{self.seed}-{number}" for number in range(self.volumes)]


@dataclass(slots=True)
class Outcome:
    """What a campaign has seen, and what is wrong with it."""

    facts: Facts
    violations: list[Violation]
    did: Counter[str] = field(default_factory=Counter)
    deaths: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Return the figures, for people."""
        records = sum(each.acknowledged for each in self.facts.sessions)
        parts: dict[str, Mapping[str, int]] = {
            "sessions": Counter(each.volume for each in self.facts.sessions),
            "actions": self.did,
            "records": {
                "acknowledged": records,
                "set apart": replication_checker.lost_records(self.facts),
            },
            "broken rules": Counter(each.rule for each in self.violations),
            "daemons that ended": Counter(self.deaths),
        }
        return "\n".join(
            f"{title:20} " + (", ".join(f"{k} {v}" for k, v in each.items()) or "none")
            for title, each in parts.items()
        )


class ReplicationCampaign:
    """One run over *cluster*, which is started and whole."""

    def __init__(self, cluster: Cluster, plan: Plan) -> None:
        self.cluster = cluster
        self.plan = plan
        self.chance = random.Random(plan.seed)
        self.recorder = Recorder()
        self.faults = ReplicationFaults(
            cluster,
            self.recorder,
            self.chance,
            kinds=plan.kinds,
            longest_s=plan.fault_max_s,
            booted=self._note_clock,
        )
        self.uses: dict[str, Use] = {}
        self._ended: list[Use] = []
        # Taken over by another node: their daemons have to end them, and let go.
        self._taken: list[Use] = []
        # Mounts that nobody has heard the end of.
        self._doubtful: list[tuple[str, str, int]] = []
        self._sessions = 0
        self._did: Counter[str] = Counter()
        self._deaths: list[str] = []
        self._start_s = time.monotonic()
        self._marks = {name: len(text_of(cluster[name].daemon.log)) for name in NAMES}

    def run(self) -> Outcome:
        """Return the outcome; raise if the cluster does not work again afterwards."""
        self.begin()
        # A volume without any commit would only be refused elsewhere.
        self.fill()
        end_s = self._start_s + self.plan.duration_s
        try:
            while time.monotonic() < end_s or self._did.total() < ACTIONS_MIN:
                self._round()
        finally:
            self.cluster.restore()
            empty_disks(self.cluster)
        return self.finish()

    def begin(self) -> None:
        """Make the volumes, each on two nodes of its own."""
        print(f"campaign with seed {self.plan.seed}", flush=True)
        for name in NAMES:
            self._note_clock(name)
        for volume in self.plan.names:
            members = sorted(self.chance.sample(NAMES, 2))
            maker = self.cluster[members[0]]
            maker.made(volume, members=",".join(members), interval="1s")
            self._say(f"{volume} is kept by {members}")
        for name in NAMES:
            self._wait_known(name)

    def fill(self) -> None:
        """Mount every volume, and write until another node has a commit of it."""
        for volume in self.plan.names:
            assert self.mount(volume, self.chance.choice(NAMES)), volume
        end_s = time.monotonic() + FIRST_COMMIT_S
        while not all(each.committed for each in self.uses.values()):
            assert time.monotonic() < end_s, "nothing is committed"
            self.write(OBSERVE_S)

    # What may be done

    def mount(self, volume: str, name: str, timeout_s: float = MOUNT_S) -> bool:
        """Mount on the node *name* and write; return whether it was possible."""
        member = self.cluster[name]
        self._sessions += 1
        number = self._sessions
        self._doubtful.append((name, volume, number))
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            if works(member) and (at := mount(member, volume, number)):
                self._doubtful.pop()
                use = Use.begin(
                    *(member, volume, number, at),
                    tag=str(self.plan.seed),
                    big_mib=self.plan.big_mib,
                )
                self.uses[volume] = use
                use.wait_writing()
                epoch = use.session.epoch
                self._say(f"{name} has {volume}: session {number}, epoch {epoch}")
                return True
            self.write(OBSERVE_S)
        self._say(f"{name} could not have {volume}")
        return False

    def write(self, duration_s: float) -> None:
        """Let the writers write, and look at what is committed meanwhile."""
        end_s = time.monotonic() + duration_s
        while True:
            for use in [*self.uses.values()]:
                use.observe()
            left_s = end_s - time.monotonic()
            time.sleep(max(0.0, min(OBSERVE_S, left_s)))
            if left_s <= OBSERVE_S:
                return

    def unmount(self, volume: str) -> None:
        """End the use of *volume* as orderly as it can be."""
        use = self.uses.pop(volume)
        self._ended.append(use)
        orderly = use.end_orderly()
        self._did["orderly ends" if orderly else "other ends"] += 1
        self._say(
            f"{use.member.node.name} lets {volume} go at "
            f"{use.session.released or 'no known commit'}"
        )

    def take(self, volume: str, name: str) -> bool:
        """Have *name* take the volume from its owner, which may write on."""
        use = self.uses.pop(volume)
        if not self.mount(volume, name, TAKE_S):
            self.uses[volume] = use
            return False
        self._taken.append(use)
        self._did["taken over"] += 1
        return True

    def mend(self) -> None:
        """Start what ended, and see that those who lost a volume let it go."""
        for name in NAMES:
            if self.cluster.launch_daemon(name):
                self._deaths.append(name)
        for name in NAMES:
            self.cluster[name].daemon.wait_ready()
        for use in self._taken:
            use.end(FENCED_S)
        self._ended += self._taken
        self._taken.clear()
        for volume, use in [*self.uses.items()]:
            if not use.running:
                self._say(f"the writer of {volume} has ended")
                self._ended.append(self.uses.pop(volume))
                use.end()
        for name, volume, number in self._doubtful:
            let_go(self.cluster[name], volume, number)
        self._doubtful.clear()

    def finish(self) -> Outcome:
        """Move every volume once more, and judge; all is whole."""
        self.mend()
        for name in NAMES:
            self._wait_known(name)
        for volume in self.plan.names:
            if volume in self.uses:
                self.unmount(volume)
            name = self.chance.choice(NAMES)
            assert self.mount(volume, name), f"{name} cannot have {volume}"
            self.write(1)
            self.unmount(volume)
        seen = Facts()
        for volume in self.plan.names:
            self._look(seen, volume)
        for use in sorted(self._ended, key=lambda each: each.session.number):
            if use.read():
                seen.sessions.append(use.session)
        for name in NAMES:
            log = text_of(self.cluster[name].daemon.log)[self._marks[name] :]
            seen.read_daemon(name, log, self.plan.names)
            self.recorder.read_events(name, log)
        found = replication_checker.violations(seen)
        history = self.recorder.history
        # While etcd is away members' word goes for a lease, which other rules go by.
        for rule in (invariants.an_epoch_has_one_owner, invariants.epochs_only_rise):
            found += [Violation(rule.__name__, each) for each in rule(history)]
        return Outcome(seen, found, self._did, self._deaths)

    def owner(self, volume: str) -> str:
        """Return the node on which *volume* was mounted last."""
        return self.uses[volume].session.node

    # The rest

    def _round(self) -> None:
        for volume in self.plan.names:
            if volume not in self.uses:
                self.mount(volume, self.chance.choice(NAMES))
        self.write(self.chance.uniform(1, self.plan.write_max_s))
        if self.chance.random() < self.plan.move_chance:
            volume = self.chance.choice(self.plan.names)
            self._did["moves"] += 1
            if volume in self.uses:
                self.unmount(volume)
        else:
            self._break()
        self.mend()

    def _break(self) -> None:
        kind = self.faults.next_kind()
        owners = sorted(each.session.node for each in self.uses.values())
        name = self.chance.choice([*owners, *owners, *NAMES])
        self._did[kind] += 1
        self._say(f"{kind}: {name}")
        with self.faults.breaking(kind, name):
            self.write(self.chance.uniform(0.5, self.plan.fault_max_s / 3))
            if kind in TAKEN_FROM and self.chance.random() < self.plan.take_chance:
                volumes = [
                    v for v, use in self.uses.items() if use.session.node == name
                ]
                others = [each for each in NAMES if each != name]
                if volumes:
                    self.take(self.chance.choice(volumes), self.chance.choice(others))
            self.write(self.chance.uniform(0, self.plan.fault_max_s))
        self._say(f"{kind}: {name} is over")

    def _look(self, seen: Facts, volume: str) -> None:
        """Note what the store and the nodes have of *volume*, which is at rest."""
        wait_all_hold(self.cluster, volume, NAMES[0], ALL_HOLD_S)
        head = facts(self.cluster[NAMES[0]], volume)
        holders = tuple(sorted(head["holders"]))
        seen.heads[volume] = Head(commit_of(head["commit"]), holders)
        volume_id = head["id"]
        for name in NAMES:
            node = self.cluster[name].node
            home = f"{POOL}/volumes/{volume_id}"
            if node.run(["test", "-e", home], check=False).returncode:
                continue
            program = ["/usr/bin/python3", "-ISE", str(WRITER)]
            told = node.out([*program, "look", home], timeout_s=60)
            seen.copies.append(Copy.of(volume, name, told))
        prefix = EPOCHS.format(volume_id)
        lines = self.cluster.etcd.ctl("get", "--prefix", prefix).splitlines()
        for key, value in zip(lines[::2], lines[1::2], strict=True):
            epoch = json.loads(value)
            number = int(key.removeprefix(prefix))
            base = pair(epoch["base"])
            seen.begun.append(Begun(volume, number, epoch["owner"], base))

    def _wait_known(self, name: str) -> None:
        end_s = time.monotonic() + KNOWN_S
        while not {*self.plan.names} <= {*self.cluster[name].names()}:
            assert time.monotonic() < end_s, f"{name} does not know the volumes"
            time.sleep(OBSERVE_S)

    def _note_clock(self, name: str) -> None:
        clock = self.cluster[name].boot_clock()
        self.recorder.boot(clock.boot, uptime_s=clock.uptime_s, before_s=clock.at_s)

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._start_s:7.1f} {text}", flush=True)

    def save(self, directory: Path) -> None:
        """Leave the nodes' logs in *directory*."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            for log in self.cluster[name].node.exchange.glob("*.log"):
                (directory / f"{name}-{log.name}").write_text(text_of(log))


def main() -> int:
    """Return 0 if the campaign has found nothing."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.replication_campaign")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--volumes", type=int, default=3)
    parser.add_argument("--pool", choices=("ext4", "xfs", "btrfs"), default="ext4")
    parser.add_argument("--big", type=int, default=16, help="MiB of each large file")
    parser.add_argument("--save", type=Path, help="a directory for the nodes' logs")
    arguments = parser.parse_args()
    plan = Plan(
        seed=arguments.seed,
        duration_s=60 * arguments.minutes,
        volumes=arguments.volumes,
        big_mib=arguments.big,
    )
    with Lab(topology(arguments.pool, size="1G")) as lab:
        lab.boot()
        cluster = Cluster(lab, settings=SETTINGS)
        cluster.start()
        campaign = ReplicationCampaign(cluster, plan)
        try:
            outcome = campaign.run()
        finally:
            if arguments.save:
                campaign.save(arguments.save)
    print(outcome.table())
    for each in outcome.violations:
        print(f"{each.rule}: {each.evidence}")
    return 1 if outcome.violations or outcome.deaths else 0


if __name__ == "__main__":
    sys.exit(main())
