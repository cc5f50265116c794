"""What must hold in every world, and of every step from one to the next."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import msgspec

from plugin.ownership.state import (
    EMPTY,
    Commit,
    CopyState,
    Epoch,
    Head,
    Lineage,
    RefusedError,
)

from .world import Scope, World, name

# Worlds differ mostly in what these invariants do not look at.
REMEMBERED_MAX: Final = 50_000


def broken(before: World, step: str, after: World, scope: Scope) -> str:
    """Return which invariant *step* has broken, "" if none."""
    return _of_state(after, scope) or _of_step(before, step, after)


def _of_state(world: World, scope: Scope) -> str:
    commits = [commit for commit, _ in world.history]
    if len(commits) != len(set(commits)):
        return "I3: one commit has two contents"
    epochs = [epoch for epoch, _ in world.epochs]
    if len(epochs) != len(set(epochs)):
        return "I1: an epoch has begun twice"
    owners = [node.epoch for node in world.nodes if node.role in "BO"]
    if len(owners) != len(set(owners)):
        return "I1: two owners of one epoch"
    if not scope.removal:
        there = set()
        for node in world.nodes:
            there |= node.tree | (node.live or frozenset())
            there |= {write for tree in node.kept for write in tree}
        if there != set(range(world.writes)):
            return f"I7: writes are gone: {set(range(world.writes)) - there}"
    content = dict(world.history)
    for number, node in enumerate(world.nodes):
        if content.get(node.replica.commit) != node.tree:
            return f"I5: the tree of {name(number)} is not its commit"
        if node.live is not None and not node.tree <= node.live:
            return f"I5: the live tree of {name(number)} is behind its commit"
    committed = content[world.head.committed]
    if not any(
        committed <= (node.live or node.tree)
        or committed <= node.tree
        or any(committed <= tree for tree in node.kept)
        for number, node in enumerate(world.nodes)
        if name(number) in world.head.members
    ):
        return "I4: no member holds what is committed"
    if world.head.committed != EMPTY and not world.head.holders:
        return "I17: nobody counts as a holder, as if all had been given up"
    if set(world.head.holders) - set(world.head.members):
        return "I13: somebody who is no member counts as a holder"
    if world.head.quality == "quiesced" and world.head.committed in world.running:
        return "I14: a commit that was made under writes counts as quiesced"
    if fault := _of_joining(world.head, world.released, len(world.nodes), scope.rules):
        return fault
    if not world.released or world.head.phase != "idle" or world.loaded:
        return ""
    copies = tuple(node.replica for node in world.nodes)
    return _of_following(world.head, world.epochs, copies, scope.rules)


@lru_cache(maxsize=REMEMBERED_MAX)
def _of_joining(head: Head, released: bool, nodes: int, rules: Any) -> str:
    """
    Return what is wrong with making another node a member now, "" if nothing.

    It is no step of its own: here every node votes and is sent commits, member or not,
    and a join that changes nothing but members leads to no other world.
    """
    free = released and head.phase == "idle"
    for number in range(nodes):
        try:
            joined = rules.join(
                head, node=name(number), epoch=head.epoch, members=("new",)
            )
        except RefusedError:
            if free:
                return "I16: it was released, and gets no members before it is begun"
            continue
        owns = head.owner == name(number) and head.phase == "owned"
        if not (owns or free):
            return f"a join by {name(number)}, which does not own it"
        if msgspec.structs.replace(joined, members=head.members) != head:
            return "a join changes more than members"
    return ""


@lru_cache(maxsize=REMEMBERED_MAX)
def _of_following(
    head: Head,
    epochs: tuple[tuple[int, Epoch], ...],
    copies: tuple[CopyState, ...],
    rules: Any,
) -> str:
    """Return what keeps members from what was released last, "" if nothing does."""
    if head.committed == EMPTY:
        return ""
    lineage = Lineage(dict(epochs))
    for number, copy in enumerate(copies):
        if name(number) not in head.members:
            continue
        try:
            rules.receive(
                copy,
                head.committed,
                lineage,
                at=head.epoch,
                writers_stopped=True,
            )
            rules.spread(
                head,
                node=next(iter(head.holders), ""),
                commit=head.committed,
                holders=(name(number),),
            )
        except RefusedError as error:
            return f"I16: {name(number)} cannot have what was released: {error.reason}"
    return ""


def _of_step(before: World, step: str, after: World) -> str:
    accepted = after.lost
    loads = step == "load"
    if after.head.committed < before.head.committed and not (accepted or loads):
        return "I4: committed went back"
    if step.startswith("receive"):
        number = "abc".index(step[-1])
        old, new = before.nodes[number].replica, after.nodes[number].replica
        if new.promised < old.promised:
            return "I2: a promise was forgotten"
        head, begun = after.head, after.lineage.newest(old.promised)
        awaited = head.phase == "recovering" and head.epoch == old.promised
        if new.commit.epoch < old.promised and (awaited or begun > new.commit.epoch):
            return "I2: a commit below the promise was taken"
        if new.commit < old.commit and after.lineage.contains(
            old.commit, at=new.commit.epoch
        ):
            return "I2: a replica went back"
    if fault := _of_older_records(before, step, after):
        return fault
    if step.startswith("pull"):
        number, at = "abc".index(step[5]), after.head.epoch
        was, now = (each.nodes[number].replica.commit for each in (before, after))
        back = now < was and after.lineage.contains(was, at=at)
        if back or not after.lineage.contains(now, at=at):
            return "I19: what nobody waits for any more was taken"
    if step.startswith("begin"):
        base = dict(after.epochs)[after.head.epoch].base
        known = before.settled | before.content(before.head.committed)
        if not accepted and not known <= before.content(base):
            return "I6: the owner lacks what is committed"
        offered = {
            commit for each, commit in before.votes if each in before.head.members
        }
        if accepted and base not in offered:
            return "I13: an old copy of no member's was taken in place of a newer one"
        if passed_over := _passed_over(before, after.head.owner, base):
            return passed_over
        if base == EMPTY and before.writes:
            return "I12: a volume that was written to begins empty"
        if before.removed:
            return "I11: a removed volume has an owner"
    return ""


def _of_older_records(before: World, step: str, after: World) -> str:
    """Return what older records have done to what they do not know."""
    if not (before.loaded and step.startswith(("vote", "receive"))):
        return ""
    number = "abc".index(step[5] if step.startswith("vote") else step[-1])
    was, now = before.nodes[number], after.nodes[number]
    if was.replica.newest_epoch <= after.lineage.newest(after.head.epoch):
        return ""
    if step.startswith("receive"):
        return "I18: a copy of which older records do not know was replaced"
    ended = was.role == "O" != now.role
    return "I18: writers of which older records do not know are ended" if ended else ""


def _passed_over(before: World, owner: str, base: Commit) -> str:
    """Return which node that lives has newer bytes than *base*, "" if none has."""
    at, lineage = before.head.epoch - 1, before.lineage
    for number, node in enumerate(before.nodes):
        if name(number) not in before.living.intersection(before.head.members) - {
            owner
        }:
            continue
        commit, live = node.replica.commit, node.live or frozenset()
        is_last = 0 < node.replica.live_epoch == lineage.newest(at)
        if is_last and not live <= before.content(base):
            return f"I15: {name(number)} lives, and what it wrote is passed over"
        if commit > base and lineage.contains(commit, at=at):
            return f"I15: {name(number)} lives, and its commit is passed over"
    return ""


def stuck(world: World, scope: Scope) -> str:
    """
    Return why nobody can own the volume although every node is well again, else "".

    I10: with the store and every replica reachable there must be an owner.
    """
    if world.removed:
        return ""
    replicas = tuple(node.replica for node in world.nodes)
    fault = _stuck(
        world.head, world.epochs, replicas, scope.accept_loss, rules=scope.rules
    )
    return "" if world.loaded and fault.endswith("stale-epoch") else fault


@lru_cache(maxsize=REMEMBERED_MAX)
def _stuck(
    last: Head,
    epochs: tuple[tuple[int, Epoch], ...],
    copies: tuple[CopyState, ...],
    accept_loss: bool,
    *,
    rules: Any,
) -> str:
    lineage = Lineage(dict(epochs))
    head = rules.acquire(last, locked_by="", node="a", boot_id="1")
    try:
        replicas = [
            rules.promise(
                each,
                head.epoch,
                lineage,
                writers_stopped=True,
                gone_back=rules.gone_back(each, head, lineage),
            )
            for each in copies
        ]
        votes = {
            name(number): each.commit
            for number, each in enumerate(replicas)
            if name(number) in ("a", *head.members)
        }
        choice = rules.choose(head, lineage, votes, accept_loss=accept_loss)
        rules.go_live(
            replicas[0],
            epoch=head.epoch,
            base=choice.base,
            lineage=lineage.after(head.epoch, choice.base, "a"),
        )
    except RefusedError as error:
        return f"I10: nobody can own it: {error.reason}"
    return ""
