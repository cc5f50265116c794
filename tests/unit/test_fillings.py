"""Fillings go on beside the rounds: each has its turn, and makes one round due."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.system.clock import monotonic_s
from plugin.ownership.state import EMPTY, Commit, Epoch, Lineage
from plugin.replication import seeding
from plugin.replication.progress import Progress
from plugin.replication.seeding import Seeding
from plugin.replication.sending import Sending
from tests.protocol.node import wait_until
from tests.support.journal_trees import VOLUME

RECORD: Any = SimpleNamespace(id=VOLUME, name="v")
LINEAGE = Lineage({1: Epoch(EMPTY, "owner")})
ENOUGH_S = 30.0


class SlowLine:
    """Members have no copy, and their filling takes as long as `gates` says."""

    def __init__(self) -> None:
        self.gates: dict[str, threading.Event] = {}
        self.progress = Progress()

    def call_all(self, node_ids: list[str], *_: object, **__: object) -> dict[str, Any]:
        return {each: {"commit": [0, 0]} for each in node_ids}

    def send_ahead(self, node_id: str, *, volume_id: str, **_: object) -> int:
        self.gates[volume_id].wait(ENOUGH_S)
        return 0


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    (tmp_path / "live").mkdir()
    made = Journal(tmp_path, VOLUME)
    made.record(made.look(EVERYTHING), (1, 1))
    yield made
    made.close()


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowLine]:
    monkeypatch.setattr(seeding, "_WAIT_S", 0.0)
    made = SlowLine()
    yield made
    for each in made.gates.values():
        each.set()


def test_a_filling_whose_member_leaves_makes_no_round_due_again(
    journal: Journal, line: SlowLine
) -> None:
    peers: Any = line
    sending = Sending(peers, peers, node_name="owner")
    line.gates[VOLUME] = threading.Event()

    def distribute(*node_ids: str) -> None:
        list(
            sending.distribute(
                *(RECORD, journal, LINEAGE, node_ids),
                advance=lambda _: Commit(1, 1),
                valid=lambda: True,
            )
        )

    distribute("leaving")
    assert not sending.beside.is_due(VOLUME)
    line.gates[VOLUME].set()
    wait_until(lambda: sending.beside.is_due(VOLUME), "it ends", timeout_s=ENOUGH_S)
    distribute()
    assert not sending.beside.is_due(VOLUME)


def test_what_ended_of_volumes_without_rounds_is_forgotten(
    journal: Journal, line: SlowLine
) -> None:
    peers: Any = line
    made = Seeding(peers, peers)
    line.gates[VOLUME] = threading.Event()
    assert made.fill(RECORD, journal, "one", holder="") is None
    made.keep_only([], since_s=monotonic_s())
    assert made.is_under_way(VOLUME)
    line.gates[VOLUME].set()
    wait_until(lambda: made.is_due(VOLUME), "it ends", timeout_s=ENOUGH_S)
    made.keep_only([VOLUME], since_s=monotonic_s())
    assert made.is_due(VOLUME)
    made.keep_only([], since_s=monotonic_s())
    assert not made.is_due(VOLUME)


def test_fillings_over_a_slow_line_keep_nothing_from_other_nodes(
    journal: Journal, line: SlowLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers: Any = line
    made = Seeding(peers, peers)
    slow = [f"slow {number}" for number in range(seeding._NODE_MAX + 1)]

    def fill(volume_id: str, node_id: str) -> None:
        line.gates[volume_id] = threading.Event()
        record: Any = SimpleNamespace(id=volume_id, name=volume_id)
        assert made.fill(record, journal, node_id, holder="") is None

    def under_way() -> list[str]:
        return [each for each in line.gates if made.is_under_way(each)]

    for each in slow:
        fill(each, "far")
    fill("quick", "near")
    assert under_way() == slow[: seeding._SHORT_MAX]
    monkeypatch.setattr(seeding, "_LONG_AFTER_S", 0.0)
    for _ in range(3):
        made.begin_due()
    assert under_way() == [*slow[: seeding._NODE_MAX], "quick"]
    line.gates[slow[0]].set()  # the one behind it needs no round to begin
    wait_until(lambda: made.is_under_way(slow[-1]), "the last", timeout_s=ENOUGH_S)
