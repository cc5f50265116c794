"""
What happened to volumes on this node: a bounded log in a file of its own, for people.

It decides nothing, and an event that cannot be kept stops nothing. Events outlive the
daemon, however that ends; a power failure may take the last ones, for none waits for
the disk. Commits come every few seconds: they have a bound of their own, so that they
never push out the events that tell who owned a volume. Events of a removed volume stay
until newer ones push them out.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from backends.base import Volume
from backends.errors import one_line
from backends.system import clock
from plugin.errors import StoreError
from plugin.logs import fields
from plugin.model import VolumeId, VolumeRecord
from plugin.store.database import open_cache

log = logging.getLogger(__name__)
FILE_NAME: Final = "events.db"
# The bounds for each volume, and in all; commits and other events are counted apart.
OF_VOLUME_MAX: Final = 500
IN_ALL_MAX: Final = 10_000
# The most that is asked for at once: all events of a volume.
LIMIT_MAX: Final = 2 * OF_VOLUME_MAX
# The number of events in all is checked after so many events.
_TRIM_EVERY: Final = 500
# Room for the ids of ten nodes.
_FACT_LENGTH_MAX: Final = 400
# A line of the control channel has 64 KiB.
_ANSWER_SIZE_MAX: Final = 48 * 1024
_COMMITS: Final = frozenset({"committed", "received"})
_MIGRATIONS: Final = (
    """
    CREATE TABLE events (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        volume_id TEXT NOT NULL, name TEXT NOT NULL, is_commit INTEGER NOT NULL,
        at TEXT NOT NULL, kind TEXT NOT NULL, facts TEXT NOT NULL
    );
    CREATE INDEX events_of_volume ON events (volume_id, is_commit, number);
    """,
)
_TRIM_VOLUME: Final = """
    DELETE FROM events WHERE volume_id = :volume AND is_commit = :commit
    AND number <= (
        SELECT number FROM events WHERE volume_id = :volume AND is_commit = :commit
        ORDER BY number DESC LIMIT 1 OFFSET :max
    )
"""
_TRIM_ALL: Final = """
    DELETE FROM events WHERE is_commit = :commit AND number <= (
        SELECT number FROM events WHERE is_commit = :commit
        ORDER BY number DESC LIMIT 1 OFFSET :max
    )
"""

Fact = str | int | float


class Event(msgspec.Struct, frozen=True):
    """One event, also as other nodes get it; *at* is the time on its node's clock."""

    at: Annotated[str, msgspec.Meta(pattern=r"\A[0-9-]{10}T[0-9:]{8}\.[0-9]{3}Z\Z")]
    kind: Annotated[str, msgspec.Meta(pattern=r"\A[a-z-]{1,32}\Z")]
    facts: dict[Annotated[str, msgspec.Meta(pattern=r"\A[a-z_]{1,32}\Z")], Fact]


class EventsRequest(msgspec.Struct, frozen=True):
    """What another node asks: the newest *limit* events of a volume, by its id."""

    volume: VolumeId
    limit: Annotated[int, msgspec.Meta(ge=1, le=LIMIT_MAX)]


class EventsAnswer(msgspec.Struct, frozen=True):
    """The events, the newest first; *cut*: there was no room for older ones."""

    events: list[Event]
    cut: bool = False


class Events:
    """See the module's text; threads may share it."""

    def __init__(self, state_dir: Path) -> None:
        """Open the file, a cache; see `open_cache`."""
        self._lock = threading.Lock()
        # Events are not worth a Mount's time, so they do not wait for the disk.
        self._connection = open_cache(state_dir / FILE_NAME, _MIGRATIONS)

    def add(self, volume: VolumeRecord | Volume, kind: str, **facts: Fact) -> None:
        """Keep an event of *kind*, which has just happened; leave out facts of ""."""
        kept = {key: _bounded(value) for key, value in facts.items() if value != ""}
        row = {
            "volume": volume.id,
            "name": volume.name,
            "commit": kind in _COMMITS,
            "at": clock.now_rfc3339_ms(),
            "kind": kind,
            "facts": msgspec.json.encode(kept).decode(),
        }
        with self._lock:
            try:
                with self._connection as connection:
                    connection.execute("BEGIN IMMEDIATE")
                    self._insert(row)
            except sqlite3.Error as error:
                log.warning(
                    "an event was not kept: %s", error, extra=fields(volume=volume.name)
                )

    def newest(self, volume_id: str, limit: int) -> list[Event]:
        """
        Return the newest *limit* events of a volume, the newest first.

        Raises:
            StoreError: they cannot be read.

        """
        rows = self._read(
            "SELECT at, kind, facts FROM events WHERE volume_id = ?"
            " ORDER BY number DESC LIMIT ?",
            (volume_id, limit),
        )
        return [Event(at, kind, msgspec.json.decode(facts)) for at, kind, facts in rows]

    def id_of(self, name: str) -> str | None:
        """Return the id of the volume that had *name* last, None if none is known."""
        rows = self._read(
            "SELECT volume_id FROM events WHERE name = ? ORDER BY number DESC LIMIT 1",
            (name,),
        )
        return str(rows[0][0]) if rows else None

    def answer(self, node_id: str, request: EventsRequest) -> Mapping[str, Any]:
        """Answer another node's `EventsRequest` with what a line has room for."""
        del node_id
        found = self.newest(request.volume, request.limit)
        size, fitting = 0, []
        for each in found:
            size += len(msgspec.json.encode(each)) + 1
            if size > _ANSWER_SIZE_MAX:
                break
            fitting.append(each)
        answer = EventsAnswer(fitting, cut=len(fitting) < len(found))
        return dict(msgspec.to_builtins(answer))

    def close(self) -> None:
        """Close the file; what comes later is not kept."""
        with self._lock:
            self._connection.close()

    def _insert(self, row: Mapping[str, object]) -> None:
        number = self._connection.execute(
            "INSERT INTO events (volume_id, name, is_commit, at, kind, facts)"
            " VALUES (:volume, :name, :commit, :at, :kind, :facts)",
            row,
        ).lastrowid
        bound = {"volume": row["volume"], "commit": row["commit"]}
        self._connection.execute(_TRIM_VOLUME, {**bound, "max": OF_VOLUME_MAX})
        if (number or 0) % _TRIM_EVERY == 0:
            for commit in (False, True):
                self._connection.execute(
                    _TRIM_ALL, {"commit": commit, "max": IN_ALL_MAX}
                )

    def _read(self, query: str, values: tuple[object, ...]) -> list[Any]:
        try:
            with self._lock:
                return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"the events cannot be read: {error}") from error


def _bounded(value: Fact) -> Fact:
    return one_line(value)[:_FACT_LENGTH_MAX] if isinstance(value, str) else value
