"""The tables of a manifest, and entries as rows of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from backends.rsync.journal.entries import UNWRITTEN, Commit, Entry, Known

VERSION: Final = 2
_UNSIGNED: Final = 2**64 - 1
# The columns of an entry in its own order but for its commit, what `Known` adds, the
# commit, and what came with version 2.
COLUMNS: Final = (
    "path, kind, mode, uid, gid, mtime_ns, size, device, target, links, attributes,"
    " inode, ctime_ns, epoch, seq, alike_epoch, alike_seq"
)
INSERT: Final = (
    f"INSERT OR REPLACE INTO entries VALUES ({','.join('?' * len(COLUMNS.split(',')))})"
)
# All inodes are indexed, not only those with links: when a file gets a second name, the
# event tells of the new name alone, and the row of the old one has to change as well.
SCHEMA: Final = f"""
    BEGIN IMMEDIATE;
    CREATE TABLE entries (
        path BLOB NOT NULL PRIMARY KEY, kind TEXT NOT NULL, mode INTEGER NOT NULL,
        uid INTEGER NOT NULL, gid INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
        size INTEGER NOT NULL, device INTEGER NOT NULL, target BLOB NOT NULL,
        links INTEGER NOT NULL, attributes TEXT NOT NULL, inode INTEGER NOT NULL,
        ctime_ns INTEGER NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
        alike_epoch INTEGER NOT NULL, alike_seq INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX entries_commit ON entries (epoch, seq);
    CREATE INDEX entries_inode ON entries (inode);
    CREATE TABLE tombstones (
        path BLOB NOT NULL PRIMARY KEY, epoch INTEGER NOT NULL, seq INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX tombstones_commit ON tombstones (epoch, seq);
    CREATE TABLE state (
        epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
        horizon_epoch INTEGER NOT NULL, horizon_seq INTEGER NOT NULL
    );
    INSERT INTO state VALUES (0, 0, 0, 0);
    PRAGMA user_version = {VERSION};
    COMMIT;
"""
# What makes an older version's tables these.
UPGRADES: Final[Mapping[int, str]] = {
    1: f"""
    BEGIN IMMEDIATE;
    ALTER TABLE entries ADD COLUMN alike_epoch INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE entries ADD COLUMN alike_seq INTEGER NOT NULL DEFAULT 0;
    PRAGMA user_version = {VERSION};
    COMMIT;
"""
}


def row_of(known: Known, commit: Commit) -> tuple[object, ...]:
    """Return the row of *known*, which *commit* has written if no other one has."""
    entry = known.entry
    values = msgspec.structs.astuple(entry)
    written = commit if entry.commit == UNWRITTEN else entry.commit
    linked = int(entry.links != 0)
    own = signed(known.inode), known.ctime_ns
    return (*values[:9], linked, values[10], *own, *written, *known.alike_since)


def known_of(row: tuple[Any, ...]) -> Known:
    """Return what a row says."""
    inode = row[11] & _UNSIGNED
    links, written = inode if row[9] else 0, (row[13], row[14])
    values = (*row[:9], links, row[10], written)
    return Known(Entry(*values), inode, row[12], (row[15], row[16]))


def signed(number: int) -> int:
    """Return the 64 bits of *number* as SQLite's integers have them."""
    return number - 2**64 if number >= 2**63 else number
