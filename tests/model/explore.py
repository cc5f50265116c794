"""Going through worlds: all of a small scope, or long random ways in a large one."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from .actions import steps
from .invariants import broken, stuck
from .world import Scope, World, begin


@dataclass(frozen=True)
class Found:
    """How far a search came, and the way to what it found."""

    states: int
    exhausted: bool
    fault: str = ""
    way: tuple[str, ...] = ()


def search(scope: Scope, *, states_max: int) -> Found:
    """Go through every world of *scope*, breadth first, at most *states_max*."""
    first = begin(scope)
    came_from: dict[World, tuple[World, str] | None] = {first: None}
    waiting = deque([first])
    while waiting:
        world = waiting.popleft()
        for step, after in steps(world, scope):
            if after in came_from:
                continue
            came_from[after] = (world, step)
            fault = broken(world, step, after, scope) or stuck(after, scope)
            if fault:
                return Found(len(came_from), False, fault, _way(came_from, after))
            waiting.append(after)
        if len(came_from) > states_max:
            return Found(len(came_from), False)
    return Found(len(came_from), True)


def wander(scope: Scope, *, seed: int, walks: int, length: int) -> Found:
    """Take *walks* random ways of at most *length* steps."""
    random_ = random.Random(seed)
    taken = 0
    for _ in range(walks):
        world, way = begin(scope), []
        for _ in range(length):
            options = list(steps(world, scope))
            if not options:
                break
            step, after = random_.choices(
                options, [_weight(each) for each, _ in options]
            )[0]
            way.append(step)
            taken += 1
            fault = broken(world, step, after, scope)
            if fault:
                return Found(taken, False, fault, tuple(way))
            world = after
        if fault := stuck(world, scope):
            return Found(taken, False, fault, tuple(way))
    return Found(taken, True)


def go(scope: Scope, way: Sequence[str]) -> Found:
    """Take the steps of *way*, as far as the rules let them be taken."""
    world = begin(scope)
    for taken, each in enumerate(way):
        after = dict(steps(world, scope)).get(each)
        if after is None:
            return Found(taken, False)
        if fault := broken(world, each, after, scope):
            return Found(taken, False, fault, tuple(way[: taken + 1]))
        world = after
    return Found(len(way), True)


def _weight(step: str) -> float:
    """Return how likely *step* is: with few disasters a way goes on for longer."""
    rare = step.startswith(("crash", "acquire", "the lease", "remove", "dump", "load"))
    return 0.15 if rare else 1.0


def _way(
    came_from: dict[World, tuple[World, str] | None], world: World
) -> tuple[str, ...]:
    way = []
    while (before := came_from[world]) is not None:
        world, step = before
        way.append(step)
    return tuple(reversed(way))
