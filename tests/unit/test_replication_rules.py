"""Rules of heads that the model does not need: who keeps copies, who has got them."""

from __future__ import annotations

import msgspec
import pytest

from plugin.cluster import rules
from plugin.cluster.state import Commit, Head, Phase, RefusedError

OWNED = Head(epoch=3, owner="a", boot_id="1", phase="owned", members=("a",))
IDLE = Head(
    epoch=3,
    owner="a",
    phase="idle",
    committed=Commit(3, 4),
    holders=("a",),
    members=("a", "b", "c"),
)


def test_an_owner_makes_others_members_once() -> None:
    joined = rules.join(OWNED, node="a", epoch=3, members=("b", "a", "c"))
    assert joined.members == ("a", "b", "c")
    assert rules.join(joined, node="a", epoch=3, members=("c",)) == joined


@pytest.mark.parametrize(("node", "epoch"), [("b", 3), ("a", 2)])
def test_nobody_else_makes_members(node: str, epoch: int) -> None:
    with pytest.raises(RefusedError, match="not-owner"):
        rules.join(OWNED, node=node, epoch=epoch, members=("d",))
    with pytest.raises(RefusedError, match="not-owner"):
        rules.join(IDLE, node=node, epoch=epoch, members=("d",))


def test_the_last_owner_makes_members_of_a_volume_that_is_let_go() -> None:
    joined = rules.join(IDLE, node="a", epoch=3, members=("d",))
    assert joined == msgspec.structs.replace(IDLE, members=("a", "b", "c", "d"))


@pytest.mark.parametrize("phase", ["recovering", "removing"])
def test_nobody_makes_members_of_what_changes_hands(phase: Phase) -> None:
    head = msgspec.structs.replace(IDLE, phase=phase)
    with pytest.raises(RefusedError, match="not-owner"):
        rules.join(head, node="a", epoch=3, members=("d",))


def test_the_last_owner_tells_who_has_got_its_last_commit() -> None:
    spread = rules.spread(IDLE, node="a", commit=Commit(3, 4), holders=("c",))
    assert spread.holders == ("a", "c")
    assert spread.committed == IDLE.committed


@pytest.mark.parametrize(("node", "seq"), [("b", 4), ("a", 3)])
def test_of_another_commit_or_by_another_node_it_is_refused(
    node: str, seq: int
) -> None:
    with pytest.raises(RefusedError, match="not-owner"):
        rules.spread(IDLE, node=node, commit=Commit(3, seq), holders=("c",))
    with pytest.raises(RefusedError, match="not-owner"):
        rules.spread(OWNED, node="a", commit=Commit(0, 0), holders=("c",))
