"""
What a volume's directory held at its last commit: one row per path, in SQLite.

A manifest is never the only truth: without it, the next scan finds every entry new,
records them all, and members are compared with whole. So a file that cannot be read is
discarded, not repaired.

Rows hold the commit that wrote them last, and each deleted path has a tombstone with
its commit, so that what happened since an older commit can be asked for. Source:
sqlite.org/withoutrowid.html, sqlite.org/pragma.html#pragma_journal_mode (TRUNCATE with
synchronous=FULL makes a committed transaction survive a power loss).
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Any, Final

from backends.errors import BackendError
from backends.rsync.journal.entries import Commit, Entry, Known, topmost
from backends.rsync.journal.manifest_rows import (
    COLUMNS,
    INSERT,
    SCHEMA,
    UPGRADES,
    VERSION,
    known_of,
    row_of,
    signed,
)
from backends.system.files import sync_directory

TOMBSTONES_MAX = 100_000

# What has changed: what there is now, what is gone, what was only touched.
Part = tuple[Iterable[Known], Iterable[bytes], Iterable[Known]]
_PAGE_ROWS: Final = 1000
_CACHE_KIB: Final = 8192
_AFTER_ALL_PATHS: Final = b"\xff" * 4096  # a path has 4095 bytes at most
_DISCARD: Final = "remove it and its -journal: the next scan makes it anew"


class DamagedManifestError(BackendError):
    """What the file holds is no manifest of ours: to open it again does not help."""


class Manifest:
    """
    The entries of one volume on this node as of one commit; for several threads.

    ``Entry.links`` is this node's own inode number in all that is read from here,
    whatever was recorded: numbers of two nodes in one manifest could join two files.

    An iterator ends with an error if `record` runs before its end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._revision = 0
        with self._errors():
            # SQLite gives its journal the mode that the file itself has. What is there
            # is not touched: each round opens it, and idle disks are to sleep.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False
            )
            try:
                self._commit, self._horizon = self._open()
            except BaseException:
                self._connection.close()
                raise

    @staticmethod
    def discard(path: Path) -> None:
        """Remove the manifest *path*, durably, whatever state it is in."""
        # In this order: an old journal must not be played back into a new file.
        path.unlink(missing_ok=True)
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
        sync_directory(path.parent)

    def close(self) -> None:
        """Close the file; all that was recorded is durable already."""
        with self._lock:
            self._connection.close()

    def commit(self) -> Commit:
        """Return the commit that this describes, (0, 0) for none yet."""
        return self._commit

    def get(self, path: bytes) -> Known | None:
        """Return what *path* is, None if there is nothing."""
        query = f"SELECT {COLUMNS} FROM entries WHERE path = ?"
        with self._using() as connection:
            row = connection.execute(query, (path,)).fetchone()
        return known_of(row) if row else None

    def all(self) -> Iterator[Known]:
        """Return everything, the root first, in the order of the paths' bytes."""
        return self._read(f"SELECT {COLUMNS} FROM entries ORDER BY path")

    def below(self, path: bytes) -> Iterator[Known]:
        """Return everything strictly below *path*, in the order of the paths' bytes."""
        return self._read(
            f"SELECT {COLUMNS} FROM entries WHERE path > ? AND path < ? ORDER BY path",
            *_bounds(path),
        )

    def with_inode(self, inode: int, *, directory: bool = False) -> list[Known]:
        """Return all names of the file *inode*, or of what is a *directory*."""
        query = (
            f"SELECT {COLUMNS} FROM entries INDEXED BY entries_inode"
            " WHERE inode = ? AND (kind = 'directory') = ? ORDER BY path"
        )
        with self._using() as connection:
            rows = connection.execute(query, (signed(inode), directory)).fetchall()
        return [known_of(row) for row in rows]

    def names(self, inode: int) -> list[bytes]:
        """Return the paths of all names of the file *inode*."""
        query = "SELECT path FROM entries WHERE inode = ? AND kind <> 'directory'"
        with self._using() as using:
            return [path for (path,) in using.execute(query, (signed(inode),))]

    def count(self) -> int:
        """Return the number of entries; it reads an index whole."""
        return self._number("SELECT count(*) FROM entries")

    def size_bytes(self, *, below: float = inf) -> int:
        """Return the sum of the files *below* that size; it reads the table whole."""
        # total() and not sum(): two sparse files can be larger than 64 bits together.
        files = "SELECT size FROM entries WHERE kind = 'file' AND size < ?"
        return self._number(f"SELECT total(size) FROM ({files} GROUP BY inode)", below)

    def larger(self, size: int) -> Iterator[Known]:
        """Return the files of at least that *size*; it reads the table whole."""
        query = f"SELECT {COLUMNS} FROM entries WHERE kind = 'file' AND size >= ?"
        return self._read(f"{query} ORDER BY path", size)

    def record(
        self,
        changed: Iterable[Known],
        deleted: Iterable[bytes],
        *,
        commit: Commit,
        whole: bool = False,
    ) -> None:
        """
        Make this describe *commit*: without *deleted* and all below, then *changed*.

        An entry that names no commit was written by this one. With *whole* they do not
        lead on from the commit before: nobody here knows what was deleted in between.
        All or nothing, and durable. The same again changes nothing.

        Raises:
            BackendError: *commit* is older than what this describes.

        """
        self.record_parts([(changed, deleted, ())], commit=commit, whole=whole)

    def record_parts(
        self, parts: Iterable[Part], *, commit: Commit, whole: bool = False
    ) -> None:
        """
        Do as `record` with all *parts*, which may be found by reading this meanwhile.

        What a reader has passed is all that a part may name.
        """
        with self._transaction() as connection:
            if commit < self._commit:
                raise BackendError(
                    f"{self._path} is at commit {self._commit}: {commit} is older"
                )
            for changed, deleted, touched in parts:
                for path in deleted:
                    self._bury(path, commit)
                connection.executemany(
                    INSERT,
                    (row_of(known, commit) for known in changed),
                )
                self._touch(touched)
            # What exists again is not deleted. A trigger would double the whole cost.
            connection.execute(
                "DELETE FROM tombstones WHERE EXISTS"
                " (SELECT 1 FROM entries WHERE entries.path = tombstones.path)"
            )
            # Nobody knows what was deleted before the first commit of this file.
            first = whole or self._commit == (0, 0)
            horizon = commit if first else self._prune(commit)
            connection.execute(
                "UPDATE state SET epoch=?, seq=?, horizon_epoch=?, horizon_seq=?",
                (*commit, *horizon),
            )
            connection.execute("COMMIT")
            self._commit, self._horizon = commit, horizon
            self._revision += 1

    def touch(self, known: Iterable[Known]) -> None:
        """Note the inodes and ctimes of *known*, whose entries are as they were."""
        with self._transaction() as connection:
            self._touch(known)
            connection.execute("COMMIT")

    def since(self, base: Commit) -> tuple[Iterator[Entry], Iterator[bytes]] | None:
        """
        Return what was written, and what deleted, after commit *base*.

        Both in the order of the paths' bytes, parents first. A deleted directory
        stands for all that was below it. None if *base* is too old, or of no commit
        that this has seen: then only all of it will do.
        """
        with self._lock:
            if not self._horizon <= base <= self._commit:
                return None
            # SQLite reads all of `base` as well to tell what is greater than a pair.
            first = (base[0], base[1] + 1)
            written = self._read(
                f"SELECT {COLUMNS} FROM entries INDEXED BY entries_commit"
                " WHERE (epoch, seq) >= (?, ?) ORDER BY path",
                *first,
            )
            buried = self._pages(
                self._revision,
                "SELECT path FROM tombstones"
                " WHERE (epoch, seq) >= (?, ?) ORDER BY path",
                first,
            )
        return (known.entry for known in written), topmost(row[0] for row in buried)

    def _open(self) -> tuple[Commit, Commit]:
        connection = self._connection
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            connection.executescript(SCHEMA)
        elif version in UPGRADES:
            connection.executescript(UPGRADES[version])
        elif version != VERSION:
            raise DamagedManifestError(
                f"the manifest {self._path} has version {version}, not {VERSION}",
                hint=_DISCARD,
            )
        state = connection.execute("SELECT * FROM state").fetchone()
        return (state[0], state[1]), (state[2], state[3])

    def _touch(self, known: Iterable[Known]) -> None:
        self._connection.executemany(
            "UPDATE entries SET inode = ?, ctime_ns = ? WHERE path = ?",
            ((signed(each.inode), each.ctime_ns, each.entry.path) for each in known),
        )

    def _bury(self, path: bytes, commit: Commit) -> None:
        """Delete *path* and all below; each gets a tombstone."""
        # Each: if the directory comes back, its tombstone goes, and what was in it
        # before would be forgotten.
        tombstone = "INSERT OR REPLACE INTO tombstones VALUES (?,?,?)"
        self._connection.execute(tombstone, (path, *commit))
        below = "FROM entries WHERE path > ? AND path < ?"
        bounds = _bounds(path)
        self._connection.execute(
            f"INSERT OR REPLACE INTO tombstones SELECT path, ?, ? {below}",
            (*commit, *bounds),
        )
        self._connection.execute(f"DELETE {below}", bounds)
        self._connection.execute("DELETE FROM entries WHERE path = ?", (path,))

    def _prune(self, commit: Commit) -> Commit:
        """
        Forget the oldest commits' tombstones beyond the limit; return the new horizon.

        *commit*'s own stay, whatever their number: members wait for them.
        """
        connection = self._connection
        own = connection.execute(
            "SELECT count(*) FROM tombstones WHERE epoch = ? AND seq = ?", commit
        ).fetchone()[0]
        oldest = connection.execute(
            "SELECT epoch, seq FROM tombstones WHERE (epoch, seq) < (?, ?)"
            " ORDER BY epoch DESC, seq DESC LIMIT 1 OFFSET ?",
            (*commit, max(0, TOMBSTONES_MAX - own)),
        ).fetchone()
        if oldest is None:
            return self._horizon
        connection.execute(
            "DELETE FROM tombstones WHERE (epoch, seq) <= (?, ?)", oldest
        )
        return max(self._horizon, (oldest[0], oldest[1]))

    def _number(self, query: str, *parameters: float) -> int:
        with self._using() as connection:
            return int(connection.execute(query, parameters).fetchone()[0])

    def _read(self, query: str, *parameters: object) -> Iterator[Known]:
        return map(known_of, self._pages(self._revision, query, parameters))

    def _pages(
        self, revision: int, query: str, parameters: tuple[object, ...]
    ) -> Iterator[tuple[Any, ...]]:
        with self._using() as connection:
            cursor = connection.execute(query, parameters)
        try:
            while True:
                with self._using():
                    if self._revision != revision:
                        raise BackendError(
                            f"{self._path} was changed while it was read"
                        )
                    rows = cursor.fetchmany(_PAGE_ROWS)
                if not rows:
                    return
                yield from rows
        finally:
            with self._lock, suppress(sqlite3.Error):
                cursor.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection for a transaction that the caller commits."""
        with self._using() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            yield self._connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            cause = f"cannot use the manifest {self._path}: {error}"
            # The low byte is the kind of error. Source: sqlite.org, "Result codes".
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise DamagedManifestError(cause, hint=_DISCARD) from error
            raise BackendError(cause, hint="retry; the manifest is kept") from error


def _bounds(path: bytes) -> tuple[bytes, bytes]:
    """Return what the paths below *path*, and no others, lie between."""
    return (path + b"/", path + b"0") if path else (b"", _AFTER_ALL_PATHS)
