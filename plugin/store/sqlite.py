"""The store of a single node: an SQLite file next to the daemon, no server."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from backends.system import clock
from plugin.errors import StoreError
from plugin.limits import WATCH_HISTORY_MAX
from plugin.store.base import (
    CompactedError,
    Compare,
    Event,
    Operation,
    Outcome,
    Put,
    Record,
)
from plugin.store.database import connect, open_database

_MIGRATIONS: Final = (
    """
    CREATE TABLE revision (current INTEGER NOT NULL, compacted INTEGER NOT NULL);
    INSERT INTO revision VALUES (0, 0);
    CREATE TABLE records (
        key TEXT PRIMARY KEY, value BLOB NOT NULL, create_revision INTEGER NOT NULL,
        mod_revision INTEGER NOT NULL, lease INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE history (
        revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB,
        create_revision INTEGER NOT NULL, lease INTEGER NOT NULL,
        PRIMARY KEY (revision, key)
    ) WITHOUT ROWID;
    CREATE TABLE leases (
        id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_s REAL NOT NULL,
        ends_s REAL NOT NULL, boot_id TEXT NOT NULL
    );
    """,
)
_COLUMNS: Final = "key, value, create_revision, mod_revision, lease"
# History is trimmed when it is this much too long, not at every write.
_TRIM_SLACK: Final = 1_000


class SqliteStore:
    """
    The `Store` in one file.

    One connection writes and another reads, so that a read never waits for a write's
    fsync. Leases count CLOCK_BOOTTIME within one boot; a reboot ends them all.
    """

    def __init__(self, path: Path) -> None:
        self._writer = open_database(path, _MIGRATIONS)
        self._reader = connect(path)
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._changed = threading.Condition()
        self._generation = 0
        self._boot_id = clock.boot_id()
        self._closed = False

    def get(self, key: str) -> Record | None:
        """Return the record of *key*; see `Store.get`."""
        self._expire_leases()
        rows = self._read(f"SELECT {_COLUMNS} FROM records WHERE key = ?", key)
        return Record(*rows[0]) if rows else None

    def prefix(self, prefix: str) -> tuple[list[Record], int]:
        """Return the records below *prefix*; see `Store.prefix`."""
        self._expire_leases()
        with self._reading() as connection:
            connection.execute("BEGIN")  # both reads see one state
            try:
                rows = connection.execute(
                    f"SELECT {_COLUMNS} FROM records WHERE key >= ? AND key < ?"
                    " ORDER BY key",
                    (prefix, _after(prefix)),
                ).fetchall()
                revision = _revision(connection)
            finally:
                connection.execute("COMMIT")
        return [Record(*row) for row in rows], revision

    def refresh(self, deadline_s: float) -> None:
        """Do nothing: on one node local knowledge is all there is."""

    def transact(
        self, conditions: Sequence[Compare], operations: Sequence[Operation]
    ) -> Outcome:
        """Do *operations* if *conditions* hold; see `Store.transact`."""
        self._expire_leases()
        with self._writing() as connection:
            for condition in conditions:
                row = connection.execute(
                    "SELECT mod_revision FROM records WHERE key = ?", (condition.key,)
                ).fetchone()
                if (row[0] if row else 0) != condition.mod_revision:
                    return Outcome(False, _revision(connection))
            revision = self._apply(connection, operations)
        self._announce()
        return Outcome(True, revision)

    def grant_lease(self, ttl_s: float) -> int:
        """Return a new lease; see `Store.grant_lease`."""
        with self._writing() as connection:
            row = connection.execute(
                "INSERT INTO leases (ttl_s, ends_s, boot_id) VALUES (?, ?, ?)"
                " RETURNING id",
                (ttl_s, clock.boottime_s() + ttl_s, self._boot_id),
            ).fetchone()
        return int(row[0])

    def keep_alive(self, lease: int) -> bool:
        """Renew *lease*; see `Store.keep_alive`."""
        self._expire_leases()
        with self._writing() as connection:
            return bool(
                connection.execute(
                    "UPDATE leases SET ends_s = ? + ttl_s WHERE id = ?",
                    (clock.boottime_s(), lease),
                ).rowcount
            )

    def revoke_lease(self, lease: int) -> None:
        """End *lease*; see `Store.revoke_lease`."""
        with self._writing() as connection:
            self._end_lease(connection, lease)
        self._announce()

    def watch(self, prefix: str, *, after_revision: int) -> SqliteWatch:
        """Return the changes below *prefix*; see `Store.watch`."""
        return SqliteWatch(self, prefix, after_revision)

    def close(self) -> None:
        """Close the file; waiting watches end."""
        with self._write_lock, self._read_lock:
            self._closed = True
            self._reader.close()
            self._writer.close()
        self._announce()

    def changes(self, prefix: str, after_revision: int) -> tuple[list[Event], int]:
        """Return the history below *prefix* and the revision that it reaches."""
        self._expire_leases()
        with self._reading() as connection:
            connection.execute("BEGIN")
            try:
                current, compacted = connection.execute(
                    "SELECT current, compacted FROM revision"
                ).fetchone()
                rows = connection.execute(
                    "SELECT key, revision, value, create_revision, lease FROM history"
                    " WHERE revision > ? AND key >= ? AND key < ?"
                    " ORDER BY revision, key",
                    (after_revision, prefix, _after(prefix)),
                ).fetchall()
            finally:
                connection.execute("COMMIT")
        if after_revision < compacted:
            raise CompactedError(f"revisions up to {compacted} are no longer kept")
        return [_event(*row) for row in rows], current

    def generation(self) -> int:
        """Return a number that grows with every change made by this process."""
        return self._generation

    def wait_for_change(self, generation: int, timeout_s: float) -> None:
        """Return when there is a newer *generation*, a lease ends, or time is over."""
        wait_s = min(timeout_s, self._next_lease_end_s())
        with self._changed:
            self._changed.wait_for(lambda: self._generation != generation, wait_s)

    def _apply(
        self, connection: sqlite3.Connection, operations: Sequence[Operation]
    ) -> int:
        """Write *operations* at the next revision and return it."""
        revision = _revision(connection) + 1
        wrote = False
        for operation in operations:
            if isinstance(operation, Put):
                self._put(connection, operation, revision)
                wrote = True
            else:
                wrote |= _delete(connection, operation.key, revision)
        if not wrote:
            return revision - 1
        connection.execute("UPDATE revision SET current = ?", (revision,))
        _trim(connection, revision)
        return revision

    def _put(self, connection: sqlite3.Connection, put: Put, revision: int) -> None:
        if (
            put.lease
            and not connection.execute(
                "SELECT 1 FROM leases WHERE id = ?", (put.lease,)
            ).fetchone()
        ):
            raise StoreError(f"lease {put.lease} has ended")
        created = connection.execute(
            "INSERT INTO records VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET"
            " value = excluded.value, mod_revision = excluded.mod_revision,"
            " lease = excluded.lease RETURNING create_revision",
            (put.key, put.value, revision, revision, put.lease),
        ).fetchone()[0]
        connection.execute(
            "INSERT OR REPLACE INTO history VALUES (?, ?, ?, ?, ?)",
            (revision, put.key, put.value, created, put.lease),
        )

    def _end_lease(self, connection: sqlite3.Connection, lease: int) -> None:
        keys = connection.execute("SELECT key FROM records WHERE lease = ?", (lease,))
        revision = _revision(connection) + 1
        deleted = [_delete(connection, key, revision) for (key,) in keys.fetchall()]
        connection.execute("DELETE FROM leases WHERE id = ?", (lease,))
        if deleted:
            connection.execute("UPDATE revision SET current = ?", (revision,))

    def _expire_leases(self) -> None:
        """End the leases whose time is over; quick where there are none."""
        ended = self._read(
            "SELECT id FROM leases WHERE ends_s <= ? OR boot_id <> ?",
            clock.boottime_s(),
            self._boot_id,
        )
        if not ended:
            return
        with self._writing() as connection:
            for (lease,) in ended:
                # Renewed since we looked? Then it is no longer over.
                if connection.execute(
                    "SELECT 1 FROM leases"
                    " WHERE id = ? AND (ends_s <= ? OR boot_id <> ?)",
                    (lease, clock.boottime_s(), self._boot_id),
                ).fetchone():
                    self._end_lease(connection, lease)
        self._announce()

    def _next_lease_end_s(self) -> float:
        """Return the seconds until the next lease ends (for waiting watches)."""
        rows = self._read("SELECT min(ends_s) FROM leases")
        ends_s = rows[0][0]
        if ends_s is None:
            return float("inf")
        return float(max(0.0, ends_s - clock.boottime_s()))

    def _announce(self) -> None:
        with self._changed:
            self._generation += 1
            self._changed.notify_all()

    def _read(self, query: str, *values: object) -> list[Any]:
        with self._reading() as connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._read_lock:
            self._require_open()
            try:
                yield self._reader
            except sqlite3.Error as error:
                raise StoreError(f"cannot read the store: {error}") from error

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Yield the writer inside a transaction that an error rolls back whole."""
        with self._write_lock:
            self._require_open()
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                except BaseException:
                    self._writer.execute("ROLLBACK")
                    raise
                self._writer.execute("COMMIT")
            except sqlite3.Error as error:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise StoreError(f"cannot write the store: {error}") from error

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")


class SqliteWatch:
    """A `Watch` that remembers how far it has read."""

    def __init__(self, store: SqliteStore, prefix: str, after_revision: int) -> None:
        self._store = store
        self._prefix = prefix
        self._revision = after_revision

    def next(self, timeout_s: float) -> list[Event]:
        """Return new changes; see `Watch.next`."""
        deadline = clock.Deadline(timeout_s)
        while True:
            # Read before the changes: one that comes in between is not slept through.
            generation = self._store.generation()
            events, self._revision = self._store.changes(self._prefix, self._revision)
            if events or deadline.passed():
                return events
            self._store.wait_for_change(generation, deadline.remaining_s())


def _revision(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT current FROM revision").fetchone()[0])


def _delete(connection: sqlite3.Connection, key: str, revision: int) -> bool:
    """Delete *key* at *revision*; return whether there was one."""
    if not connection.execute("DELETE FROM records WHERE key = ?", (key,)).rowcount:
        return False
    connection.execute(
        "INSERT OR REPLACE INTO history VALUES (?, ?, NULL, 0, 0)", (revision, key)
    )
    return True


def _trim(connection: sqlite3.Connection, revision: int) -> None:
    """Forget history beyond what watchers are promised."""
    oldest = revision - WATCH_HISTORY_MAX
    compacted = connection.execute("SELECT compacted FROM revision").fetchone()[0]
    if oldest - compacted > _TRIM_SLACK:
        connection.execute("DELETE FROM history WHERE revision <= ?", (oldest,))
        connection.execute("UPDATE revision SET compacted = ?", (oldest,))


def _event(
    key: str, revision: int, value: bytes | None, created: int, lease: int
) -> Event:
    if value is None:
        return Event(key, revision, None)
    return Event(key, revision, Record(key, value, created, revision, lease))


def _after(prefix: str) -> str:
    """Return the first key that no longer starts with *prefix*."""
    return prefix + chr(0x10FFFF)
