"""Who is to keep copies: the plan as a table, and who counts as gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from backends.replication_options import ReplicationOptions
from plugin.membership.nodes import NodeRecord, NodeView
from plugin.ownership.state import Commit, Head
from plugin.replication.placement import Absences, Plan, plan

TWO = ReplicationOptions.of({"replicas": "2"})
THREE = ReplicationOptions.of({"replicas": "3"})
NAMED = ReplicationOptions.of({"members": "node-a,node-b"})


def node(
    name: str, free: int = 10, *, alive: bool = True, drained: bool = False
) -> NodeView:
    """Return a node whose id is *name* and whose name is node-*name*."""
    record = NodeRecord(
        id=name,
        name=f"node-{name}",
        peer_port=1,
        version="1",
        protocol=1,
        protocol_oldest=1,
        machine_id=name,
        boot_id="1",
        host_key="",
        public_key="",
        pool_available_bytes=free,
        drained=drained,
        joined_at="",
    )
    return NodeView(record, alive)


def head(
    members: Iterable[str],
    holders: Iterable[str],
    *,
    owner: str = "a",
    idle: bool = False,
) -> Head:
    return Head(
        epoch=3,
        owner=owner,
        phase="idle" if idle else "owned",
        committed=Commit(3, 1),
        holders=tuple(holders),
        members=tuple(members),
    )


A, B, C, D = node("a"), node("b", 20), node("c", 50), node("d", 120)
DEAD_B, DRAINED_B = node("b", alive=False), node("b", drained=True)
DEAD_A, DRAINED_A = node("a", alive=False), node("a", drained=True)


@pytest.mark.parametrize(
    ("nodes", "state", "wanted", "gone", "join", "leave"),
    [
        # The first copies go where space is, and nowhere if there is nobody.
        ((A, B, C), head("a", "a"), TWO, "", "c", ""),
        ((A, B, C, D), head("a", "a"), THREE, "", "dc", ""),
        ((A,), head("a", "a"), TWO, "", "", ""),
        ((A, B), head("ab", "a"), TWO, "", "", ""),
        ((A, DEAD_B, node("c", 9, drained=True)), head("a", "a"), TWO, "", "", ""),
        # A dead member is waited for; then another one comes, and then it leaves.
        ((A, DEAD_B, C), head("ab", "a"), TWO, "", "", ""),
        ((A, DEAD_B, C), head("ab", "a"), TWO, "b", "c", ""),
        ((A, DEAD_B, C), head("abc", "a"), TWO, "b", "", ""),
        ((A, DEAD_B, C), head("abc", "ac"), TWO, "b", "", "b"),
        ((A, C), head("ab", "a"), TWO, "", "c", ""),
        ((A, C), head("abc", "abc"), TWO, "", "", "b"),
        ((A, DEAD_B), head("ab", "ab"), TWO, "b", "", ""),
        # The dead one came back: who is not in step goes, or who has least space.
        ((A, B, C), head("abc", "ab"), TWO, "", "", "c"),
        ((A, B, C), head("abc", "abc"), TWO, "", "", "b"),
        ((A, B, C), head("abc", "a"), TWO, "", "", ""),
        # A third node has mounted it; gone and drained ones go first.
        ((A, B, C), head("abc", "abc", owner="b"), TWO, "", "", "a"),
        ((DEAD_A, B, C), head("abc", "abc", owner="b"), TWO, "", "", ""),
        ((DEAD_A, B, C), head("abc", "abc", owner="b"), TWO, "a", "", "a"),
        ((A, B, node("c", drained=True)), head("abc", "abc"), TWO, "", "", "c"),
        ((A, B, node("c", 1), D), head("abcd", "abcd"), TWO, "", "", "cb"),
        # Nobody leaves while too few that live have the newest commit.
        ((A, B, node("c", alive=False)), head("abc", "ac"), TWO, "", "", ""),
        ((A, B, C), head("abc", "bc"), THREE, "", "", ""),
        # Who is drained is replaced, the owner only when it has let go.
        ((A, DRAINED_B, C), head("ab", "ab"), TWO, "", "c", ""),
        ((A, DRAINED_B, C), head("abc", "abc"), TWO, "", "", "b"),
        ((DRAINED_A, B, C), head("abc", "abc"), TWO, "", "", ""),
        ((DRAINED_A, B, C), head("abc", "abc", idle=True), TWO, "", "", "a"),
        # Where the container ran last a copy stays, if its node does.
        ((node("a", 1), B, C), head("abc", "abc", idle=True), TWO, "", "", "b"),
        ((DEAD_A, B, C), head("ab", "ab", idle=True), TWO, "a", "c", ""),
        ((DEAD_A, B, C), head("abc", "abc", idle=True), TWO, "a", "", "a"),
        # Named ones are members, whatever they are; others only as owners.
        ((A, DEAD_B, C), head("a", "a"), NAMED, "b", "b", ""),
        ((A, B, C), head("abc", "abc", owner="c"), NAMED, "", "", ""),
        ((A, B, C), head("abc", "abc"), NAMED, "", "", "c"),
        ((A, DRAINED_B, C), head("abc", "abc"), NAMED, "", "", "c"),
        ((A, DEAD_B, C), head("abc", "abc"), NAMED, "b", "", ""),
        ((A, C), head("ac", "ac"), NAMED, "", "", ""),
    ],
)
def test_the_plan(
    nodes: tuple[NodeView, ...],
    state: Head,
    wanted: ReplicationOptions,
    gone: str,
    join: str,
    leave: str,
) -> None:
    planned = plan(nodes, state, wanted, set(gone), volume_id="v")
    assert planned == Plan(tuple(join), tuple(leave), wanted.copies)


def test_a_plan_that_is_done_is_the_last_one() -> None:
    """No node comes and goes in turns."""
    state = head("ab", "ab")
    nodes = (A, DEAD_B, C, D)
    for _ in range(4):
        planned = plan(nodes, state, TWO, {"b"}, volume_id="v")
        members = [each for each in state.members if each not in planned.leave]
        members += planned.join
        state = head("".join(members), "".join(each for each in members if each != "b"))
    assert set(state.members) == {"a", "d"}
    assert plan((A, B, C, D), state, TWO, set(), volume_id="v") == Plan(keep=2)


def test_nodes_that_are_alike_share_the_copies() -> None:
    """One that seems to have a little more space than others does not get them all."""
    nodes = [node(f"n{number}", 1000 + number) for number in range(30)]
    small = node("small", 400)
    taken: Counter[str] = Counter()
    for number in range(900):
        state = head([nodes[number % 30].record.id], [], owner="n0")
        planned = plan([*nodes, small], state, TWO, set(), volume_id=f"v{number}")
        taken.update(planned.join)
    assert len(taken) == 30
    assert max(taken.values()) < 2 * 900 / 30


def test_who_has_not_lived_for_long_enough_is_gone() -> None:
    at_once, later, never = Absences(0), Absences(3600), Absences(None)
    for absences in (at_once, later, never):
        assert absences.gone((A, B)) == frozenset()
    assert at_once.gone((A, DEAD_B)) == {"b"}
    assert later.gone((A, DEAD_B)) == frozenset()
    assert never.gone((A, DEAD_B)) == frozenset()
    assert at_once.gone((A, B)) == frozenset()
