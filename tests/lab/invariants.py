"""
The judge of a cluster's history: what must never have happened.

A rule is a function from a history to what breaks it. What cannot be known is not held
against anybody: an answer that was never seen, a call that was under way when the power
failed. Clocks of two nodes are compared with an allowance, `SKEW_S`; those of one boot
are one clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from .history import ENDING, OWNING, Attempt, Event, History

# A node's clock is read through a serial line, until that takes less than half of this.
SKEW_S: Final = 0.3
# After these a daemon cannot say that it has lost its lease. One that is only cut off
# can, and has to before anybody else may own its volumes.
SILENCING: Final = frozenset({"power", "daemon-freeze", "daemon-kill"})
POWER: Final = "power"
FOREVER_S: Final = float("inf")

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that was broken, and by what."""

    rule: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Use:
    """From the answer to a Mount until its Unmount was sent, or the node went off."""

    mount: Attempt
    start_s: float
    end_s: float


def violations(history: History) -> list[Violation]:
    """Return everything in *history* that must not be."""
    return [
        Violation(rule.__name__, evidence)
        for rule in RULES
        for evidence in rule(history)
    ]


def an_epoch_has_one_owner(history: History) -> Iterator[str]:
    """Yield epochs that were owned twice, or regained by another than their owner."""
    for (_, epoch), events in _by_epoch(history).items():
        owners = {(each.node, each.boot) for each in events}
        first = [each for each in events if each.kind == "owned"]
        if len(owners) > 1 or len(first) > 1:
            yield f"epoch {epoch}: {events}"


def nothing_is_owned_past_the_deadline(history: History) -> Iterator[str]:
    """Yield ownership that began when the lease could not be relied on any more."""
    for each in history.events:
        if each.kind in OWNING and (
            each.deadline_s is None or each.at_s >= each.deadline_s
        ):
            yield str(each)


def epochs_only_rise(history: History) -> Iterator[str]:
    """Yield what was owned below an epoch that had been owned before, by anybody."""
    for events in _grouped(history.events, lambda each: (each.volume_id, each.node)):
        highest = -1
        for each in events:
            lowest = {"owned": highest + 1, "regained": highest}
            if each.epoch < lowest.get(each.kind, 0):
                yield f"{each.node} had already epoch {highest}: {each}"
            highest = max(highest, each.epoch)
    owning = [each for each in history.events if each.kind in OWNING]
    for events in _grouped(owning, lambda each: each.volume_id):
        in_time = sorted(events, key=lambda each: each.at_s)
        earlier = 0
        before = in_time[0]
        for each in in_time:
            while in_time[earlier].at_s + SKEW_S < each.at_s:
                before = max(before, in_time[earlier], key=lambda one: one.epoch)
                earlier += 1
            if earlier and before.epoch > each.epoch:
                yield f"{each} came after {before}"


def what_is_mounted_is_owned(history: History) -> Iterator[str]:
    """Yield Mounts that succeeded at no moment of which their node owned the volume."""
    spans = {
        (events[0].node, events[0].boot, events[0].volume): list(_spans(events))
        for events in _grouped(
            history.events, lambda each: (each.node, each.boot, each.volume)
        )
    }
    for mount in history.mounts():
        known = spans.get((mount.node, mount.boot, mount.volume), [])
        assert mount.end_s is not None
        if not any(
            start_s <= mount.end_s and mount.start_s <= end_s
            for start_s, end_s in known
        ):
            yield f"{mount}, owned {known}"


def two_nodes_use_a_volume_only_after_a_loss(history: History) -> Iterator[str]:
    """Yield uses that overlap although the first node was well and had lost nothing."""
    for uses in _grouped(list(_uses(history)), lambda each: each.mount.volume):
        open_uses: list[Use] = []
        for use in sorted(uses, key=lambda each: each.start_s):
            open_uses = [
                each for each in open_uses if use.start_s < each.end_s - SKEW_S
            ]
            for first in open_uses:
                if first.mount.node != use.mount.node and not _excused(
                    history, first, use
                ):
                    yield f"{first.mount} still in use at {use.mount}"
            if use.start_s < use.end_s - SKEW_S:
                open_uses.append(use)


def nothing_in_use_is_released(history: History) -> Iterator[str]:
    """Yield releases of a volume that a client of the same boot had mounted."""
    released = {
        (events[0].node, events[0].boot, events[0].volume): events
        for events in _grouped(
            [each for each in history.events if each.kind == "released"],
            lambda each: (each.node, each.boot, each.volume),
        )
    }
    for use in _uses(history):
        mount = use.mount
        for each in released.get((mount.node, mount.boot, mount.volume), []):
            if use.start_s < each.at_s < use.end_s and not _lost(
                history, use, before_s=each.at_s
            ):
                yield f"{each} while in use: {mount}"


RULES: Final[Sequence[Callable[[History], Iterator[str]]]] = (
    an_epoch_has_one_owner,
    nothing_is_owned_past_the_deadline,
    epochs_only_rise,
    what_is_mounted_is_owned,
    two_nodes_use_a_volume_only_after_a_loss,
    nothing_in_use_is_released,
)


def _by_epoch(history: History) -> dict[tuple[str, int], list[Event]]:
    owning = [each for each in history.events if each.kind in OWNING]
    return {
        (events[0].volume_id, events[0].epoch): events
        for events in _grouped(owning, lambda each: (each.volume_id, each.epoch))
    }


def _spans(events: Sequence[Event]) -> Iterator[tuple[float, float]]:
    """Yield from when until when the boot of *events* owned their volume."""
    start_s: float | None = None
    for each in events:
        if each.kind in OWNING:
            start_s = each.at_s if start_s is None else start_s
        elif each.kind in ENDING and start_s is not None:
            yield start_s, each.at_s
            start_s = None
    if start_s is not None:
        yield start_s, FOREVER_S


def _uses(history: History) -> Iterator[Use]:
    unmounts: dict[tuple[str, ...], float] = {}
    for each in history.attempts:
        if each.kind == "unmount":
            key = (each.node, each.boot, each.volume, each.mount_id)
            unmounts.setdefault(key, each.start_s)
    for mount in history.mounts():
        assert mount.end_s is not None
        ends_s = [
            each.start_s
            for each in history.faults
            if each.kind == POWER
            and each.node == mount.node
            and each.start_s >= mount.end_s
        ]
        key = (mount.node, mount.boot, mount.volume, mount.mount_id)
        ends_s.append(unmounts.get(key, FOREVER_S))
        yield Use(mount, mount.end_s, min(ends_s))


def _excused(history: History, first: Use, second: Use) -> bool:
    """Return whether *first* was lost before *second* began, or they began as one."""
    if _lost(history, first, before_s=second.start_s):
        return True
    together = second.start_s - first.start_s <= SKEW_S
    return together and _lost(history, second, before_s=first.start_s)


def _lost(history: History, use: Use, *, before_s: float) -> bool:
    """Return whether the node of *use* lost the volume, or could not say so."""
    mount = use.mount
    said = any(
        each.kind == "lost"
        and (each.node, each.boot, each.volume)
        == (mount.node, mount.boot, mount.volume)
        and mount.start_s <= each.at_s <= before_s + SKEW_S
        for each in history.events
    )
    return said or any(
        each.kind in SILENCING
        and each.node == mount.node
        and each.start_s <= before_s
        and (each.end_s is None or each.end_s >= mount.start_s)
        for each in history.faults
    )


def _grouped(
    items: Sequence[Item], key: Callable[[Item], object]
) -> Iterator[list[Item]]:
    """Yield the *items* of each *key*, in their order."""
    groups: dict[object, list[Item]] = {}
    for each in items:
        groups.setdefault(key(each), []).append(each)
    yield from groups.values()
