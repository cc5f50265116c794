"""
Mount references: who asked for a volume to be mounted, as Docker told us.

The engine names each mount with an id, but ids repeat (`docker cp` mounts and unmounts
with the container's own id) and Unmounts get lost (dockerd killed, plugin down while
the container stopped). Neither a set nor a plain counter survives both, so we keep, for
each volume and id, two counts:

- *live*: Mounts of this epoch. Each will be followed by its Unmount.
- *inherited*: Mounts from before the epoch, which may have been forgotten. An epoch
  begins when the engine activates the plugin (it has restarted) and when the daemon
  starts.

An epoch is begun in memory alone, since every start begins one: what the file calls
live is inherited by whoever reads it. So a daemon starts, and protects what runs, on a
disk that is full.

An Unmount takes from live first, then from inherited. A volume that only inherited
counts hold is unmounted on proof of disuse alone: leaking a mount is safe, dropping one
that is used is not. A reboot ends every mount, and so every reference.

Source: measured engine behaviour, docs/adr/0003-mount-references.md.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backends.system import clock
from plugin.errors import RecordsError
from plugin.volumes.publications import Publications

if TYPE_CHECKING:
    from collections.abc import Iterator

MIGRATION: Final = """
    CREATE TABLE mount_references (
        volume_id TEXT NOT NULL, mount_id TEXT NOT NULL,
        live INTEGER NOT NULL, inherited INTEGER NOT NULL,
        PRIMARY KEY (volume_id, mount_id)
    ) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Count:
    """How often one mount id holds a volume."""

    live: int = 0
    inherited: int = 0

    def mounted(self) -> Count:
        """Return the count after one more Mount."""
        return Count(self.live + 1, self.inherited)

    def unmounted(self) -> Count:
        """Return the count after one Unmount; at zero it stays zero."""
        if self.live:
            return Count(self.live - 1, self.inherited)
        return Count(0, max(0, self.inherited - 1))

    def next_epoch(self) -> Count:
        """Return the count as a new epoch sees it."""
        return Count(0, self.live + self.inherited)

    def __add__(self, other: Count) -> Count:
        return Count(self.live + other.live, self.inherited + other.inherited)

    def __bool__(self) -> bool:
        return bool(self.live or self.inherited)


class References:
    """
    Every count of this node, in memory and durably in the *connection*'s table.

    Each change is durable before it returns; a failed one changes nothing.
    """

    def __init__(self, connection: sqlite3.Connection, *, boot_id: str) -> None:
        """Read the counts, if they are of boot *boot_id*."""
        self._connection = connection
        self._boot_id = boot_id
        # Whoever else uses the connection holds it.
        self.lock = threading.Lock()
        self._counts: dict[str, dict[str, Count]] = {}
        row = connection.execute(
            "SELECT value FROM facts WHERE key = 'boot_id'"
        ).fetchone()
        # Those of an earlier boot go with the first change.
        self._of_this_boot = row is not None and row[0] == boot_id
        if self._of_this_boot:
            for volume_id, mount_id, live, inherited in connection.execute(
                "SELECT volume_id, mount_id, live, inherited FROM mount_references"
            ):
                self._counts.setdefault(volume_id, {})[mount_id] = Count(
                    live, inherited
                )
        self.publications = Publications(connection, self.lock, boot_id=boot_id)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Make every live count inherited: the engine may have forgotten its Mounts."""
        with self.lock:
            self._counts = {
                volume_id: {
                    mount_id: count.next_epoch() for mount_id, count in ids.items()
                }
                for volume_id, ids in self._counts.items()
            }
            self._epoch_began_s = clock.boottime_s()

    def epoch_age_s(self) -> float:
        """Return how long ago the present epoch began."""
        return clock.boottime_s() - self._epoch_began_s

    def add(self, volume_id: str, mount_id: str) -> None:
        """Count one Mount."""
        with self.lock:
            count = self._counts.get(volume_id, {}).get(mount_id, Count())
            self._set(volume_id, mount_id, count.mounted())

    def drop(self, volume_id: str, mount_id: str) -> None:
        """Count one Unmount; an id that was never mounted changes nothing."""
        with self.lock:
            count = self._counts.get(volume_id, {}).get(mount_id)
            if count is not None:
                self._set(volume_id, mount_id, count.unmounted())

    def inherit(self, volume_id: str, mount_id: str) -> None:
        """Count one inherited reference: a process uses a mount without a Mount."""
        with self.lock:
            count = self._counts.get(volume_id, {}).get(mount_id, Count())
            self._set(volume_id, mount_id, count + Count(inherited=1))

    def forget(self, volume_id: str) -> None:
        """Drop every count of a volume: it is proven unused, or gone."""
        for each in self.publications.of(volume_id):
            self.publications.drop(each.target)
        with self.lock:
            if volume_id not in self._counts:
                return
            with self._durably() as connection:
                connection.execute(
                    "DELETE FROM mount_references WHERE volume_id = ?", (volume_id,)
                )
            del self._counts[volume_id]

    def total(self, volume_id: str) -> Count:
        """
        Return the sum over a volume's mount ids and publications.

        A publication counts as inherited, whenever it was made: the path that it has
        bound is a user that the kernel shows, and nothing else holds the volume.
        """
        with self.lock:
            ids = self._counts.get(volume_id)
            count = sum(ids.values(), Count()) if ids else Count()
        return count + Count(inherited=len(self.publications.of(volume_id)))

    def volumes(self) -> list[str]:
        """Return the ids of the volumes that have a count."""
        with self.lock:
            return list({*self._counts} | self.publications.volumes())

    def _set(self, volume_id: str, mount_id: str, count: Count) -> None:
        """Store *count*, durably first; the lock is held."""
        with self._durably() as connection:
            if count:
                connection.execute(
                    "INSERT OR REPLACE INTO mount_references VALUES (?, ?, ?, ?)",
                    (volume_id, mount_id, count.live, count.inherited),
                )
            else:
                connection.execute(
                    "DELETE FROM mount_references WHERE volume_id = ? AND mount_id = ?",
                    (volume_id, mount_id),
                )
        ids = self._counts.setdefault(volume_id, {})
        if count:
            ids[mount_id] = count
        else:
            ids.pop(mount_id, None)
            if not ids:
                del self._counts[volume_id]

    @contextmanager
    def _durably(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._connection as connection:
                connection.execute("BEGIN IMMEDIATE")
                if not self._of_this_boot:
                    connection.execute("DELETE FROM mount_references")
                    connection.execute(
                        "INSERT OR REPLACE INTO facts VALUES ('boot_id', ?)",
                        (self._boot_id,),
                    )
                yield connection
            self._of_this_boot = True
        except sqlite3.Error as error:
            raise RecordsError(f"cannot record a mount reference: {error}") from error
