"""A node that does not answer costs one round once in a while, not all of them."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from backends.errors import RemoraError
from plugin.errors import PeerSilentError, PeerUnreachableError
from plugin.ownership.state import Commit
from plugin.replication import standings
from plugin.replication.standings import Standings

RECORD: Any = SimpleNamespace(id="v", name="v")


class Nodes:
    """Answers for *quick*, and what *other* says for the node of that name."""

    def __init__(self, other: RemoraError) -> None:
        self.other: RemoraError | dict[str, object] = other
        self.asked: list[Sequence[str]] = []

    def call_all(
        self, node_ids: Sequence[str], *_: object, **__: object
    ) -> dict[str, object]:
        self.asked.append(node_ids)
        said = {"quick": {"commit": [1, 2]}, "other": self.other}
        return {each: said[each] for each in node_ids}


def ask(nodes: Nodes, times: int = 2) -> Standings:
    peers: Any = nodes
    asking = Standings(peers)
    for _ in range(times):
        standing = asking.ask(RECORD, ["quick", "other"])
        assert standing.commits == {"quick": Commit(1, 2)}
        assert [*standing.faults] == ["other"]
    return asking


def test_a_silent_node_is_asked_again_once_in_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Nodes(PeerSilentError("silent"))
    asking = ask(nodes)
    assert nodes.asked == [["quick", "other"], ["quick"]]
    now_s = standings.monotonic_s() + standings._REST_S + 1
    monkeypatch.setattr(standings, "monotonic_s", lambda: now_s)
    nodes.other = {"commit": [1, 1]}
    for _ in range(2):  # it answers: it is asked as ever
        assert "other" in asking.ask(RECORD, ["quick", "other"]).commits


def test_a_node_that_is_not_there_is_asked_every_time() -> None:
    """That costs nothing."""
    nodes = Nodes(PeerUnreachableError("refused"))
    ask(nodes)
    assert nodes.asked == [["quick", "other"]] * 2
