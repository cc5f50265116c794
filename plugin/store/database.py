"""
SQLite files as the daemon uses them: durable, checked at start, versioned.

Some are truths (`open_database`): one that is of no use stops whoever needs it, with a
line that says what to do. Others are caches (`open_cache`), and heal themselves.

Source: sqlite.org/wal.html, sqlite.org/pragma.html#pragma_synchronous (FULL in WAL mode
makes a committed transaction survive a power loss; with NORMAL the file stays whole).
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from backends.system import files
from plugin.errors import StoreError

log = logging.getLogger(__name__)
_BUSY_TIMEOUT_S = 5.0
_RESTORE = "restore it from a backup, or move it aside and run 'remora repair'"
# What SQLite keeps beside a file; the file itself comes last.
_SUFFIXES: Final = ("-shm", "-wal", "")
_COLUMNS: Final = (
    "SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c"
    " WHERE t.type = 'table'"
)


class UnusableDatabaseError(StoreError):
    """What is there is damaged or too new: opening it again does not help."""


def open_database(path: Path, migrations: Sequence[str]) -> sqlite3.Connection:
    """
    Return a connection to *path*, at schema version ``len(migrations)``.

    ``migrations[n]`` is a script that lifts version n to n + 1; an interrupted one is
    rolled back whole. A new file appears with its schema: an empty one was damaged. The
    connection may be shared by threads under a lock.

    Raises:
        UnusableDatabaseError: the file is damaged, or of a newer schema.
        StoreError: it cannot be opened at this moment.

    """
    try:
        if not path.exists():
            _make(path, migrations)
        elif not path.is_file() or not path.stat().st_size:
            what = "is empty" if path.is_file() else "is no file"
            raise UnusableDatabaseError(f"{path} {what}", hint=_RESTORE)
        connection = connect(path)
        with _closed_after_error(connection):
            _check(connection, path)
            _migrate(connection, path, migrations)
            _require_tables(connection, path, migrations)
    except (OSError, sqlite3.Error) as error:
        # The low byte is the kind of error. Source: sqlite.org, "Result codes".
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        damaged = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        kind = UnusableDatabaseError if damaged else StoreError
        raise kind(f"cannot open {path}: {error}", hint=_RESTORE) from error
    return connection


def open_cache(path: Path, migrations: Sequence[str]) -> sqlite3.Connection:
    """
    Return a connection to the cache *path*, as `open_database`; it waits for no disk.

    What is of no use is set aside, where the last such file is kept, and the cache
    begins anew. If that is not possible at this moment, it is kept in memory.
    """
    try:
        try:
            connection = open_database(path, migrations)
        except UnusableDatabaseError as error:
            _set_aside(path, error)
            connection = open_database(path, migrations)
    except (StoreError, OSError) as error:
        log.warning("%s is kept in memory until the next start: %s", path.name, error)
        connection = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False
        )
        _migrate(connection, path, migrations)
    connection.execute("PRAGMA synchronous = NORMAL")
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


def _make(path: Path, migrations: Sequence[str]) -> None:
    """Make the file *path*, whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    # A log that is left of an earlier file would be played back into this one.
    for each in (new, path):
        for suffix in _SUFFIXES:
            Path(f"{each}{suffix}").unlink(missing_ok=True)
    # SQLite gives its -wal and -shm files the mode that the file itself has.
    new.touch(mode=0o600)
    connection = connect(new)
    try:
        _migrate(connection, path, migrations)
    finally:
        connection.close()
    new.rename(path)
    files.sync_directory(path.parent)


def _set_aside(path: Path, why: StoreError) -> None:
    aside = path.with_name(f"{path.name}.aside")
    log.warning("%s begins anew, %s has what was there: %s", path, aside, why)
    for suffix in _SUFFIXES:
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{aside}{suffix}")


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
    # What something else has made is not changed.
    _require_tables(connection, path, migrations[:version])
    for number, script in enumerate(migrations[version:], start=version + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;"
        )


def _require_tables(
    connection: sqlite3.Connection, path: Path, migrations: Sequence[str]
) -> None:
    """Raise `UnusableDatabaseError` unless the file has all that *migrations* make."""
    with closing(sqlite3.connect(":memory:")) as wanted:
        wanted.executescript("".join(migrations))
        columns = set(wanted.execute(_COLUMNS))
    if columns - set(connection.execute(_COLUMNS)):
        raise UnusableDatabaseError(
            f"{path} is a database of something else", hint=_RESTORE
        )
