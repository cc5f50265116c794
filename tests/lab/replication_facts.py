"""
What a campaign over replicated volumes knows when it is over.

Writers tell what they found and what was acknowledged, daemons log whose epochs began
with what and what members took, the driver notes heads, ends of sessions, and how the
copies are at rest. `replication_checker.py` judges it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .history import objects
from .writer import FILES

# Epoch and sequence.
Commit = tuple[int, int]
# Session and number.
Record = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Contents:
    """
    What a tree holds: its records by file, its pages, and how many are not whole.

    Each record is in both ``pages`` and ``mapped``.
    """

    logs: tuple[tuple[Record, ...], ...] = ((),) * FILES
    pages: tuple[Record, ...] = ()
    mapped: tuple[Record, ...] = ()
    broken: int = 0

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Contents:
        """Return what `writer.read_contents` has read."""
        logs = tuple(
            tuple(
                (session, number)
                for session, first, last in runs
                for number in range(first, last + 1, FILES)
            )
            for runs in told["logs"]
        )
        pages, mapped = (
            tuple((0, 0) if each is None else tuple(each) for each in told[file])
            for file in ("pages", "mapped")
        )
        return cls(logs, pages, mapped, told["broken"])

    def records(self) -> set[Record]:
        """Return all records, of whatever file."""
        return {each for log in self.logs for each in log}


@dataclass(frozen=True, slots=True)
class Mark:
    """The head named *commit* after record *acknowledged* had been acknowledged."""

    commit: Commit
    acknowledged: int


@dataclass(slots=True, kw_only=True)
class Session:
    """
    A mount in which a writer wrote.

    ``released`` is the commit that the head named when the volume was let go orderly:
    the writer had ended by itself, then came the Unmount.
    """

    number: int
    volume: str
    node: str
    epoch: int
    found: Contents = field(default_factory=Contents)
    acknowledged: int = 0
    released: Commit | None = None
    marks: list[Mark] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Begun:
    """An epoch as its owner began it; ``lost`` is the newer commit that it gave up."""

    volume: str
    epoch: int
    owner: str
    base: Commit
    lost: Commit | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """A commit that *member* took from *sender*, as line *line* of its log says."""

    volume: str
    member: str
    commit: Commit
    sender: str
    line: int


@dataclass(frozen=True, slots=True)
class Promised:
    """*member* promised *epoch*, and was at *commit*; see line *line* of its log."""

    volume: str
    member: str
    epoch: int
    commit: Commit
    line: int


# Mode, owner, group, time and size; on the disk a digest of the contents as well.
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """What a node has of a volume at rest."""

    volume: str
    node: str
    commit: Commit
    live_epoch: int
    contents: Contents
    entries: Mapping[str, Row]
    manifest_commit: Commit
    manifest: Mapping[str, Row]
    quarantine: Mapping[str, Contents] = field(default_factory=dict)

    @classmethod
    def of(cls, volume: str, node: str, told: str) -> Copy:
        """Return what `writer.look` has printed on *node*."""
        known = json.loads(told)
        replica = known["replica"]
        return cls(
            volume=volume,
            node=node,
            commit=pair(replica.get("commit", (0, 0))),
            live_epoch=replica.get("live_epoch", 0),
            contents=Contents.of(known["contents"]),
            entries={path: tuple(row) for path, row in known["entries"].items()},
            manifest_commit=pair(known["manifest"]["commit"]),
            manifest={
                path: tuple(row) for path, row in known["manifest"]["entries"].items()
            },
            quarantine={
                name: Contents.of(each) for name, each in known["quarantine"].items()
            },
        )


@dataclass(frozen=True, slots=True)
class Head:
    """What the store says of a volume at rest, in nodes' names."""

    commit: Commit
    holders: tuple[str, ...]


@dataclass(slots=True)
class Facts:
    """All of it; sessions in the order of their mounts."""

    sessions: list[Session] = field(default_factory=list)
    begun: list[Begun] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    promised: list[Promised] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    heads: dict[str, Head] = field(default_factory=dict)

    def volumes(self) -> list[str]:
        """Return the volumes that were written to."""
        return sorted({each.volume for each in self.sessions})

    def sessions_of(self, volume: str) -> list[Session]:
        """Return the sessions of *volume*, in order."""
        return [each for each in self.sessions if each.volume == volume]

    def copies_of(self, volume: str) -> list[Copy]:
        """Return the copies of *volume*."""
        return [each for each in self.copies if each.volume == volume]

    def read_daemon(self, node: str, log: str, volumes: Iterable[str]) -> None:
        """Add what the daemon of *node* has logged of *volumes*."""
        wanted = set(volumes)
        for at, line in enumerate(objects(log)):
            volume = line.get("volume")
            if volume not in wanted:
                continue
            event = line.get("event")
            if event == "owned":
                lost = commit_of(line["lost"]) if line["lost"] else None
                base = commit_of(line["base"])
                epoch = int(line["epoch"])
                self.begun.append(Begun(volume, epoch, line["node"], base, lost))
            elif event == "received":
                commit = commit_of(line["commit"])
                sender = line["sender"]
                self.received.append(Received(volume, node, commit, sender, at))
            elif event == "promised":
                commit = commit_of(line["commit"])
                epoch = int(line["epoch"])
                self.promised.append(Promised(volume, node, epoch, commit, at))


def read_writer(session: Session, log: str) -> bool:
    """Fill *session* from its writer's lines; return whether it found anything out."""
    told = False
    for line in objects(log):
        if "found" in line:
            session.found = Contents.of(line["found"])
            told = True
        session.acknowledged = line.get("acknowledged", session.acknowledged)
    return told


def commit_of(text: str) -> Commit:
    """Return the commit that is written as `7.12`."""
    epoch, _, seq = text.partition(".")
    return int(epoch), int(seq)


def pair(numbers: Iterable[int]) -> Commit:
    """Return two numbers as a commit."""
    epoch, seq = numbers
    return epoch, seq
