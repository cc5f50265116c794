"""Who is heard before a volume begins anew, and who is not passed over in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from backends.errors import RemoraError
from backends.system.clock import Deadline
from plugin.errors import PeerRefusedError, PeerUnreachableError
from plugin.model import VolumeRecord
from plugin.ownership.state import Choice, Commit, Epoch, Head, Lineage
from plugin.ownership.votes import NoCopyError, Votes, unheard

NEWEST = Commit(3, 4)
OLDER = Commit(3, 2)
LINEAGE = Lineage({2: Epoch(Commit(1, 1), "b"), 3: Epoch(Commit(2, 5), "a")})
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
    """What each node answers."""

    def __init__(self, answers: dict[str, Mapping[str, Any] | RemoraError]) -> None:
        self._answers = answers

    def call_all(
        self,
        node_ids: Sequence[str],
        request: str,
        body: Mapping[str, Any],
        *,
        deadline_s: float,
    ) -> dict[str, Mapping[str, Any] | RemoraError]:
        return {each: self._answers[each] for each in node_ids}


def test_who_has_no_copy_is_told_from_who_is_silent() -> None:
    asks = Answers({"a": NoCopyError("v"), "b": PeerUnreachableError("no answer")})
    votes = Votes(asks, node_id="c")
    assert votes.of_others(RECORD, HEAD, Deadline(5), orderly=False) == ({}, {"a"})
    asks = Answers({"a": {"commit": [3, 4]}, "b": PeerRefusedError("busy")})
    votes = Votes(asks, node_id="c")
    found = votes.of_others(RECORD, HEAD, Deadline(5), orderly=False)
    assert found == ({"a": NEWEST}, set())


@pytest.mark.parametrize(
    ("votes", "choice", "orderly", "missing"),
    [
        # Everybody has spoken.
        ({"a": NEWEST, "b": OLDER}, Choice(NEWEST, ("a",)), False, set()),
        # What is committed is there; what the last owner wrote since may not be.
        ({"b": NEWEST}, Choice(NEWEST, ("b",)), False, {"a"}),
        # It has let the volume go itself.
        ({"b": NEWEST}, Choice(NEWEST, ("b",)), True, set()),
        # What is committed would be lost: its holders are asked for.
        ({"c": OLDER}, Choice(OLDER, ("c",), NEWEST), True, {"a", "b"}),
        ({"a": OLDER}, Choice(OLDER, ("a",), NEWEST), False, {"b"}),
    ],
)
def test_who_may_have_newer_bytes_and_was_not_heard(
    votes: dict[str, Commit], choice: Choice, orderly: bool, missing: set[str]
) -> None:
    found = unheard(HEAD, LINEAGE, votes, choice, orderly=orderly)
    assert found == missing
