"""Rules of heads that the model does not need: who keeps copies, who has got them."""

from __future__ import annotations

from functools import partial

import msgspec
import pytest

from plugin.ownership import copy_worth, rules
from plugin.ownership.state import (
    Commit,
    CopyState,
    Epoch,
    Head,
    Lineage,
    Phase,
    RefusedError,
)

OWNED = Head(epoch=3, owner="a", boot_id="1", phase="owned", members=("a",))
IDLE = Head(
    epoch=3,
    owner="a",
    phase="idle",
    committed=Commit(3, 4),
    holders=("a",),
    members=("a", "b", "c"),
)

# Whoever counts as a holder says that it has the commit.
leave = partial(rules.leave, standing=("a", "b", "c"))


def test_an_owner_makes_others_members_once() -> None:
    joined = rules.join(OWNED, node="a", epoch=3, members=("b", "a", "c"))
    assert joined.members == ("a", "b", "c")
    assert rules.join(joined, node="a", epoch=3, members=("c",)) == joined


@pytest.mark.parametrize(("node", "epoch"), [("b", 3), ("a", 2)])
def test_nobody_else_makes_members(node: str, epoch: int) -> None:
    with pytest.raises(RefusedError, match="not-owner"):
        rules.join(OWNED, node=node, epoch=epoch, members=("d",))


@pytest.mark.parametrize("phase", ["recovering", "removing"])
def test_nobody_makes_members_of_what_changes_hands(phase: Phase) -> None:
    head = msgspec.structs.replace(IDLE, phase=phase)
    with pytest.raises(RefusedError, match="not-owner"):
        rules.join(head, node="a", epoch=3, members=("d",))


def test_of_a_released_volume_any_node_says_who_keeps_copies() -> None:
    joined = rules.join(IDLE, node="d", epoch=3, members=("d",))
    assert joined.members == ("a", "b", "c", "d")
    # Its owner has crashed, or gave up: somebody may have something newer.
    for phase, epoch in (("owned", 3), ("recovering", 4), ("idle", 4)):
        head = msgspec.structs.replace(IDLE, phase=phase, epoch=epoch)
        with pytest.raises(RefusedError, match="not-owner"):
            rules.join(head, node="d", epoch=epoch, members=("d",))
        with pytest.raises(RefusedError, match="not-owner"):
            leave(head, node="d", epoch=epoch, members=("c",))


def test_a_release_holds_though_a_node_has_come_and_given_up() -> None:
    # The first one has never been begun; of the second nobody noted the release.
    for before in (Head(members=("a", "b")), IDLE):
        raised = rules.acquire(before, locked_by="", node="x", boot_id="1")
        head = rules.abandon(raised, node="x", epoch=raised.epoch)
        assert head.released
        joined = rules.join(head, node="d", epoch=head.epoch, members=("d",))
        assert "d" in joined.members
    spread = rules.spread(head, node="a", commit=Commit(3, 4), holders=("b",))
    left = leave(spread, node="d", epoch=head.epoch, members=("a",))
    assert (left.members, left.holders) == (("b", "c"), ("b",))
    assert rules.keep(rules.remove(left, locked_by="")) == left


def test_a_member_takes_what_was_released_whoever_has_given_up_since() -> None:
    copy = CopyState(promised=4, commit=Commit(3, 2))
    lineage = Lineage({3: Epoch(Commit(2, 1), "a")})
    kept = rules.receive(copy, Commit(3, 4), lineage, at=4, writers_stopped=True)
    assert kept is not None
    assert (kept.copy.promised, kept.copy.commit) == (4, Commit(3, 4))
    # A node recovers epoch 5, which this copy has promised: what it took now would not
    # be in its vote.
    copy = msgspec.structs.replace(copy, promised=5)
    with pytest.raises(RefusedError, match="stale-epoch"):
        rules.receive(copy, Commit(3, 4), lineage, at=4, writers_stopped=True)


def test_a_member_leaves_while_others_hold_the_newest_commit() -> None:
    head = msgspec.structs.replace(IDLE, holders=("a", "b"))
    left = leave(head, node="a", epoch=3, members=("b",))
    assert (left.members, left.holders) == (("a", "c"), ("a",))
    with pytest.raises(RefusedError, match="last-copy") as refused:
        leave(left, node="a", epoch=3, members=("a",))
    assert (refused.value.node, refused.value.commit) == ("a", Commit(3, 4))
    with pytest.raises(RefusedError, match="last-copy"):
        leave(head, node="a", epoch=3, members=("b",), keep=2)
    # Who does not say that it has the commit may have an older pool by now.
    with pytest.raises(RefusedError, match="last-copy"):
        rules.leave(head, node="a", epoch=3, members=("b",), standing=("b",))
    assert leave(head, node="a", epoch=3, members=("c",), keep=2)


def test_members_may_come_to_one_commit_in_several_rounds() -> None:
    head = msgspec.structs.replace(OWNED, members=("a", "b", "c"))
    for node in ("b", "c"):
        head = rules.publish(
            head, node="a", epoch=3, commit=Commit(3, 1), holders=("a", node)
        )
    assert head.holders == ("a", "b", "c")
    head = rules.publish(
        head, node="a", epoch=3, commit=Commit(3, 2), holders=("a", "c")
    )
    assert head.holders == ("a", "c")


def test_an_owner_does_not_leave_and_nobody_does_before_a_first_commit() -> None:
    head = msgspec.structs.replace(
        OWNED, committed=Commit(3, 1), holders=("a", "b"), members=("a", "b")
    )
    assert leave(head, node="a", epoch=3, members=("b",)).members == ("a",)
    with pytest.raises(RefusedError, match="locked"):
        leave(head, node="a", epoch=3, members=("a",))
    empty = msgspec.structs.replace(OWNED, members=("a", "b"), holders=("a", "b"))
    with pytest.raises(RefusedError, match="last-copy"):
        leave(empty, node="a", epoch=3, members=("b",))


def test_who_is_no_member_does_not_count_as_a_holder() -> None:
    published = rules.publish(
        OWNED, node="a", epoch=3, commit=Commit(3, 1), holders=("a", "x")
    )
    assert published.holders == ("a",)
    spread = rules.spread(IDLE, node="a", commit=Commit(3, 4), holders=("c", "x"))
    assert spread.holders == ("a", "c")


def test_a_node_becomes_a_member_as_it_begins() -> None:
    head = rules.acquire(IDLE, locked_by="", node="x", boot_id="1")
    assert head.members == IDLE.members
    lineage = Lineage({3: Epoch(Commit(2, 1), "a")})
    old, newest = Commit(2, 1), Commit(3, 4)
    with pytest.raises(RefusedError, match="no-copy"):
        rules.choose(head, lineage, {"x": old}, accept_loss=True)
    choice = rules.choose(head, lineage, {"x": newest}, accept_loss=False)
    assert rules.begin(head, choice).members == ("a", "b", "c", "x")
    # As a member it may be the best that there is.
    assert rules.choose(head, lineage, {"b": old}, accept_loss=True).lost == newest


@pytest.mark.parametrize(
    ("replica", "superseded", "diverged"),
    [
        (CopyState(commit=Commit(3, 4)), True, False),
        (CopyState(commit=Commit(2, 1)), True, False),
        (CopyState(), True, False),
        (CopyState(commit=Commit(3, 5)), False, False),
        (CopyState(commit=Commit(2, 2)), False, True),
        (CopyState(commit=Commit(2, 1), live_epoch=2), False, True),
    ],
)
def test_a_copy_goes_only_if_members_have_all_of_it(
    replica: CopyState, superseded: bool, diverged: bool
) -> None:
    lineage = Lineage({3: Epoch(Commit(2, 1), "a")})
    assert copy_worth.superseded(replica, IDLE, lineage) is superseded
    assert copy_worth.diverged(replica, IDLE, lineage) is diverged


def test_of_a_released_volume_any_holder_brings_others_in_step() -> None:
    head = msgspec.structs.replace(IDLE, holders=("a", "b"))
    spread = rules.spread(head, node="b", commit=Commit(3, 4), holders=("c",))
    assert spread.holders == ("a", "b", "c")


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


def test_a_refused_removal_of_a_released_volume_changes_nothing() -> None:
    removing = rules.remove(IDLE, locked_by="")
    with pytest.raises(RefusedError, match="removing"):
        rules.acquire(removing, locked_by="", node="b", boot_id="1")
    assert rules.keep(removing) == IDLE


def test_what_was_not_released_does_not_pass_for_it_after_a_refused_removal() -> None:
    kept = rules.keep(rules.remove(OWNED, locked_by=""))
    assert (kept.epoch, kept.phase, kept.released) == (4, "idle", False)
    with pytest.raises(RefusedError, match="not-owner"):
        rules.resume(kept, locked_by="", node="a", boot_id="1", epoch=3)


def test_a_holder_whose_copy_is_older_is_struck_off_unless_it_is_the_last() -> None:
    """Without any holder the commit would count as given up."""
    head = msgspec.structs.replace(IDLE, holders=("a", "b"))
    older = CopyState(promised=3, commit=Commit(3, 3))
    strike = partial(copy_worth.strike, node="a")
    assert strike(head, copy=older).holders == ("b",)
    assert strike(head, copy=None).holders == ("b",)
    gone_back = CopyState(commit=Commit(3, 3), live_epoch=3, next_seq=4)
    assert strike(head, copy=gone_back).holders == ("b",)
    live = msgspec.structs.replace(gone_back, next_seq=5)
    for newest in (CopyState(commit=Commit(3, 4)), live):
        assert strike(head, copy=newest) == head
    with pytest.raises(RefusedError, match="last-copy"):
        strike(IDLE, copy=older)
    assert strike(msgspec.structs.replace(IDLE, holders=("b",)), copy=older).holders
