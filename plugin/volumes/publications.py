"""
Publications: a volume at a path that a scheduler has named (CSI), and for whom.

A path holds its volume once, however often it is asked for: a kubelet that was started
anew publishes again what is published. So there is nothing to count, and each is in
force until it is taken back, or the kernel proves that nobody has the volume. A young
one is believed without a proof: its path may be about to be bound.

A reboot ends every one of them.
"""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import msgspec

from backends.base import LineText
from backends.system import clock
from backends.system.decoding import from_json
from plugin.errors import PublishedOtherwiseError, RecordsError
from plugin.model import VolumeId

MIGRATION: Final = """
    CREATE TABLE publications (
        target TEXT PRIMARY KEY, boot_id TEXT NOT NULL, value BLOB NOT NULL
    ) WITHOUT ROWID;
"""


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """
    Volume *volume_id* at *target*, which really is *path*, a place below *root*.

    ``mode`` is the number of CSI's access mode; ``user`` tells for whom it is.
    """

    target: LineText
    path: LineText
    root: LineText
    volume_id: VolumeId
    mode: int
    read_only: bool
    user: Mapping[str, LineText] = {}

    def shown(self) -> dict[str, object]:
        """Return what people are to see of it."""
        how = "read-only" if self.read_only else "read-write"
        return {"target": self.target, "access": how, **self.user}


class Publications:
    """All of this node's boot, in memory and durably in the *connection*'s table."""

    def __init__(
        self, connection: sqlite3.Connection, lock: threading.Lock, *, boot_id: str
    ) -> None:
        """Read those of boot *boot_id*; whoever uses the connection holds *lock*."""
        self._connection = connection
        self._lock = lock
        self._boot_id = boot_id
        self._all: dict[str, Publication] = {}
        # The same by volume, of which there may be many.
        self._of: dict[str, dict[str, Publication]] = {}
        self._since_s: dict[str, float] = {}
        for (value,) in connection.execute(
            "SELECT value FROM publications WHERE boot_id = ?", (boot_id,)
        ):
            try:
                self._know(from_json(value, Publication))
            except msgspec.MsgspecError:
                continue  # its volume stays mounted until nobody has it

    def at(self, target: str) -> Publication | None:
        """Return what is published at *target*."""
        return self._all.get(target)

    def of(self, volume_id: str) -> list[Publication]:
        """Return those of a volume."""
        return [*self._of.get(volume_id, {}).values()]

    def volumes(self) -> set[str]:
        """Return the ids of the volumes that are published."""
        return {*self._of}

    def paths(self, volume_id: str) -> list[str]:
        """Return the paths that show the volume by our own doing."""
        return sorted(each.path for each in self.of(volume_id))

    def age_s(self, volume_id: str) -> float:
        """Return how long ago this process has published the volume last."""
        targets = [each.target for each in self.of(volume_id)]
        since_s = [self._since_s[each] for each in targets if each in self._since_s]
        return clock.boottime_s() - max(since_s, default=-math.inf)

    def put(self, publication: Publication) -> None:
        """
        Keep *publication*, durably.

        Raises:
            PublishedOtherwiseError: another one is at its path: it came meanwhile.
            RecordsError: it cannot be kept.

        """
        value = msgspec.json.encode(publication)
        with self._lock:
            if any(each.path == publication.path for each in self._all.values()):
                raise PublishedOtherwiseError(
                    f"{publication.target} shows another volume"
                )
            with self._durably() as connection:
                connection.execute(
                    "DELETE FROM publications WHERE boot_id != ?", (self._boot_id,)
                )
                connection.execute(
                    "INSERT OR REPLACE INTO publications VALUES (?, ?, ?)",
                    (publication.target, self._boot_id, value),
                )
            self._know(publication)
            self._since_s[publication.target] = clock.boottime_s()

    def drop(self, target: str) -> None:
        """Forget what is published at *target*, durably; nothing there is success."""
        with self._lock:
            if target not in self._all:
                return
            with self._durably() as connection:
                connection.execute(
                    "DELETE FROM publications WHERE target = ?", (target,)
                )
            gone = self._all.pop(target)
            left = self._of[gone.volume_id]
            del left[target]
            if not left:
                del self._of[gone.volume_id]
            self._since_s.pop(target, None)

    def _know(self, publication: Publication) -> None:
        self._all[publication.target] = publication
        self._of.setdefault(publication.volume_id, {})[publication.target] = publication

    @contextmanager
    def _durably(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._connection as connection:
                connection.execute("BEGIN IMMEDIATE")
                yield connection
        except sqlite3.Error as error:
            raise RecordsError(f"cannot record a publication: {error}") from error
