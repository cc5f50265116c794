"""The store of a single node: an SQLite file next to the daemon, no server."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from plugin.errors import RecordsError, StoreError
from plugin.store.base import Compare, Delete, Operation, Outcome, Put, Record
from plugin.store.database import connect, keeps_others_out, open_database

# Older files have two tables and a column more, which nobody reads.
_MIGRATIONS: Final = (
    """
    CREATE TABLE revision (current INTEGER NOT NULL);
    INSERT INTO revision VALUES (0);
    CREATE TABLE records (
        key TEXT PRIMARY KEY, value BLOB NOT NULL, create_revision INTEGER NOT NULL,
        mod_revision INTEGER NOT NULL, lease INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
)
_COLUMNS: Final = "key, value, create_revision, mod_revision, lease"


class SqliteStore:
    """
    The `Store` in one file.

    One connection writes and another reads, so that a read never waits for a write's
    fsync.
    """

    def __init__(self, path: Path) -> None:
        self._writer = open_database(path, _MIGRATIONS)
        self._write_lock = threading.RLock()
        if keeps_others_out(self._writer):
            self._reader, self._read_lock = self._writer, self._write_lock
        else:
            self._reader, self._read_lock = connect(path), threading.RLock()
        self._closed = False

    def get(self, key: str) -> Record | None:
        """Return the record of *key*; see `Store.get`."""
        rows = self._read(f"SELECT {_COLUMNS} FROM records WHERE key = ?", key)
        return Record(*rows[0]) if rows else None

    def prefix(self, prefix: str) -> tuple[list[Record], int]:
        """Return the records below *prefix*; see `Store.prefix`."""
        with self._reading() as connection, connection:
            connection.execute("BEGIN")  # both reads see one state
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM records WHERE key >= ? AND key < ?"
                " ORDER BY key",
                (prefix, _after(prefix)),
            ).fetchall()
            revision = _revision(connection)
        return [Record(*row) for row in rows], revision

    def version(self, prefix: str) -> int:
        """Return the revision."""
        del prefix
        with self._reading() as connection:
            return _revision(connection)

    def refresh(self, deadline_s: float) -> None:
        """Do nothing: on one node local knowledge is all there is."""

    def transact(
        self, conditions: Sequence[Compare], operations: Sequence[Operation]
    ) -> Outcome:
        """Do *operations* if *conditions* hold; see `Store.transact`."""
        lasting = not all(isinstance(x, Delete) and x.repeatable for x in operations)
        with self._writing(lasting=lasting) as connection:
            for condition in conditions:
                row = connection.execute(
                    "SELECT mod_revision FROM records WHERE key = ?", (condition.key,)
                ).fetchone()
                if (row[0] if row else 0) != condition.mod_revision:
                    return Outcome(False, _revision(connection))
            return Outcome(True, _apply(connection, operations))

    def close(self) -> None:
        """Close the file."""
        with self._write_lock, self._read_lock:
            self._closed = True
            self._reader.close()
            self._writer.close()

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
                raise RecordsError(f"cannot read the store: {error}") from error

    @contextmanager
    def _writing(self, *, lasting: bool) -> Iterator[sqlite3.Connection]:
        """
        Yield the writer inside a transaction that an error rolls back whole.

        One that is not *lasting* gets to the disk with the next one that is.
        """
        with self._write_lock:
            self._require_open()
            try:
                synchronous = "FULL" if lasting else "NORMAL"
                self._writer.execute(f"PRAGMA synchronous = {synchronous}")
                with self._writer as connection:
                    connection.execute("BEGIN IMMEDIATE")
                    yield connection
            except sqlite3.Error as error:
                raise RecordsError(f"cannot write the store: {error}") from error

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")


def _revision(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT current FROM revision").fetchone()[0])


def _apply(connection: sqlite3.Connection, operations: Sequence[Operation]) -> int:
    """Do *operations* at the next revision; return the revision after it."""
    revision = _revision(connection) + 1
    wrote = False
    for each in operations:
        if isinstance(each, Put):
            connection.execute(
                "INSERT INTO records VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE"
                " SET value = excluded.value, mod_revision = excluded.mod_revision,"
                " lease = excluded.lease",
                (each.key, each.value, revision, revision, each.lease),
            )
            wrote = True
        else:
            deleted = connection.execute(
                "DELETE FROM records WHERE key = ?", (each.key,)
            )
            wrote |= deleted.rowcount > 0
    if not wrote:
        return revision - 1
    connection.execute("UPDATE revision SET current = ?", (revision,))
    return revision


def _after(prefix: str) -> str:
    """Return the first key that no longer starts with *prefix*."""
    return prefix + chr(0x10FFFF)
