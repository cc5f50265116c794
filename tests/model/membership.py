"""
Members come and go, and what they had goes when nobody needs it any more.

The owner decides; of a volume that was released anybody may, and any holder brings the
others in step.
"""

from __future__ import annotations

from msgspec.structs import replace

from plugin.ownership import copy_worth
from plugin.ownership.state import EMPTY, Commit, CopyState, RefusedError

from .world import NOTHING, Node, Scope, Steps, World, changed, name


def _decides(world: World, number: int, node: Node) -> bool:
    """Return whether node may think that it can change the members."""
    owns = node.role == "O" and world.lock == name(number)
    return owns or (node.role == "-" and world.head.phase == "idle")


def _join(world: World, scope: Scope, number: int, node: Node) -> Steps:
    if not _decides(world, number, node):
        return
    epoch = node.epoch if node.role == "O" else world.head.epoch
    for other in range(len(world.nodes)):
        if name(other) in world.head.members:
            continue
        head = scope.rules.join(
            world.head, node=name(number), epoch=epoch, members=(name(other),)
        )
        yield (
            f"{name(other)} joins, says {name(number)}",
            world._replace(head=head, lost=False),
        )


def _leave(world: World, scope: Scope, number: int, node: Node) -> Steps:
    if not _decides(world, number, node):
        return
    epoch = node.epoch if node.role == "O" else world.head.epoch
    for member in world.head.members:
        try:
            head = scope.rules.leave(
                world.head,
                node=name(number),
                epoch=epoch,
                members=(member,),
                standing=_standing(world, scope),
            )
        except RefusedError:
            continue
        yield (
            f"{member} leaves, says {name(number)}",
            world._replace(head=head, lost=False),
        )


def _standing(world: World, scope: Scope) -> list[str]:
    """Return the nodes that say that they have what is committed."""
    stands = scope.rules.stands
    return [name(k) for k, e in enumerate(world.nodes) if stands(world.head, e.replica)]


def _roll_back(world: World, scope: Scope, number: int, node: Node) -> Steps:
    """Put a holder's copy back as it was made; but it keeps what it has promised."""
    if not scope.backups or world.head.phase != "idle" or node.role != "-":
        return
    if node.replica.live_epoch or name(number) not in world.head.holders:
        return
    if EMPTY in (node.replica.commit, world.head.committed):
        return
    others = [*world.nodes[:number], *world.nodes[number + 1 :]]
    left = {write for each in others for tree in _trees(each) for write in tree}
    standing = {*_standing(world, scope)}.intersection(world.head.holders)
    if not standing - {name(number)} or not node.tree <= left:
        return
    replica = replace(node.replica, commit=EMPTY)
    nodes = changed(world, number, replica=replica, tree=NOTHING)
    yield f"roll back {name(number)}", world._replace(nodes=nodes, lost=False)


def _roll_live_back(world: World, scope: Scope, number: int, node: Node) -> Steps:
    """Put the disk of an owner that has crashed back by commits that others have."""
    copy, epochs = node.replica, dict(world.epochs)
    if not scope.backups or node.role != "-" or copy.live_epoch not in epochs:
        return
    others = [*world.nodes[:number], *world.nodes[number + 1 :]]
    left = {write for each in others for tree in _trees(each) for write in tree}
    standing = {*_standing(world, scope)}.intersection(world.head.holders)
    if not standing - {name(number)} or not (node.live or NOTHING) <= left:
        return
    for seq in range(copy.next_seq - 1):
        commit = Commit(copy.live_epoch, seq) if seq else epochs[copy.live_epoch].base
        tree = world.content(commit)
        older = replace(copy, commit=commit, next_seq=seq + 1)
        if not copy_worth.gone_back(older, world.head, world.lineage):
            continue  # nobody can know
        nodes = changed(world, number, replica=older, tree=tree, live=tree)
        yield f"roll {name(number)} back", world._replace(nodes=nodes, lost=False)


def _trees(node: Node) -> list[frozenset[int]]:
    return [node.tree, node.live or NOTHING, *node.kept]


def _strike(world: World, scope: Scope, number: int, node: Node) -> Steps:
    head = scope.rules.strike(world.head, node=name(number), copy=node.replica)
    if head != world.head:
        yield f"strike {name(number)}", world._replace(head=head, lost=False)


def _discard(world: World, scope: Scope, number: int, node: Node) -> Steps:
    """Throw the copy of no member away; it forgets even what it has promised."""
    if name(number) in world.head.members or node.role != "-" or node.kept:
        return
    if node.replica == CopyState():
        return
    if scope.rules.diverged(node.replica, world.head, world.lineage):
        kept = node.tree if node.live is None else node.live
        empty = replace(node.replica, commit=EMPTY, live_epoch=0)
        yield (
            f"set apart {name(number)}",
            world._replace(
                nodes=changed(
                    world,
                    number,
                    replica=empty,
                    tree=NOTHING,
                    live=None,
                    kept=frozenset({kept}),
                ),
                lost=False,
            ),
        )
        return
    if not scope.rules.superseded(node.replica, world.head, world.lineage):
        return
    yield (
        f"discard {name(number)}",
        world._replace(
            nodes=changed(world, number, replica=CopyState(), tree=NOTHING, live=None),
            lost=False,
        ),
    )


def follow(world: World, scope: Scope, number: int, node: Node) -> Steps:
    """Send what is committed to the others, as a holder of a released volume."""
    del scope
    head, commit = world.head, node.replica.commit
    if not head.released or name(number) not in head.holders:
        return
    if commit != head.committed or node.replica.live_epoch:
        return
    others = (each for each in range(len(world.nodes)) if each != number)
    sent = {(each, commit, node.tree, head.epoch) for each in others}
    pushes = world.pushes | sent
    if pushes != world.pushes:
        yield f"follow {name(number)}", world._replace(pushes=pushes, lost=False)


def spread(world: World, scope: Scope, number: int, node: Node) -> Steps:
    """Tell the store who has got it; whoever is no member is not to be counted."""
    if node.role != "-" or node.replica.live_epoch:
        return
    commit = node.replica.commit
    holders = tuple(
        name(each)
        for each, other in enumerate(world.nodes)
        if other.replica.commit == commit and not other.replica.live_epoch
    )
    head = scope.rules.spread(
        world.head, node=name(number), commit=commit, holders=holders
    )
    if head != world.head:
        yield f"spread {name(number)}", world._replace(head=head, lost=False)


MEMBERSHIP = (
    _join,
    _leave,
    _roll_back,
    _roll_live_back,
    _strike,
    _discard,
    follow,
    spread,
)
