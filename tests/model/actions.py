"""
What can happen next in a world, one function for each kind of step.

Each asks the rules, does what they say on disks and in the store, and yields the world
after it; a refusal is no step.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from plugin.ownership.state import Commit, Epoch, RefusedError

from .membership import MEMBERSHIP, follow, spread
from .records import older_records
from .voting import (
    abandon,
    chosen,
    gone_back,
    has_lease,
    hear,
    kept_trees,
    leases,
    vote,
    with_commit,
    with_replica,
)
from .world import Node, Scope, Steps, World, changed, name


def steps(world: World, scope: Scope) -> Iterator[tuple[str, World]]:
    """Yield what can happen next, by name, and the world after it."""
    actions = (*_ACTIONS, *MEMBERSHIP) if scope.membership else _ACTIONS
    if scope.records:
        actions = (*_ACTIONS, follow, spread)
    for number, node in enumerate(world.nodes):
        for action in actions:
            try:
                yield from action(world, scope, number, node)
            except RefusedError:
                continue
    if scope.time:
        yield from leases(world)
    elif world.lock:
        yield "the lease ends", world._replace(lock="", lost=False)
    if scope.records:
        yield from older_records(world)
    if scope.removal and world.head.epoch < scope.epochs:
        try:
            head = scope.rules.remove(world.head, locked_by=world.lock)
        except RefusedError:
            return
        yield "remove", world._replace(head=head, removed=True, lost=False)


def _acquire(world: World, scope: Scope, number: int, node: Node) -> Steps:
    if node.role != "-" or world.head.epoch >= scope.epochs:
        return
    if not has_lease(world, scope, number):
        return
    orderly = scope.time and scope.rules.was_released(world.head)
    head = scope.rules.acquire(
        world.head,
        locked_by=world.lock,
        node=name(number),
        boot_id="1",
        promised=node.replica.promised,
    )
    yield (
        f"acquire {name(number)}",
        world._replace(
            nodes=changed(world, number, role="R", epoch=head.epoch, orderly=orderly),
            head=head,
            lock=name(number),
            votes=(),
            answers=frozenset(),
            lost=False,
        ),
    )


def _pull(world: World, scope: Scope, number: int, node: Node) -> Steps:
    """
    Take the base from a holder before the epoch begins; nobody is told.

    Where nodes are slow that takes time: it may come when nobody waits for it any more.
    """
    choice = chosen(world, scope, number, node)
    if choice is None or choice.base == node.replica.commit:
        return
    if not scope.time:
        yield from _taken(world, scope, number, choice.base, node.epoch)
        return
    pulls = world.pulls | {(number, choice.base, node.epoch)}
    if pulls != world.pulls:
        step = f"{name(number)} asks for {choice.base}"
        yield step, world._replace(pulls=pulls, lost=False)


def _arrive(world: World, scope: Scope, number: int, node: Node) -> Steps:
    del node
    for pull in world.pulls:
        if pull[0] == number:
            rest = world._replace(pulls=world.pulls - {pull})
            yield from _taken(rest, scope, *pull)


def _taken(world: World, scope: Scope, number: int, base: Commit, epoch: int) -> Steps:
    node = world.nodes[number]
    kept = scope.rules.take_over(
        node.replica,
        epoch=epoch,
        base=base,
        lineage=world.lineage.after(epoch, base, name(number)),
    )
    yield (
        f"pull {name(number)} {base}",
        world._replace(
            nodes=changed(
                world,
                number,
                replica=kept.copy,
                tree=world.content(base),
                live=None,
                kept=node.kept | kept_trees(node, kept),
            ),
            lost=False,
        ),
    )


def _begin(world: World, scope: Scope, number: int, node: Node) -> Steps:
    choice = chosen(world, scope, number, node)
    if choice is None:
        return
    yield (
        f"begin {name(number)} {node.epoch} from {choice.base}",
        world._replace(
            nodes=changed(world, number, role="B"),
            head=scope.rules.begin(world.head, choice),
            epochs=(
                *world.epochs,
                (node.epoch, Epoch(choice.base, name(number))),
            ),
            settled=world.content(choice.base) if choice.lost else world.settled,
            released=False,
            lost=choice.lost is not None,
        ),
    )


def _go_live(world: World, scope: Scope, number: int, node: Node) -> Steps:
    if node.role != "B":
        return
    base = dict(world.epochs)[node.epoch].base
    kept = scope.rules.go_live(
        node.replica, epoch=node.epoch, base=base, lineage=world.lineage
    )
    content = world.content(base)
    yield (
        f"go live {name(number)}",
        world._replace(
            nodes=changed(
                world,
                number,
                replica=kept.copy,
                tree=content,
                live=content,
                role="O",
                kept=node.kept | kept_trees(node, kept),
            ),
            lost=False,
        ),
    )


def _owns(world: World, number: int, node: Node) -> bool:
    return (
        world.lock == name(number)
        and world.head.epoch == node.epoch
        and world.head.phase == "owned"
    )


def _write(world: World, scope: Scope, number: int, node: Node) -> Steps:
    if node.role != "O" or world.writes >= scope.writes or node.live is None:
        return
    if scope.fenced and not _owns(world, number, node):
        return
    yield (
        f"write {name(number)}",
        world._replace(
            nodes=changed(world, number, live=node.live | {world.writes}),
            writes=world.writes + 1,
            lost=False,
        ),
    )


def _sync(world: World, scope: Scope, number: int, node: Node) -> Steps:
    """Commit, and send the commit to all; each copy arrives later, or never."""
    if node.role != "O" or node.live is None or node.replica.next_seq > scope.seqs:
        return
    if node.replica.live_epoch != node.epoch:
        return  # it is sealed: no commit of a copy that is not live
    if scope.fenced and not _owns(world, number, node):
        return
    replica = scope.rules.commit_live(node.replica)
    others = (each for each in range(len(world.nodes)) if each != number)
    yield (
        f"sync {name(number)} {replica.commit}",
        world._replace(
            nodes=changed(world, number, replica=replica, tree=node.live),
            history=with_commit(world, number, replica),
            running=world.running | {replica.commit},
            pushes=world.pushes
            | {(each, replica.commit, node.live, node.epoch) for each in others},
            lost=False,
        ),
    )


def _publish(world: World, scope: Scope, number: int, node: Node) -> Steps:
    """Say who has a commit, the newest or one before it: some answer late."""
    if node.role != "O" or world.lock != name(number):
        return
    own = {each for each, _ in world.history if each.epoch == node.epoch}
    for commit in sorted(own | {node.replica.commit}):
        at = [each.replica.commit for each in world.nodes]
        holders = tuple(
            name(each)
            for each, its in enumerate(at)
            if its == commit or (its > commit and its.epoch == node.epoch)
        )
        if len(holders) < 2:
            continue
        head = scope.rules.publish(
            world.head,
            node=name(number),
            epoch=node.epoch,
            commit=commit,
            holders=holders,
        )
        if head != world.head:
            yield (
                f"publish {name(number)} {commit}",
                world._replace(head=head, settled=world.content(commit), lost=False),
            )


def _resume(world: World, scope: Scope, number: int, node: Node) -> Steps:
    if node.role not in ("O", "B") or world.lock:
        return
    if not has_lease(world, scope, number):
        return
    head = scope.rules.resume(
        world.head,
        locked_by=world.lock,
        node=name(number),
        boot_id="1",
        epoch=node.epoch,
    )
    yield (
        f"resume {name(number)}",
        world._replace(head=head, lock=name(number), lost=False),
    )


def _seal(world: World, scope: Scope, number: int, node: Node) -> Steps:
    """Seal a tree whose containers have ended: orderly (then release) or not."""
    if node.role not in ("O", "-") or not node.replica.live_epoch:
        return
    if node.replica.next_seq > scope.seqs + 1:
        return
    replica = scope.rules.seal(node.replica, gone_back=gone_back(world, scope, node))
    if replica == node.replica:
        return
    nodes = with_replica(world, number, replica)
    yield (
        f"seal {name(number)} {replica.commit}",
        world._replace(
            nodes=changed(
                world._replace(nodes=nodes),
                number,
                role="S" if node.role == "O" else "-",
            ),
            history=with_commit(world, number, replica),
            lost=False,
        ),
    )


def _release(world: World, scope: Scope, number: int, node: Node) -> Steps:
    if node.role != "S" or world.lock != name(number):
        return
    head = scope.rules.release(
        world.head,
        node=name(number),
        epoch=node.epoch,
        commit=node.replica.commit,
        holders=(name(number),),
    )
    yield (
        f"release {name(number)}",
        world._replace(
            nodes=changed(world, number, role="-"),
            head=replace(head, released_at="now"),
            lock="",
            settled=node.tree,
            released=True,
            lost=False,
        ),
    )


def _stop(world: World, scope: Scope, number: int, node: Node) -> Steps:
    """Crash, or learn that somebody else has come in between."""
    if node.role == "-":
        return
    yield (
        f"crash {name(number)}",
        world._replace(nodes=changed(world, number, role="-"), lost=False),
    )


def _deliver(world: World, scope: Scope, number: int, node: Node) -> Steps:
    for push in world.pushes:
        target, commit, content, at = push
        if target != number:
            continue
        rest = world.pushes - {push}
        try:
            kept = scope.rules.receive(
                node.replica,
                commit,
                world.lineage,
                at=at,
                writers_stopped=node.role != "O",
            )
        except RefusedError:
            kept = None
        if kept is None:
            yield (
                f"refuse {commit} on {name(number)}",
                world._replace(pushes=rest, lost=False),
            )
            continue
        yield (
            f"receive {commit} on {name(number)}",
            world._replace(
                nodes=changed(
                    world,
                    number,
                    replica=kept.copy,
                    tree=content,
                    live=None,
                    kept=node.kept | kept_trees(node, kept),
                ),
                pushes=rest,
                lost=False,
            ),
        )


_ACTIONS = (
    _acquire,
    vote,
    hear,
    abandon,
    _pull,
    _arrive,
    _begin,
    _go_live,
    _write,
    _sync,
    _publish,
    _resume,
    _seal,
    _release,
    _stop,
    _deliver,
)
