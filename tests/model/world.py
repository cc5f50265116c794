"""
A world of nodes, one volume and a network that delays, in which anything may happen.

Every decision is made by the rules that the daemon runs (`plugin/ownership/rules.py`);
here and in `actions.py` is only what surrounds them: which node knows what, what its
disk holds, what is in flight. What the bytes are is the set of the writes in them, so
that a lost write is seen as a missing number.

The state of a node between two durable steps is its `role`:

    -  nothing under way (perhaps with a live tree that a crash has left)
    R  recovering: has the head and the lock, collects promises
    B  has begun its epoch in the store, not yet on its own disk
    O  owner: containers may write
    S  has sealed its tree, not yet told the store

With `Scope.time` nodes are slow. Each has a lease, which ends and is had again; writers
of a former owner have to end before it votes; a vote is given at one moment and heard
at a later one, or never; and a new owner waits for whom it has to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

from plugin.ownership import copy_worth, rules, votes
from plugin.ownership.state import EMPTY, Commit, CopyState, Epoch, Head, Lineage

Bytes = frozenset[int]
NOTHING: Bytes = frozenset()


class Node(NamedTuple):
    """A node's disk, and what its daemon is doing."""

    replica: CopyState = CopyState()
    tree: Bytes = NOTHING
    live: Bytes | None = None
    role: str = "-"
    epoch: int = 0
    kept: frozenset[Bytes] = frozenset()
    # As it came to recover, the last owner had released the volume.
    orderly: bool = False


class World(NamedTuple):
    """Everything at one moment; hashable."""

    nodes: tuple[Node, ...]
    head: Head = Head()
    lock: str = ""
    epochs: tuple[tuple[int, Epoch], ...] = ()
    history: frozenset[tuple[Commit, Bytes]] = frozenset({(EMPTY, NOTHING)})
    # Who asks for what, and in which epoch.
    pulls: frozenset[tuple[int, Commit, int]] = frozenset()
    # To whom, what, and the epoch of the head under which it was sent.
    pushes: frozenset[tuple[int, Commit, Bytes, int]] = frozenset()
    votes: tuple[tuple[str, Commit], ...] = ()
    # Votes that were given, and are not heard yet.
    answers: frozenset[tuple[str, Commit]] = frozenset()
    # The nodes that have a lease.
    living: frozenset[str] = frozenset()
    writes: int = 0
    # What was acknowledged by a publication or an orderly end: no later owner lacks it.
    settled: Bytes = NOTHING
    # Commits that were made while containers could write.
    running: frozenset[Commit] = frozenset()
    removed: bool = False
    # The last owner to begin has released the volume, whatever the head says.
    released: bool = True
    # Head, epochs and `released` as they were dumped; and that they were loaded.
    dump: tuple[Head, tuple[tuple[int, Epoch], ...], bool] | None = None
    loaded: bool = False
    # What the last step did that no state shows: a loss that was accepted.
    lost: bool = False

    @property
    def lineage(self) -> Lineage:
        return Lineage(dict(self.epochs))

    def content(self, commit: Commit) -> Bytes:
        return dict(self.history)[commit]


Steps = Iterator[tuple[str, World]]


class Rules(SimpleNamespace):
    """Rules, each of them the same as itself alone."""

    __hash__ = object.__hash__


REAL = Rules(
    **{**vars(copy_worth), **vars(rules)},
    unheard=votes.unheard,
    was_released=votes.was_released,
)


def mutant(**functions: Any) -> Rules:
    """Return the rules with some of them replaced."""
    return Rules(**{**vars(REAL), **functions})


@dataclass(frozen=True)
class Scope:
    """How far to go, and under which conditions."""

    nodes: int = 3
    epochs: int = 3
    writes: int = 3
    seqs: int = 3
    # Whether writers are stopped when the lease ends, and before a vote is given.
    fenced: bool = True
    accept_loss: bool = False
    removal: bool = False
    # Whether nodes become members, and cease to be.
    membership: bool = False
    # Whether a pool comes back from a backup, while another member has what it had.
    backups: bool = False
    # Whether nodes are slow; see the module's text.
    time: bool = False
    # Whether the records become older ones.
    records: bool = False
    rules: Any = REAL


def name(number: int) -> str:
    return "abc"[number]


def begin(scope: Scope) -> World:
    members = tuple(name(number) for number in range(scope.nodes))
    return World(
        nodes=(Node(),) * scope.nodes,
        head=Head(members=members),
        living=frozenset(members if scope.time else ()),
    )


def changed(world: World, number: int, **fields: Any) -> tuple[Node, ...]:
    node = world.nodes[number]._replace(**fields)
    return (*world.nodes[:number], node, *world.nodes[number + 1 :])
