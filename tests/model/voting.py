"""
How a new owner comes to be sure what to begin with: leases, votes given and heard.

Without `Scope.time` all of it is done at once: a vote is heard as it is given, writers
end with it, and the owner begins whenever what it has heard does.
"""

from __future__ import annotations

from plugin.ownership.state import Choice, Commit, CopyState, Kept, RefusedError

from .records import all_tell
from .world import Bytes, Node, Scope, Steps, World, changed, name


def leases(world: World) -> Steps:
    """A lease ends, with the lock that hangs on it, or is had again."""
    for each in map(name, range(len(world.nodes))):
        if each in world.living:
            lock = "" if world.lock == each else world.lock
            living = world.living - {each}
            yield (
                f"the lease of {each} ends",
                world._replace(living=living, lock=lock, lost=False),
            )
        else:
            yield (
                f"{each} has a lease",
                world._replace(living=world.living | {each}, lost=False),
            )


def has_lease(world: World, scope: Scope, number: int) -> bool:
    return not scope.time or name(number) in world.living


def recovering(world: World, number: int, node: Node) -> bool:
    """Return whether node may go on: it asks the store before each step."""
    return (
        node.role == "R"
        and world.lock == name(number)
        and world.head.epoch == node.epoch
    )


def gone_back(world: World, scope: Scope, node: Node) -> bool:
    """Return whether the node can know that its disk has gone back."""
    known: bool = scope.rules.gone_back(node.replica, world.head, world.lineage)
    return known


def vote(world: World, scope: Scope, number: int, node: Node) -> Steps:
    """
    Promise, and give the vote. Who is slow promises when nobody waits for it any more.

    It asks the store, which may still name the owner.
    """
    waits = recovering(world, number, node)
    named = (world.head.owner, world.head.epoch) == (name(number), node.epoch)
    if not waits and not (scope.time and named):
        return
    for other, voter in enumerate(world.nodes):
        if not _may_vote(world, number, other, waits=waits):
            continue
        # They take their time to end: that is a step of its own.
        stopped = voter.role != "O" or (scope.fenced and not scope.time)
        try:
            replica = scope.rules.promise(
                voter.replica,
                node.epoch,
                world.lineage,
                writers_stopped=stopped,
                gone_back=gone_back(world, scope, voter),
            )
        except RefusedError:
            continue
        nodes = with_replica(world, other, replica)
        if voter.role == "O" and not replica.live_epoch:
            # Its writers have been stopped, and do not come back; or they run on.
            after = {"live": voter.live} if scope.time else {"role": "-"}
            nodes = changed(world._replace(nodes=nodes), other, **after)
        given = (name(other), replica.commit)
        heard = world._replace(nodes=nodes, history=with_commit(world, other, replica))
        if waits and scope.time and other != number:
            heard = heard._replace(answers=world.answers | {given})
        elif waits:
            heard = heard._replace(votes=tuple(sorted((*world.votes, given))))
        yield f"vote {name(other)} for {name(number)}", heard._replace(lost=False)


def _may_vote(world: World, number: int, other: int, *, waits: bool) -> bool:
    """Return whether *other* is asked by node *number*, which waits for it or not."""
    given = {each for each, _ in (*world.votes, *world.answers)}
    late = world.nodes[other].replica.promised < world.head.epoch
    if other == number:
        return waits and name(other) not in given
    return name(other) in world.head.members and (
        name(other) not in given if waits else late
    )


def hear(world: World, scope: Scope, number: int, node: Node) -> Steps:
    """A vote arrives, in time."""
    del scope
    if not recovering(world, number, node):
        return
    for each in world.answers:
        yield (
            f"{name(number)} hears {each[0]}",
            world._replace(
                votes=tuple(sorted((*world.votes, each))),
                answers=world.answers - {each},
                lost=False,
            ),
        )


def abandon(world: World, scope: Scope, number: int, node: Node) -> Steps:
    """Give the epoch up: somebody lives and is not heard."""
    if not (scope.time or scope.membership or scope.records):
        return
    if not recovering(world, number, node):
        return
    head = scope.rules.abandon(world.head, node=name(number), epoch=node.epoch)
    yield (
        f"abandon {name(number)}",
        world._replace(
            nodes=changed(world, number, role="-"), head=head, lock="", lost=False
        ),
    )


def chosen(world: World, scope: Scope, number: int, node: Node) -> Choice | None:
    """Return what to begin with; None if it cannot begin yet."""
    votes = dict(world.votes)
    if not recovering(world, number, node) or name(number) not in votes:
        return None
    if not all_tell(world, votes):
        return None
    choice: Choice = scope.rules.choose(
        world.head, world.lineage, votes, accept_loss=scope.accept_loss
    )
    missing = scope.rules.unheard(world.head, votes, choice, orderly=node.orderly)
    return None if missing & world.living else choice


def with_replica(world: World, number: int, replica: CopyState) -> tuple[Node, ...]:
    """Return the nodes after a replica's live tree has, or has not, been sealed."""
    node = world.nodes[number]
    if node.replica.live_epoch and not replica.live_epoch:
        assert node.live is not None
        return changed(world, number, replica=replica, tree=node.live, live=None)
    return changed(world, number, replica=replica)


def kept_trees(node: Node, kept: Kept) -> frozenset[Bytes]:
    """Return what has to be set apart of the node's bytes."""
    trees = {node.tree} if kept.keep_commit else set[Bytes]()
    if kept.keep_live and node.live is not None:
        trees.add(node.live)
    return frozenset(trees)


def with_commit(
    world: World, number: int, replica: CopyState
) -> frozenset[tuple[Commit, Bytes]]:
    """Return history with what a node has just committed of its live tree."""
    node = world.nodes[number]
    if replica.commit == node.replica.commit or node.live is None:
        return world.history
    return world.history | {(replica.commit, node.live)}
