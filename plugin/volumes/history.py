"""
Who owned a volume when, and what happened to it: for people, after the fact.

The *history* is the cluster's: one row for each epoch that was begun, from the store.
The *events* are each node's own; the other nodes are asked for theirs. Times are of
each node's own clock, so the order between nodes is only as right as their clocks are.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import msgspec

from backends.errors import InvalidRequestError, RemoraError, one_line
from backends.system.decoding import from_objects
from plugin.errors import VolumeNotFoundError
from plugin.events.log import LIMIT_MAX, Event, Events, EventsAnswer
from plugin.ownership.heads import VolumeState
from plugin.ownership.state import Epoch, Head, Lineage
from plugin.ownership.view import OwnershipView
from plugin.ownership.votes import AsksAll
from plugin.volumes.views import VolumeViews

_ASK_DEADLINE_S: Final = 3.0
Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class VolumeHistory:
    """The use cases; without *asks* the node is alone."""

    views: VolumeViews
    ownership: OwnershipView
    event_log: Events
    asks: AsksAll | None

    def epochs(self, name: str) -> dict[str, Any]:
        """
        Return the epochs of volume *name* that were begun, the first one first.

        Raises:
            VolumeNotFoundError: there is none.

        """
        record = self.views.existing(name).record
        heads = self.ownership.heads
        state = heads.read(record.id)
        return {
            "volume": record.name,
            "id": record.id,
            **_present(state, self.ownership.name_of),
            "epochs": epoch_rows(
                state.head or Head(),
                heads.lineage(record.id),
                self.ownership.name_of,
            ),
        }

    def events(self, name: str, limit: int) -> dict[str, Any]:
        """
        Return the newest *limit* events of all nodes, the first one first.

        A removed volume is found by the events that this node still has of it.

        Raises:
            VolumeNotFoundError: there is none, and was none here.
            InvalidRequestError: *limit* is out of bounds.

        """
        if not 1 <= limit <= LIMIT_MAX:
            raise InvalidRequestError(
                f"{limit} is no number of events", hint=f"1 to {LIMIT_MAX}"
            )
        volume_id = self._id_of(name)
        own = self.ownership.own
        parts = {
            own.name: EventsAnswer(self.event_log.newest(volume_id, limit)),
        }
        silent: list[dict[str, str]] = []
        for node_id, answer in self._ask(volume_id, limit).items():
            node = self.ownership.name_of(node_id)
            if isinstance(answer, RemoraError):
                silent.append({"node": node, "cause": answer.cause})
            else:
                parts[node] = answer
        return {
            "volume": name,
            "id": volume_id,
            "events": [self._named(each) for each in merged(parts, limit)],
            "silent": silent,
            "cut": sorted(node for node, part in parts.items() if part.cut),
        }

    def _id_of(self, name: str) -> str:
        try:
            return self.views.existing(name).record.id
        except VolumeNotFoundError:
            volume_id = self.event_log.id_of(name)
            if volume_id is None:
                raise
            return volume_id

    def _ask(self, volume_id: str, limit: int) -> dict[str, EventsAnswer | RemoraError]:
        """Return the answers of the other nodes that had a part in it, by node id."""
        if self.asks is None:
            return {}
        views = {each.record.id: each for each in self.ownership.nodes.all()}
        others = self._others(volume_id, views)
        living = [each for each in others if each in views and views[each].alive]
        answers: dict[str, EventsAnswer | RemoraError] = {
            each: RemoraError(
                "its daemon does not run"
                if each in views
                else "the cluster has no such node any more"
            )
            for each in others
            if each not in living
        }
        request = {"volume": volume_id, "limit": limit}
        told = self.asks.call_all(living, "events", request, deadline_s=_ASK_DEADLINE_S)
        for node_id, answer in told.items():
            answers[node_id] = (
                answer if isinstance(answer, RemoraError) else _checked(answer, limit)
            )
        return answers

    def _others(self, volume_id: str, known: Collection[str]) -> list[str]:
        """Return the nodes that may know of the volume; all, if it was removed."""
        heads = self.ownership.heads
        head = heads.read(volume_id).head
        found = (
            {*head.members, *heads.lineage(volume_id).owners()} if head else {*known}
        )
        return sorted(found - {self.ownership.node_id})

    def _named(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return *row* with the names of nodes in place of their ids."""
        facts = {
            key: ", ".join(map(self.ownership.name_of, value.split(",")))
            if key in ("holders", "sender")
            else value
            for key, value in row["facts"].items()
        }
        return {**row, "facts": facts}


def epoch_rows(head: Head, lineage: Lineage, name_of: Callable[[str], str]) -> Rows:
    """
    Return a row for each epoch of *lineage*, which may have been read after *head*.

    ``ended``: owned (it goes on), released, not-released (its owner died or was cut
    off), unknown (an older version noted nothing).
    """
    numbers = sorted(each for each in lineage.epochs if each <= head.epoch)
    rows = []
    for number, following in pairwise([*numbers, 0]):
        epoch = lineage.epochs[number]
        successor = lineage.epochs[following] if following else None
        ended, released_at = _end(head, number, epoch, successor)
        rows.append(
            {
                "epoch": number,
                "owner": name_of(epoch.owner),
                "began_at": epoch.began_at,
                "base": str(epoch.base),
                "lost": str(epoch.lost) if epoch.lost else "",
                "ended": ended,
                "released_at": released_at,
            }
        )
    return rows


def _end(
    head: Head, number: int, epoch: Epoch, successor: Epoch | None
) -> tuple[str, str]:
    """Return how an epoch ended, and when it was released."""
    if successor is None and (head.epoch, head.phase) == (number, "owned"):
        return "owned", ""
    released_at = successor.before_released_at if successor else head.released_at
    if released_at:
        return "released", released_at
    # A version that notes when an epoch begins also notes a release.
    noted = epoch.began_at and (successor is None or successor.began_at)
    return ("not-released" if noted else "unknown"), ""


def _present(state: VolumeState, name_of: Callable[[str], str]) -> dict[str, Any]:
    """Return the volume state, for people."""
    head = state.head or Head()
    return {
        "ownership": head.phase,
        "owner": name_of(head.owner) if head.phase in ("recovering", "owned") else "",
        "epoch": head.epoch,
        "commit": str(head.committed),
        "locked": state.lock is not None,
    }


def merged(parts: Mapping[str, EventsAnswer], limit: int) -> Rows:
    """
    Return the newest *limit* events of all *parts*, by node name, the first one first.

    If a node's answer was cut, older events of the others are left out as well: it
    would look as if nothing had happened on that node then.
    """
    since = max((part.events[-1].at for part in parts.values() if part.cut), default="")
    newest = heapq.merge(
        *(
            [(each.at, node, each) for each in part.events]
            for node, part in parts.items()
        ),
        key=lambda row: row[0],
        reverse=True,
    )
    rows = [
        {"at": at, "node": node, "kind": event.kind, "facts": event.facts}
        for at, node, event in newest
        if at >= since
    ]
    return rows[:limit][::-1]


def _checked(answer: Mapping[str, Any], limit: int) -> EventsAnswer | RemoraError:
    """Return another node's *answer*, safe to be shown, or the error in it."""
    try:
        told = from_objects(answer, EventsAnswer)
    except msgspec.ValidationError as error:
        return RemoraError(f"its answer cannot be read: {error}")
    events: Sequence[Event] = [
        msgspec.structs.replace(
            each,
            facts={
                key: one_line(value) if isinstance(value, str) else value
                for key, value in each.facts.items()
            },
        )
        for each in told.events[:limit]
    ]
    return EventsAnswer(list(events), cut=told.cut and bool(events))
