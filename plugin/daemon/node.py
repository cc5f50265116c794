"""
What this node knows of itself, in ``<state_dir>/node.db``.

It is never shared with other nodes: which boot it was, which pool is its own, and the
mount references of its engine.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path
from typing import Final

from backends.system import clock
from plugin.errors import StoreError
from plugin.store.database import open_database
from plugin.volumes import publications
from plugin.volumes.references import MIGRATION, References

_MIGRATIONS: Final = (
    f"CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);\n{MIGRATION}",
    publications.MIGRATION,
)


class Node:
    """The node's identity, its facts and its mount references."""

    def __init__(self, state_dir: Path) -> None:
        path = state_dir / "node.db"
        self._connection = open_database(path, _MIGRATIONS)
        self.references = References(self._connection, boot_id=clock.boot_id())
        self.id = self.fact("node_id") or str(uuid.uuid4())
        self.set_fact("node_id", self.id)

    def fact(self, key: str) -> str | None:
        """Return the fact *key*, None if it was never set."""
        with self.references.lock:
            row = self._connection.execute(
                "SELECT value FROM facts WHERE key = ?", (key,)
            ).fetchone()
        return str(row[0]) if row else None

    def set_fact(self, key: str, value: str) -> None:
        """Keep *value* under *key*, durably; raises StoreError if that is not done."""
        if self.fact(key) == value:
            return
        try:
            with self.references.lock:
                self._connection.execute(
                    "INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, value)
                )
        except sqlite3.Error as error:
            raise StoreError(f"cannot write node.db: {error}") from error

    def forget(self, *keys: str) -> None:
        """Forget facts, durably."""
        with self.references.lock:
            for key in keys:
                self._connection.execute("DELETE FROM facts WHERE key = ?", (key,))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def pool_id_of(state_dir: Path) -> str | None:
    """
    Return which pool the node of *state_dir* has, None if it has never had one.

    Raises:
        StoreError: that cannot be read.

    """
    path = state_dir / "node.db"
    if not path.exists():
        return None
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as found:
            query = "SELECT value FROM facts WHERE key = 'pool_id'"
            row = found.execute(query).fetchone()
    except sqlite3.Error as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    return str(row[0]) if row else None


def note_pool(state_dir: Path, pool_id: str) -> None:
    """Note that the node of *state_dir*, whose lock is held, has pool *pool_id*."""
    with closing(Node(state_dir)) as node:
        node.set_fact("pool_id", pool_id)


def forget_pool(state_dir: Path) -> None:
    """Note that the node of *state_dir*, whose lock is held, has no pool now."""
    with closing(Node(state_dir)) as node:
        node.forget("pool_id")


def lock_state(state_dir: Path) -> int:
    """
    Return a descriptor that keeps every other process off *state_dir*.

    Raises:
        StoreError: a daemon uses it.

    """
    path = state_dir / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"cannot open {path}: {error.strerror}", hint="move it aside"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreError(
            f"another remora daemon uses {state_dir}",
            hint="stop it first, or set another state_dir",
        ) from None
    return descriptor


def forget_identity(state_dir: Path) -> str:
    """
    Return the id that this node had; the next start chooses another, and new keys.

    Mount references and the pool stay as they are.

    Raises:
        StoreError: the daemon runs, or what it keeps cannot be read or changed.

    """
    try:
        lock = lock_state(state_dir)
        try:
            node = Node(state_dir)
            # The keys go first: after a crash in between the old id is still refused.
            for key in (state_dir / "peer").glob("*_key"):
                key.unlink()
            node.forget("node_id", "lease")
            node.close()
        finally:
            os.close(lock)
    except OSError as error:
        raise StoreError(f"cannot change {state_dir}: {error}") from error
    return node.id
