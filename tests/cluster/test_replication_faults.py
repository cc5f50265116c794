"""
Moves, crashes and restarts in a row, under a writer that knows what it has written.

After each one the volume must hold what was acknowledged: all of it after an orderly
end, and after a crash all that was committed, followed by nothing but what came next.
What was lost is found again in what the crashed node has set apart.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.protocol.node import wait_until
from tests.support.copies import live
from tests.support.journal_trees import shape
from tests.support.owners import WAIT_S, Owner, Records

Make = Callable[..., Owner]
NAME = "log"
SEED = 20261124
ROUNDS = 10


@dataclass
class Log:
    """What was acknowledged, and how much of it every member had at some time."""

    lines: list[str] = field(default_factory=list)
    committed: int = 0
    # Who crashed as the owner, with what it had acknowledged then.
    lost: list[tuple[Owner, list[str]]] = field(default_factory=list)

    def append(self, live: Path, count: int) -> None:
        """Write *count* lines, each durable before the next."""
        with (live / "log").open("a") as file:
            for _ in range(count):
                line = f"{len(self.lines)} {random.random()}"
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
                self.lines.append(line)

    def check(self, live: Path, *, orderly: bool) -> None:
        """Compare with what a new owner has; from now on that is what there is."""
        path = live / "log"
        found = path.read_text().splitlines() if path.exists() else []
        if orderly:
            assert found == self.lines
        assert found == self.lines[: len(found)], "not a beginning of what was written"
        assert len(found) >= self.committed, "what was committed is gone"
        self.lines = found
        self.committed = len(found)


def churn(live: Path, chance: random.Random) -> None:
    """Change other things in the volume."""
    for _ in range(30):
        path = live / f"d{chance.randrange(4)}" / f"f{chance.randrange(20)}"
        path.parent.mkdir(exist_ok=True)
        if path.exists() and chance.random() < 0.4:
            path.unlink()
        else:
            path.write_bytes(chance.randbytes(chance.randrange(20_000)))


def wait_committed(records: Records, volume_id: str, before: object) -> None:
    """Return when a commit after *before* is held by two nodes."""

    def done() -> bool:
        head = records.head(volume_id)
        return head.committed != before and len(head.holders) > 1

    wait_until(done, "a new commit is held by two", timeout_s=WAIT_S)


def crash(owner: Owner, log: Log) -> None:
    """End the daemon; its volume stays mounted, and nobody writes any more."""
    owner.kill()
    log.lost.append((owner, list(log.lines)))


def come_back(owner: Owner) -> None:
    owner.start()
    owner.wait_member()
    # As the engine does that finds its container ended.
    owner.call("Unmount", {"Name": NAME, "ID": "one"})


def set_apart(owner: Owner, volume_id: str) -> list[list[str]]:
    """Return the logs that the node has, besides the one of its copy."""
    found = []
    for path in owner.copy(volume_id).glob("quarantine/*/log"):
        found.append(path.read_text().splitlines())
    return found


def wait_found(owner: Owner, volume_id: str, log: Log, written: list[str]) -> None:
    """Return when what the node had acknowledged is in the volume, or set apart."""

    def found() -> bool:
        known = [*set_apart(owner, volume_id), log.lines]
        return any(each[: len(written)] == written for each in known)

    # One that is no member any more sets it apart by itself, a little later.
    wait_until(found, f"what {owner.name} had acknowledged is found", timeout_s=WAIT_S)


@pytest.mark.timeout(900)
def test_moves_and_crashes_in_a_row(make_owner: Make, records: Records) -> None:
    chance = random.Random(SEED)
    nodes = [make_owner(name) for name in ("alpha", "beta", "gamma")]
    volume_id = nodes[0].create(NAME, interval="1s")
    for each in nodes:
        each.wait_known(NAME)
    log, orderly, down = Log(), True, None
    for number in range(ROUNDS):
        owner = chance.choice([each for each in nodes if each is not down])
        owner.mount_at_last(NAME)
        directory = live(owner, volume_id)
        log.check(directory, orderly=orderly)
        if down is not None:
            come_back(down)
        log.append(directory, 20)
        # One failure at a time: a node that has come back has a commit before the next.
        if number == 0 or down is not None or chance.random() < 0.5:
            count = len(log.lines)
            for _ in range(2):  # the first may have begun before the last line
                before = records.head(volume_id).committed
                churn(directory, chance)
                wait_committed(records, volume_id, before)
            log.committed = count
        log.append(directory, 5)
        orderly = chance.random() < 0.6
        down = None if orderly else owner
        if orderly:
            owner.unmount(NAME)
        else:
            crash(owner, log)
    finish(nodes, records, volume_id, log, down, orderly=orderly)


def finish(
    nodes: list[Owner],
    records: Records,
    volume_id: str,
    log: Log,
    down: Owner | None,
    *,
    orderly: bool,
) -> None:
    """All copies become alike, and nothing that was written is nowhere."""
    if down is not None:
        come_back(down)
    last = nodes[0]
    last.mount_at_last(NAME)
    log.check(live(last, volume_id), orderly=orderly)
    last.unmount(NAME)
    wait_until(
        lambda: (
            len(records.head(volume_id).holders) == len(records.head(volume_id).members)
        ),
        "all members have the last commit",
        timeout_s=WAIT_S,
    )
    members = [each for each in nodes if each.id in records.head(volume_id).members]
    shapes = [shape(live(each, volume_id)) for each in members]
    assert all(each == shapes[0] for each in shapes)
    for owner, written in log.lost:
        wait_found(owner, volume_id, log, written)
