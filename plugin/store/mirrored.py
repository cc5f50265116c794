"""
A node's copy of the cluster's records, in memory and in a file.

Changes come here twice and in any order: from a watch, which tells all of them, and
from our own transactions and questions, which must show at once. This is why the
outcome is right all the same:

    For each key memory holds the newest of (1) all changes up to `reached`, which is
    as far as the watch has come, and (2) those later ones that were learnt otherwise.

The newest wins, so that order and repetition do not matter. A change at or before
`reached` is in (1) already and is dropped. A key that was deleted after `reached`
leaves its revision in `_deleted`, so that an older put cannot bring it back; puts at or
before `reached` are dropped anyway.

So our own change may show before older ones of other nodes.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path

from plugin.store.base import Event, Operation, Put, Record
from plugin.store.mirror_file import MirrorFile
from plugin.store.table import Table

log = logging.getLogger(__name__)


class MirroredRecords:
    """
    See the module's text.

    A writer holds `_writing`, and also `changed` while memory changes. A reader holds
    `changed` only, and so never waits for the disk.
    """

    def __init__(self, path: Path) -> None:
        self._file = MirrorFile(path)
        records, self.cluster, reached = self._file.load()
        if not reached:
            records = []
        self._file_whole = reached > 0
        self.file_fault = ""
        # Up to which revision every change is known; 0 if nothing ever was.
        self.reached = reached
        self.changed = threading.Condition()
        self.table = Table(records)
        self._deleted: dict[str, int] = {}
        # The newest change in memory; never before `reached`.
        self.newest = max([reached, *(each.mod_revision for each in records)])
        # Grows when etcd's history turns out to be another one than ours.
        self.era = 0
        self._writing = threading.Lock()

    def follow(self, events: Sequence[Event]) -> None:
        """Take in what the watch told: all changes from `reached` to the last one."""
        if not events:
            return
        last = events[-1].revision
        with self._writing:
            with self.changed:
                # Also equal ones: the watch knows when our own puts created their keys.
                changes = self._enter(
                    each for each in events if each.revision >= self._known(each.key)
                )
                self._reach(last)
            self._save(changes)

    def learn(self, events: Iterable[Event], era: int) -> bool:
        """Take in *events*, some of all changes; False if their *era* is over."""
        with self._writing:
            with self.changed:
                if era != self.era:
                    return False
                changes = self._enter(
                    each
                    for each in events
                    if each.revision > max(self.reached, self._known(each.key))
                )
            if changes:
                self._save(changes)
        return True

    def replace(
        self, records: Iterable[Record], revision: int, *, cluster: str, asked_at: int
    ) -> None:
        """
        Take in all *records* of *cluster* as they were at *revision*.

        *asked_at* is what `newest` was before the read. Changes that we learnt since
        then stay, unless etcd's history turns out to be another one than ours.
        """
        with self._writing:
            other = self._is_other(cluster, revision, asked_at)
            changes = self._differences(records, revision, other=other)
            with self.changed:
                if other:
                    self.era += 1
                    self._deleted = {}
                    self.newest = revision
                self.cluster = cluster
                for key in changes:
                    self._deleted.pop(key, None)
                if changes:
                    self.table.change(changes)
                self._reach(revision)
            self._save(changes)

    def written(self, operations: Sequence[Operation], revision: int) -> list[Event]:
        """Return the changes of a transaction of ours, as far as we can tell."""
        events = []
        # As in etcd, the last operation on a key counts.
        for key, operation in {each.key: each for each in operations}.items():
            record = None
            if isinstance(operation, Put):
                with self.changed:
                    old = self.table.get(key)
                created = old.create_revision if old else revision
                record = Record(
                    key, operation.value, created, revision, operation.lease
                )
            events.append(Event(key, revision, record))
        return events

    def newest_reached(self) -> Record | None:
        """Return the record that changed last, up to `reached`; None without one."""
        known = (r for r in self.table.below("") if r.mod_revision <= self.reached)
        return max(known, key=attrgetter("mod_revision"), default=None)

    def close(self) -> None:
        """Close the file."""
        with self._writing:
            self._file.close()

    def _known(self, key: str) -> int:
        """Return the revision of the newest change of *key* that is in memory."""
        record = self.table.get(key)
        return record.mod_revision if record else self._deleted.get(key, 0)

    def _enter(self, events: Iterable[Event]) -> dict[str, Record | None]:
        """Change memory; each of *events* is judged after those before it are in."""
        changes: dict[str, Record | None] = {}
        for event in events:
            self._set(event.key, event.record)
            if event.record is None:
                self._deleted[event.key] = event.revision
            self.newest = max(self.newest, event.revision)
            changes[event.key] = event.record
        return changes

    def _set(self, key: str, record: Record | None) -> None:
        self._deleted.pop(key, None)
        if record is None:
            self.table.remove(key)
        else:
            self.table.put(record)

    def _reach(self, revision: int) -> None:
        """Let *revision* be what is reached, and forget deletions up to it."""
        self.reached = revision
        self._deleted = {
            key: deleted for key, deleted in self._deleted.items() if deleted > revision
        }
        self.newest = max(self.newest, revision)
        self.changed.notify_all()

    def _is_other(self, cluster: str, revision: int, asked_at: int) -> bool:
        """Return whether *cluster* at *revision* has another history than ours."""
        if self.cluster not in ("", cluster):
            log.warning(
                "etcd holds the records of another cluster (%s, not %s); ours are"
                " dropped",
                cluster,
                self.cluster,
            )
            return True
        if revision < asked_at:
            log.warning(
                "etcd went back from revision %d to %d, as after restoring a backup;"
                " what came later is lost",
                asked_at,
                revision,
            )
            return True
        return False

    def _differences(
        self, records: Iterable[Record], revision: int, *, other: bool
    ) -> dict[str, Record | None]:
        """Return what to change so that memory is as *records*, or newer."""
        there = {each.key: each for each in records}
        keys = {*there, *(each.key for each in self.table.below(""))}
        return {
            key: there.get(key)
            for key in keys
            if there.get(key) != self.table.get(key)
            and (other or self._known(key) <= revision)
        }

    def _save(self, changes: dict[str, Record | None]) -> None:
        """
        Write *changes*; a failure is logged, and the next write mends it.

        The caller does not fail: etcd has its change, and memory has it, too.
        """
        whole = not self._file_whole
        if whole:
            changes = {each.key: each for each in self.table.below("")}
        try:
            self._file.save(
                changes.items(),
                cluster=self.cluster,
                revision=self.reached,
                whole=whole,
            )
        except sqlite3.Error as error:
            self._file_whole = False
            if not self.file_fault:
                log.warning("cannot write %s: %s", self._file.path, error)
            self.file_fault = f"cannot write {self._file.path}: {error}"
        else:
            self._file_whole = True
            self.file_fault = ""
