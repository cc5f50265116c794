"""Who is heard before a volume begins anew, and who is not passed over in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from backends.errors import RemoraError
from backends.system.clock import Deadline
from plugin.errors import PeerRefusedError, PeerUnreachableError
from plugin.model import VolumeRecord
from plugin.ownership.ballot import Ballot
from plugin.ownership.state import (
    Choice,
    Commit,
    CopyState,
    Head,
    Lineage,
    RefusedError,
)
from plugin.ownership.votes import Heard, NoCopyError, Votes, unheard, was_released

NEWEST = Commit(3, 4)
OLDER = Commit(3, 2)
# Node c begins epoch 4; a was the last owner, and keeps copies with b.
HEAD = Head(
    epoch=4,
    owner="c",
    phase="recovering",
    committed=NEWEST,
    holders=("a", "b"),
    members=("a", "b", "c"),
)
RECORD = VolumeRecord(
    id="1",
    name="v",
    backend="rsync",
    options={},
    requested={},
    phase="ready",
    created_at="",
)


class Answers:
    """What each node answers, and how long it was waited for."""

    def __init__(self, answers: dict[str, Mapping[str, Any] | RemoraError]) -> None:
        self._answers = answers
        self.connected: set[str] = set()
        self.waited_s: dict[str, float] = {}

    def is_connected(self, node_id: str) -> bool:
        return node_id in self.connected

    def call_all(
        self,
        node_ids: Sequence[str],
        request: str,
        body: Mapping[str, Any],
        *,
        deadline_s: float,
    ) -> dict[str, Mapping[str, Any] | RemoraError]:
        self.waited_s |= dict.fromkeys(node_ids, deadline_s)
        return {each: self._answers[each] for each in node_ids}


def ask(asks: Answers, heard: Heard, *, absent: Sequence[str] = ()) -> None:
    votes = Votes(asks, node_id="c")  # type: ignore[arg-type]
    votes.ask(RECORD, HEAD, heard, Deadline(50), absent=absent, orderly=False)


def test_who_has_no_copy_is_told_from_who_is_silent() -> None:
    heard = Heard()
    ask(Answers({"a": NoCopyError("v"), "b": PeerUnreachableError("no way")}), heard)
    assert (heard.votes, heard.without_copy) == ({}, {"a"})
    assert heard.faults["b"] == "no way"


def test_who_was_heard_is_not_asked_again() -> None:
    heard = Heard()
    ask(Answers({"a": {"commit": [3, 4]}, "b": PeerRefusedError("busy")}), heard)
    asks = Answers({"b": {"commit": [3, 2]}})
    ask(asks, heard)
    assert heard.votes == {"a": NEWEST, "b": OLDER}
    assert set(asks.waited_s) == {"b"}


def test_who_has_neither_lease_nor_connection_is_hardly_waited_for() -> None:
    """Its power has failed; the volume's container waits."""
    silent = PeerUnreachableError("no answer")
    asks = Answers({"a": silent, "b": silent})
    asks.connected = {"b"}
    ask(asks, Heard(), absent=["a", "b"])
    assert asks.waited_s == {"a": 1.0, "b": 5.0}
    asks = Answers({"a": silent, "b": silent})
    ask(asks, Heard())
    assert asks.waited_s == {"a": 5.0, "b": 5.0}


@pytest.mark.parametrize(
    ("votes", "choice", "orderly", "missing"),
    [
        # Everybody has spoken.
        (["a", "b", "c"], Choice(NEWEST, ("a",)), False, set()),
        # What is committed is there; what the last owner wrote since may not be, and it
        # may have sent it to somebody.
        (["b", "c"], Choice(NEWEST, ("b",)), False, {"a"}),
        (["a", "c"], Choice(NEWEST, ("a",)), False, {"b"}),
        # The last owner has let the volume go.
        (["b", "c"], Choice(NEWEST, ("b",)), True, set()),
        # What is committed would be lost: nobody is spared.
        (["c"], Choice(OLDER, ("c",), NEWEST), True, {"a", "b"}),
        (["b", "c"], None, True, {"a"}),
    ],
)
def test_who_may_have_newer_bytes_and_was_not_heard(
    votes: list[str], choice: Choice | None, orderly: bool, missing: set[str]
) -> None:
    given = dict.fromkeys(votes, OLDER)
    assert unheard(HEAD, given, choice, orderly=orderly) == missing


@pytest.mark.parametrize(
    ("head", "orderly"),
    [
        (Head(), True),
        (Head(epoch=3, phase="idle", committed=NEWEST), True),
        (Head(epoch=4, phase="idle", committed=NEWEST), False),
        (Head(epoch=3, phase="owned", committed=NEWEST), False),
        # Another node has come, and given up.
        (Head(epoch=4, phase="idle", committed=NEWEST, released_at="then"), True),
        (Head(epoch=4, phase="recovering", committed=NEWEST, released_at="then"), True),
    ],
)
def test_what_counts_as_a_release(head: Head, orderly: bool) -> None:
    assert was_released(head) == orderly


def test_a_copy_to_which_an_ended_epoch_may_still_write_has_no_vote() -> None:
    """What its containers wrote later would be in no commit."""
    used: Any = SimpleNamespace(
        node_id="a",
        copy_state=lambda _: CopyState(live_epoch=1),
        has_users=lambda _: True,
    )
    nobody: Any = None
    ballot = Ballot(used, nobody, RECORD, HEAD, Lineage({}), orderly=False)
    with pytest.raises(RefusedError, match="writers-running"):
        ballot._add_own_vote()
