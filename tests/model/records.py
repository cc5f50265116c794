"""
The records are saved, and later restored, while no daemon runs.

Copies, and the writers of live ones, are as they were.
"""

from __future__ import annotations

from collections.abc import Mapping

from plugin.ownership.state import Commit

from .world import Node, Steps, World, name


def older_records(world: World) -> Steps:
    if world.dump is None:
        dump = world.head, world.epochs, world.released
        yield "dump", world._replace(dump=dump, lost=False)
    elif not world.loaded and (world.head, world.epochs) != world.dump[:2]:
        head, epochs, released = world.dump
        yield (
            "load",
            world._replace(
                nodes=tuple(map(_after_stop, world.nodes)),
                head=head,
                epochs=epochs,
                released=released,
                lock="",
                votes=(),
                answers=frozenset(),
                pulls=frozenset(),
                pushes=frozenset(),
                loaded=True,
                lost=False,
            ),
        )


def _after_stop(node: Node) -> Node:
    return node if node.role == "O" else node._replace(role="-")


def all_tell(world: World, votes: Mapping[str, Commit]) -> bool:
    """
    Return whether no copy is unheard that is newer than the records say.

    Nobody can know of one that is away, or whose node became a member since the dump.
    """
    return not world.loaded or all(
        name(number) in votes
        or (node.replica.commit <= world.head.committed and not node.replica.live_epoch)
        for number, node in enumerate(world.nodes)
    )
