"""
SQLite files as the daemon uses them: durable, checked at start, versioned.

Source: sqlite.org/wal.html, sqlite.org/pragma.html#pragma_synchronous (FULL in WAL mode
makes a committed transaction survive a power loss; with NORMAL the file stays whole).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from plugin.errors import StoreError

_BUSY_TIMEOUT_S = 5.0
_RESTORE = "restore it from a backup, or move it aside and run 'remora repair'"


class UnusableDatabaseError(StoreError):
    """What the file holds is damaged or too new: opening it again does not help."""


def open_database(path: Path, migrations: Sequence[str]) -> sqlite3.Connection:
    """
    Return a connection to *path*, at schema version ``len(migrations)``.

    ``migrations[n]`` is a script that lifts version n to n + 1; an interrupted one is
    rolled back whole. The connection may be shared by threads under a lock.

    Raises:
        UnusableDatabaseError: the file is damaged, or of a newer schema.
        StoreError: it cannot be opened at this moment.

    """
    try:
        # SQLite gives its -wal and -shm files the mode that the file itself has.
        path.touch(mode=0o600)
        connection = connect(path)
        with _closed_after_error(connection):
            _check(connection, path)
            _migrate(connection, path, migrations)
    except (OSError, sqlite3.Error) as error:
        # The low byte is the kind of error. Source: sqlite.org, "Result codes".
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        kind = UnusableDatabaseError if damaged else StoreError
        raise kind(f"cannot open {path}: {error}", hint=_RESTORE) from error
    return connection


def connect(path: Path) -> sqlite3.Connection:
    """
    Return a connection to *path*.

    What connections share of a log is a file, for which a full disk has no room. It is
    not needed by one that keeps all others out.
    """
    try:
        return _connect(path, "NORMAL")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_IOERR_SHMSIZE:
            raise
        return _connect(path, "EXCLUSIVE")


def keeps_others_out(connection: sqlite3.Connection) -> bool:
    """Return whether there can be no second connection to the file."""
    mode: str = connection.execute("PRAGMA locking_mode").fetchone()[0]
    return mode == "exclusive"


def _connect(path: Path, locking_mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    with _closed_after_error(connection):
        connection.execute(f"PRAGMA locking_mode = {locking_mode}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextmanager
def _closed_after_error(connection: sqlite3.Connection) -> Iterator[None]:
    """Close it after an error: a later close could delete the log of a new file."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


def _check(connection: sqlite3.Connection, path: Path) -> None:
    findings = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
    if findings != ["ok"]:
        raise UnusableDatabaseError(
            f"{path} is damaged: {'; '.join(findings)}", hint=_RESTORE
        )


def _migrate(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[str]
) -> None:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(migrations):
        raise UnusableDatabaseError(
            f"{path} has schema {version}; this Remora knows up to {len(migrations)}",
            hint="run the newer Remora that wrote it; nothing was changed",
        )
    for number, script in enumerate(migrations[version:], start=version + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;"
        )
