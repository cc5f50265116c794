"""
The store of a cluster's node: etcd decides, and reads answer whatever is down.

Reads come from `MirroredRecords`, which a thread keeps up to date: it follows a watch
from where they stand, at the start and after each break. Where etcd no longer has, or
never had, what they are made of, it reads everything first.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from backends.system import clock
from plugin.errors import StoreError
from plugin.store.base import (
    CompactedError,
    Compare,
    Event,
    Operation,
    Outcome,
    Record,
)
from plugin.store.etcd.pages import PAGE_KEYS, Parts, Snapshot
from plugin.store.etcd.store import EtcdStore
from plugin.store.mirrored import MirroredRecords

log = logging.getLogger(__name__)
_RETRY_PAUSE_S: Final = 0.5
_FOLLOW_S: Final = 1.0
# What has just been written is told by the watch within this time, as a rule.
_TOLD_WITHIN_S: Final = 0.1
# For the refresh after a refused transaction: one attempt, so that all ends within 5 s.
_SEE_WHY_S: Final = 1.25
_STOP_S: Final = 10.0
# For one look at what etcd has had since before our start.
_CATCH_UP_S: Final = 1.0
# Nearly all keys have a random id after one of these.
_CUTS: Final = [kind + digit for kind in ("tomb/", "v/") for digit in "123456789abcdef"]
_HINT: Final = "see that a majority of etcd's members runs and can be reached"


class MirrorStore:
    """The `Store` of a node of a cluster; see the module's text."""

    def __init__(self, etcd: EtcdStore, *, path: Path) -> None:
        """
        Read the file *path* and begin to follow *etcd*, which this store also closes.

        A file that is of no use is set aside, and everything read from etcd.
        """
        self._etcd = etcd
        self._mirrored = MirroredRecords(path)
        self._changed = self._mirrored.changed
        self._cause = "no answer yet"
        self._heard_s = clock.monotonic_s()
        # etcd has what is here, and since then there was no break.
        self._current = False
        # Whatever etcd had at some time after our start is here.
        self._is_read = False
        # Nothing here is to be followed on: a watch has found history to be gone.
        self._doubted = False
        # In this era all changes up to this revision were seen to be here.
        self._complete = (0, 0)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    @property
    def filled(self) -> bool:
        """Return whether the records were ever read; until then reads raise."""
        return self._mirrored.reached > 0

    def synchronised_age_s(self) -> float | None:
        """Return for how many seconds etcd has told nothing; None while all is well."""
        settings = self._etcd.settings
        age_s = clock.monotonic_s() - self._heard_s
        # A quiet watch is opened anew after some silence, at two members if need be.
        expected_s = settings.watch_idle_s + 2 * settings.attempt_s
        return None if self._current and age_s < expected_s else age_s

    def unread(self) -> str:
        """Return why what etcd had at our start may be missing; "" if it is here."""
        if not self._is_read:
            try:
                self.refresh(_CATCH_UP_S)
            except StoreError as error:
                return f"etcd: {error.cause}"
            self._is_read = True
        return ""

    def fault(self) -> str | None:
        """Return what is wrong, for people; None while all is well."""
        if not self.filled:
            return f"the records were never read from etcd: {self._cause}"
        age_s = self.synchronised_age_s()
        if age_s is not None:
            return f"not in step with etcd for {age_s:.0f} s: {self._cause}"
        return self._mirrored.file_fault or None

    def get(self, key: str) -> Record | None:
        """Return the record of *key*; see `Store.get`."""
        with self._changed:
            self._require_filled()
            return self._mirrored.table.get(key)

    def prefix(self, prefix: str) -> tuple[list[Record], int]:
        """
        Return the records below *prefix*; see `Store.prefix`.

        Every change up to the revision is in them; some records may be newer.
        """
        with self._changed:
            self._require_filled()
            return self._mirrored.table.below(prefix), self._mirrored.reached

    def version(self, prefix: str) -> int:
        """Return how often records like those below *prefix* have changed here."""
        self._require_filled()
        return self._mirrored.table.changes(prefix)

    def refresh(self, deadline_s: float) -> None:
        """
        Ask etcd for what is missing here, if anything is; see `Store.refresh`.

        Others write to etcd, too, so the watch may never tell of its revision. So the
        records put since are asked for. If there are then as many here as in etcd, none
        was deleted. Else the keys are asked for, where there are more here.
        """
        deadline = clock.Deadline(deadline_s)
        era, reached = self._await_current(deadline)
        revision = self._etcd.revision(deadline_s=deadline.remaining_s())
        if revision < reached:
            raise StoreError(
                f"etcd is at revision {revision}, before our {reached}",
                hint="it was restored from a backup, and is read anew: try again",
            )
        if self._await_told(era, revision):
            return
        parts = self._parts()
        found = self._etcd.changed_since(
            reached, parts=parts, deadline_s=deadline.remaining_s()
        )
        self._learn((Event(e.key, e.mod_revision, e) for e in found.records), era)
        for first, after in self._unequal(parts, found):
            there = self._etcd.keys_at(
                found.revision, first, after, deadline_s=deadline.remaining_s()
            )
            self._learn(self._deleted(there, first, after, found.revision), era)
        self._complete = (era, found.revision)

    def transact(
        self, conditions: Sequence[Compare], operations: Sequence[Operation]
    ) -> Outcome:
        """
        Let etcd do it, and show what it did at once; see `Store.transact`.

        Raises:
            UnknownOutcomeError: as `EtcdStore.transact`; if it was done, a watch tells.

        """
        era = self._mirrored.era
        outcome = self._etcd.transact(conditions, operations)
        if outcome.succeeded:
            self._mirrored.learn(
                self._mirrored.written(operations, outcome.revision), era
            )
        else:
            # The caller will read again what it did not know.
            self.refresh(_SEE_WHY_S)
        return outcome

    def grant_lease(self, ttl_s: float) -> int:
        """Return a new lease of etcd's; see `EtcdStore.grant_lease`."""
        return self._etcd.grant_lease(ttl_s)

    def keep_alive(self, lease: int) -> bool:
        """Renew *lease* in etcd; see `EtcdStore.keep_alive`."""
        return self._etcd.keep_alive(lease)

    def end_forgotten_lease(self, lease: int, deadline_s: float) -> bool:
        """Return whether *lease* was over, and is ended now; see `EtcdStore`."""
        deadline = clock.Deadline(deadline_s)
        ended = self._etcd.end_forgotten_lease(lease, deadline_s)
        if ended:
            self.refresh(deadline.remaining_s())
        return ended

    def lease_ends_s(self, lease: int) -> float | None:
        """Return until when *lease* is surely ours; see `EtcdStore.lease_ends_s`."""
        return self._etcd.lease_ends_s(lease)

    def close(self) -> None:
        """Close etcd's connections and the file."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._etcd.close()
        self._thread.join(_STOP_S)
        self._mirrored.close()

    def _run(self) -> None:
        """Keep the records until the store is closed."""
        while not self._closed:
            try:
                self._follow(self._reached_before() or self._read_everything())
            except CompactedError as error:
                log.info("reading all records again: %s", error)
                self._doubted = True
            except StoreError as error:
                self._cause = str(error)
            except Exception as error:  # reads must not grow old without a word
                log.exception("cannot follow etcd")
                self._cause = f"internal error: {error}"
                self._doubted = True
            with self._changed:
                self._current = False
                self._changed.wait_for(lambda: self._closed, _RETRY_PAUSE_S)

    def _reached_before(self) -> int:
        """
        Return the revision after which to go on, 0 if everything has to be read first.

        All this asks is whether etcd's history is still ours, which a backup that was
        restored would replace: as it was at our revision, it had as many records, and
        the same newest one.
        """
        asked_s = clock.monotonic_s()
        with self._changed:
            cluster, reached = self._mirrored.cluster, self._mirrored.reached
            newest, count = self._mirrored.newest_reached(), len(self._mirrored.table)
        if self._doubted or not reached or self._etcd.identity() != cluster:
            return 0
        if not self._etcd.had(newest, count, revision=reached):
            return 0
        self._in_step(asked_s)
        return reached

    def _read_everything(self) -> int:
        """Replace all records; return the revision that it is of."""
        asked_s = clock.monotonic_s()
        asked_at = self._mirrored.newest
        cluster = self._etcd.identity()
        records, revision = self._etcd.prefix("", parts=self._parts())
        self._mirrored.replace(records, revision, cluster=cluster, asked_at=asked_at)
        self._doubted = False
        self._in_step(asked_s)
        return revision

    def _in_step(self, asked_s: float) -> None:
        """Note that etcd, as it was asked, has what is here."""
        with self._changed:
            self._heard_s = asked_s
            self._current = True
            self._cause = "it is silent"
            self._changed.notify_all()

    def _follow(self, revision: int) -> None:
        """Take in all changes after *revision*, until an error ends it."""
        watch = self._etcd.watch("", after_revision=revision)
        opened = 0
        try:
            while not self._closed:
                events = watch.next(_FOLLOW_S)
                # A stream that was opened anew may come from another etcd.
                if watch.opened != opened:
                    opened = watch.opened
                    if self._etcd.identity() != self._mirrored.cluster:
                        raise CompactedError("another cluster's records are there now")
                self._mirrored.follow(events)
                self._heard_s = watch.heard_s
        finally:
            watch.stop()

    def _await_current(self, deadline: clock.Deadline) -> tuple[int, int]:
        """Return era and revision, once etcd has what is here, after any break."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._current or self._closed, deadline.remaining_s()
            )
            self._require_open()
            if not self._current:
                raise StoreError(f"not in step with etcd: {self._cause}", hint=_HINT)
            return self._mirrored.era, self._mirrored.reached

    def _parts(self) -> Parts:
        """Return how to read everything: about half a page of known keys at a time."""
        with self._changed:
            table = self._mirrored.table
            return Parts(table.every(PAGE_KEYS // 2) or _CUTS, table.get)

    def _await_told(self, era: int, revision: int) -> bool:
        """Return whether all changes up to *revision* are here, or soon are."""
        if self._complete[0] == era and self._complete[1] >= revision:
            return True
        mirrored = self._mirrored
        with self._changed:
            return self._changed.wait_for(
                lambda: mirrored.era == era and mirrored.reached >= revision,
                _TOLD_WITHIN_S,
            )

    def _learn(self, events: Iterable[Event], era: int) -> None:
        if not self._mirrored.learn(events, era):
            raise StoreError("etcd's records were replaced meanwhile: try again")

    def _deleted(
        self, there: set[str], first: str, after: str, revision: int
    ) -> list[Event]:
        """Return a deletion for each key of a part that was not *there*."""
        with self._changed:
            here = self._mirrored.table.keys(first, after)
        return [Event(key, revision, None) for key in here if key not in there]

    def _unequal(self, parts: Parts, found: Snapshot) -> list[tuple[str, str]]:
        """
        Return the parts in which keys may be here that etcd had no more.

        All keys of *found* are here already. If nothing here is newer, and there are as
        many keys of a part here as there were in etcd, then they are the same keys.
        """
        bounds = pairwise(["", *parts.cuts, ""])
        with self._changed:
            mirrored = self._mirrored
            if mirrored.reached >= found.revision:
                return []
            is_newer = mirrored.newest > found.revision
            return [
                (first, after)
                for (first, after), count in zip(bounds, found.counts, strict=True)
                if is_newer or len(mirrored.table.keys(first, after)) != count
            ]

    def _require_filled(self) -> None:
        self._require_open()
        if not self.filled:
            raise StoreError(
                f"the records were never read from etcd: {self._cause}", hint=_HINT
            )

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")
