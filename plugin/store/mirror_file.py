"""The file in which a mirror survives its process."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from plugin.store.base import Record
from plugin.store.database import open_cache

_MIGRATIONS: Final = (
    """
    CREATE TABLE mirror (cluster TEXT NOT NULL, revision INTEGER NOT NULL);
    INSERT INTO mirror VALUES ('', 0);
    CREATE TABLE records (
        key TEXT PRIMARY KEY, value BLOB NOT NULL, create_revision INTEGER NOT NULL,
        mod_revision INTEGER NOT NULL, lease INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
)
_PUT: Final = "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?)"

Change = tuple[str, Record | None]


class MirrorFile:
    """
    Records, the cluster that they are of, and the revision that they have reached.

    One thread at a time uses it. Each write is one transaction: a process that is
    killed leaves the file as it was before or after it. A machine that loses its power
    may lose the last ones, for none waits for the disk: etcd has them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = open_cache(path, _MIGRATIONS)

    def load(self) -> tuple[list[Record], str, int]:
        """Return the records, their cluster's identity, and their revision."""
        cluster, revision = self._connection.execute(
            "SELECT cluster, revision FROM mirror"
        ).fetchone()
        # Most keys are never changed: one object does for both of their revisions.
        records = [
            Record(key, value, changed if made == changed else made, changed, lease)
            for key, value, made, changed, lease in self._connection.execute(
                "SELECT key, value, create_revision, mod_revision, lease FROM records"
            )
        ]
        return records, cluster, revision

    def save(
        self, changes: Iterable[Change], *, cluster: str, revision: int, whole: bool
    ) -> None:
        """Write *changes*; if they are the *whole*, nothing else is left."""
        # Leaving the block commits, or rolls back if something was raised.
        with self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            if whole:
                connection.execute("DELETE FROM records")
            for key, record in changes:
                if record is None:
                    connection.execute("DELETE FROM records WHERE key = ?", (key,))
                else:
                    connection.execute(
                        _PUT,
                        (
                            key,
                            record.value,
                            record.create_revision,
                            record.mod_revision,
                            record.lease,
                        ),
                    )
            connection.execute(
                "UPDATE mirror SET cluster = ?, revision = ?", (cluster, revision)
            )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
