"""
What this node knows of itself, in ``<state_dir>/node.db``.

It is never shared with other nodes: which boot it was, which pool is its own, and the
mount references of its engine.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Final

from backends.system import clock
from plugin.database import open_database
from plugin.references import MIGRATION, References

_MIGRATIONS: Final = (
    f"CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);\n{MIGRATION}",
)


class Node:
    """The node's identity, its facts and its mount references."""

    def __init__(self, state_dir: Path) -> None:
        self._connection = open_database(state_dir / "node.db", _MIGRATIONS)
        same_boot = self.fact("boot_id") == clock.boot_id()
        self.references = References(self._connection, same_boot=same_boot)
        # Only now that an older boot's references are gone: a crash in between must
        # not make them look like this boot's.
        self.set_fact("boot_id", clock.boot_id())
        self.id = self.fact("node_id") or str(uuid.uuid4())
        self.set_fact("node_id", self.id)

    def fact(self, key: str) -> str | None:
        """Return the fact *key*, None if it was never set."""
        row = self._connection.execute(
            "SELECT value FROM facts WHERE key = ?", (key,)
        ).fetchone()
        return str(row[0]) if row else None

    def set_fact(self, key: str, value: str) -> None:
        """Keep *value* under *key*, durably."""
        if self.fact(key) != value:
            self._connection.execute(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, value)
            )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
