"""
Transfers under way: how far each is, and what all of them have carried so far.

What a transfer has *done* is counted in bytes of files, as people know them. What it
has *carried* is counted in bytes on the line: fewer, where only differences are sent.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from backends.system.clock import monotonic_s, now_rfc3339
from plugin.replication.pauses import PauseFacts, Pauses

Direction = Literal["sending", "receiving"]

# "  65536  12%  1.20MB/s  0:00:03 (xfr#4, to-chk=…". Source: rsync(1), progress2.
_LINE: Final = re.compile(
    r"\s*([0-9]{1,18})\s+([0-9]{1,3})%\s+([0-9]{1,9}\.[0-9]{2})([kMG])B/s\s"
    r"[^(]*(?:\(xfr#([0-9]{1,12}),)?"
)
_UNIT: Final = {"k": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True, slots=True)
class Done:
    """How far a transfer is; ``total_bytes`` is 0 if it is not known."""

    done_bytes: int = 0
    total_bytes: int = 0
    files: int = 0
    rate_bytes_s: float = 0.0


class TransferFacts(msgspec.Struct, frozen=True):
    """A transfer as people are shown it; *node* is the other node's name."""

    node: str
    direction: Direction
    began_at: str
    files: int
    done_bytes: int
    total_bytes: int
    percent: int | None
    left_s: int | None


class GroupFacts(msgspec.Struct, frozen=True):
    """
    The volumes of a volume's group, by name, as people are shown them.

    The newest commits that are kept of those ``together`` are of one moment with this
    one's; ``apart`` says why others' are not.
    """

    name: str
    together: list[str]
    apart: dict[str, str]


class CopyFacts(msgspec.Struct, frozen=True):
    """
    How far a volume's copies are, as people are shown it.

    ``behind`` says, by the names of nodes, why they lack the newest commit; ``slowed``
    why there are fewer of them than `interval` asks for, "" if that is not so.
    ``pauses`` are those of the containers here, for commits of one moment.
    """

    transfers: list[TransferFacts] = []
    behind: dict[str, str] = {}
    slowed: str = ""
    pauses: PauseFacts = PauseFacts()
    group: GroupFacts | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class TransferUnderWay:
    """A transfer under way; *node_id* is the other node."""

    volume_id: str
    node_id: str
    direction: Direction
    began_at: str
    began_s: float
    done: Done = Done()

    def percent(self) -> int | None:
        """Return how much of it is done, None if that is not known."""
        done = self.done
        if not done.total_bytes:
            return None
        return min(100, 100 * done.done_bytes // done.total_bytes)

    def left_s(self) -> int | None:
        """Return an estimate of the seconds that it will take, None without one."""
        done = self.done
        if not done.total_bytes or not done.rate_bytes_s:
            return None
        left_bytes = max(0, done.total_bytes - done.done_bytes)
        return round(left_bytes / done.rate_bytes_s)

    def facts(self, node: str) -> TransferFacts:
        """Return it for people; *node* is the other node's name."""
        done = self.done
        return TransferFacts(
            node,
            self.direction,
            self.began_at,
            done.files,
            done.done_bytes,
            done.total_bytes,
            self.percent(),
            self.left_s(),
        )


@dataclass(frozen=True, slots=True)
class Carried:
    """What has been carried in one direction since the daemon's start."""

    size_bytes: int = 0
    commits: int = 0


class Progress:
    """The transfers of this node; threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._transfers: dict[int, TransferUnderWay] = {}
        self._carried: dict[Direction, Carried] = {
            "sending": Carried(),
            "receiving": Carried(),
        }
        self._synced_s: dict[str, float] = {}
        # By volume and node, why it lacks the newest commit.
        self._behind: dict[str, dict[str, str]] = {}
        # By volume, why its last round could not be made at all.
        self._failures: dict[str, str] = {}
        # By volume, how long its large files were read in the last round.
        self._reading_s: dict[str, float] = {}

        self.pauses = Pauses()

    def begin(
        self, direction: Direction, volume_id: str, node_id: str, total_bytes: int = 0
    ) -> int:
        """Return the number of a transfer that begins; `end` has to be called."""
        transfer = TransferUnderWay(
            volume_id,
            node_id,
            direction,
            now_rfc3339(),
            monotonic_s(),
            Done(total_bytes=total_bytes),
        )
        with self._lock:
            number = next(self._numbers)
            self._transfers[number] = transfer
        return number

    def note_line(self, number: int, line: str) -> int:
        """Return the bytes done as rsync's *line* tells it, 0 if it is no progress."""
        match = _LINE.match(line)
        if match is None:
            return 0
        done_bytes, percent = int(match[1]), int(match[2])
        rate = float(match[3]) * _UNIT[match[4]]
        with self._lock:
            transfer = self._transfers.get(number)
            if transfer is None:
                return done_bytes
            total = transfer.done.total_bytes
            if not total and percent:
                total = done_bytes * 100 // percent
            files = int(match[5]) if match[5] else transfer.done.files
            done = Done(done_bytes, max(total, done_bytes), files, rate)
            self._transfers[number] = replace(transfer, done=done)
        return done_bytes

    def note_received(self, volume_id: str, node_id: str, done: Done) -> None:
        """Take note of how far a sender says that it is."""
        with self._lock:
            for number, each in self._transfers.items():
                if (each.direction, each.volume_id, each.node_id) == (
                    "receiving",
                    volume_id,
                    node_id,
                ):
                    self._transfers[number] = replace(each, done=done)

    def end(self, number: int) -> None:
        """Forget a transfer that has ended; it is no error to do so twice."""
        with self._lock:
            self._transfers.pop(number, None)

    def count(
        self, direction: Direction, *, size_bytes: int = 0, commits: int = 0
    ) -> None:
        """Add what has been carried."""
        with self._lock:
            before = self._carried[direction]
            self._carried[direction] = Carried(
                before.size_bytes + size_bytes, before.commits + commits
            )

    def synced(self, volume_id: str) -> None:
        """Take note that another node has the newest commit of a volume, now."""
        with self._lock:
            self._synced_s[volume_id] = monotonic_s()

    def forget(self, volume_id: str) -> None:
        """Forget when a volume was last synced: it is let go."""
        with self._lock:
            self._synced_s.pop(volume_id, None)

    def synced_before_s(self, volume_id: str) -> float | None:
        """Return how long ago a volume was synced, None if never."""
        with self._lock:
            at_s = self._synced_s.get(volume_id)
        return None if at_s is None else monotonic_s() - at_s

    def note_round(
        self, volume_id: str, *, holders: Collection[str], faults: Mapping[str, str]
    ) -> None:
        """Take note that *holders* have a commit, and why other nodes could not."""
        with self._lock:
            before = self._behind.get(volume_id, {})
            kept = {k: why for k, why in before.items() if k not in holders}
            self._behind[volume_id] = {**kept, **faults}

    def note_failure(self, volume_id: str, why: str) -> str:
        """Take note why a round was not made, "" if it was; return what was before."""
        with self._lock:
            before = self._failures.pop(volume_id, "")
            if why:
                self._failures[volume_id] = why
        return before

    def failure(self, volume_id: str) -> str:
        """Return why the last round was not made, "" if it was."""
        with self._lock:
            return self._failures.get(volume_id, "")

    def note_reading(self, volume_id: str, reading_s: float) -> None:
        """Take note how long large files were read to find what has changed."""
        with self._lock:
            self._reading_s.pop(volume_id, None)
            if reading_s:
                self._reading_s[volume_id] = reading_s

    def reading_s(self, volume_id: str) -> float:
        """Return how long large files were read in the last round."""
        with self._lock:
            return self._reading_s.get(volume_id, 0.0)

    def keep_faults(self, volume_ids: Collection[str]) -> None:
        """Forget why nodes lack commits of other volumes than these."""
        with self._lock:
            self._behind = {k: v for k, v in self._behind.items() if k in volume_ids}
            kept = {k: v for k, v in self._failures.items() if k in volume_ids}
            self._failures = kept
            read = {k: v for k, v in self._reading_s.items() if k in volume_ids}
            self._reading_s = read
        self.pauses.keep_only(volume_ids)

    def behind(self, volume_id: str) -> dict[str, str]:
        """Return why nodes lack the newest commit, as far as this node has met it."""
        with self._lock:
            return dict(self._behind.get(volume_id, {}))

    def under_way(self, volume_id: str = "") -> list[TransferUnderWay]:
        """Return the transfers of a volume, or all, the oldest first."""
        with self._lock:
            return [
                each
                for _, each in sorted(self._transfers.items())
                if volume_id in ("", each.volume_id)
            ]

    def carried(self, direction: Direction) -> Carried:
        """Return what has been carried in *direction*."""
        with self._lock:
            return self._carried[direction]

    def receiving_percent(self, volume_id: str) -> int | None:
        """Return how much of a volume has come, None if that is not known."""
        for each in reversed(self.under_way(volume_id)):
            if each.direction == "receiving":
                return each.percent()
        return None
