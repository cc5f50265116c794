"""
Keeping members in step with what this node owns, and with what it has let go.

Every `interval` the owner of a mounted volume makes a commit of what has changed and
brings it to the members; at the last unmount it does so once more, of a tree that is
quiet. What could not be brought then follows, as soon as the members answer.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from backends.errors import RemoraError
from backends.options import seconds
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.watch import Hints
from backends.system.clock import Deadline, monotonic_s
from plugin.cluster import rules
from plugin.cluster.ownership import Ownership
from plugin.cluster.state import EMPTY, Commit, Head, RefusedError
from plugin.errors import StoreError
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.replication.copies import Copies
from plugin.replication.placement import Placement
from plugin.replication.receiving import pair
from plugin.replication.sending import Report, Sending

log = logging.getLogger(__name__)
_TICK_S: Final = 1.0
_ROUND_DEADLINE_S: Final = 3600.0
# Engines wait 30 or 60 s for an Unmount; what is not done by then follows.
_FINAL_WAIT_S: Final = 20.0
_IDLE_INTERVAL_S: Final = 10.0
_AT_ONCE_MAX: Final = 4
_STOP_WAIT_S: Final = 5.0
# Events do not tell of what is written through a mapping that stays open.
_SCAN_INTERVAL_S: Final = 60.0
# Files that are looked at in every round, because they have changed before.
_RECENT_MAX: Final = 500


class Syncing:
    """See the module's text; *held* returns the volumes that are mounted here."""

    def __init__(
        self,
        ownership: Ownership,
        copies: Copies,
        sending: Sending,
        *,
        held: Callable[[], Sequence[tuple[VolumeRecord, int]]],
        records: Callable[[], Sequence[VolumeRecord]],
    ) -> None:
        self._ownership = ownership
        self._placement = Placement(ownership)
        self._copies = copies
        self._sending = sending
        self._held = held
        self._records = records
        self._due_s: dict[str, float] = {}
        self._scan_due_s: dict[str, float] = {}
        self._again: dict[str, set[bytes]] = {}
        self._recent: dict[str, tuple[bytes, ...]] = {}
        self._running: set[str] = set()
        self._idle_due_s = 0.0
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(_AT_ONCE_MAX)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="syncing", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no round any more; one that is under way ends with the process."""
        self._stopping.set()
        self._thread.join(_STOP_WAIT_S)

    def settle(self, record: VolumeRecord, commit: Commit) -> tuple[str, ...]:
        """
        Return the members that have *commit*, this node's sealed copy, now.

        It takes no longer than an engine waits; nothing but time is lost without it.
        """
        self._copies.unwatch(record)
        head = self._ownership.heads.read(record.id).head
        if head is not None:
            # Without the cluster's answer it stays at the members that there are.
            with suppress(StoreError):
                head = self._placement.members(record, head.epoch)
        others = [each for each in self._others(head) if self._placement.lives(each)]
        holders: set[str] = set()
        if not others:
            return ()

        def bring() -> None:
            try:
                with self._copies.using(record, Deadline(_ROUND_DEADLINE_S)) as journal:
                    self._spread(record, journal, commit, others, holders)
            except RemoraError as error:
                _note(record, error)

        thread = threading.Thread(target=bring, name="syncing:final", daemon=True)
        thread.start()
        thread.join(_FINAL_WAIT_S)
        if thread.is_alive():
            log.info("copies follow later", extra=fields(volume=record.name))
        return tuple(sorted(holders))

    def _run(self) -> None:
        while not self._stopping.wait(_TICK_S):
            try:
                self._tick()
            except RemoraError as error:
                log.warning("%s", error)
            except Exception:
                log.exception("syncing failed")

    def _tick(self) -> None:
        """Begin a round for each volume that is due and has none under way."""
        for record, epoch in self._held():
            if self._copies.home(record) is not None:
                interval_s = seconds(record.options.get("interval", "10s"))
                self._begin(record, interval_s, partial(self.sync, record, epoch))
        if monotonic_s() < self._idle_due_s:
            return
        self._idle_due_s = monotonic_s() + _IDLE_INTERVAL_S
        for record in self._records():
            if self._is_behind(record):
                self._begin(record, _IDLE_INTERVAL_S, partial(self._follow, record))

    def _begin(
        self, record: VolumeRecord, interval_s: float, work: Callable[[], None]
    ) -> None:
        with self._lock:
            if record.id in self._running or monotonic_s() < self._due_s.get(
                record.id, 0
            ):
                return
            if not self._places.acquire(blocking=False):
                return
            self._running.add(record.id)
            self._due_s[record.id] = monotonic_s() + interval_s
        threading.Thread(
            target=self._guarded, args=(record, work), name="syncing:round", daemon=True
        ).start()

    def _guarded(self, record: VolumeRecord, work: Callable[[], None]) -> None:
        try:
            work()
        except RemoraError as error:
            _note(record, error)
        except Exception:
            log.exception("a round failed", extra=fields(volume=record.name))
        finally:
            self._places.release()
            with self._lock:
                self._running.discard(record.id)

    def sync(self, record: VolumeRecord, epoch: int) -> None:
        """
        Bring the members of a mounted volume in step.

        Raises:
            RemoraError: it could not be done as a whole; the next round tries again.

        """
        head = self._placement.members(record, epoch)
        others = self._others(head)
        if not others:
            return
        enough = int(record.options.get("min_acks", "0"))
        with self._copies.using(record, Deadline(_ROUND_DEADLINE_S)) as journal:
            if not self._ownership.still_owner(record, epoch):
                return
            lineage = self._ownership.heads.lineage(record.id)
            began_s = monotonic_s()
            for report in self._sending.distribute(
                record,
                journal,
                lineage,
                others,
                advance=lambda anew: self._advance(record, epoch, journal, anew=anew),
                valid=lambda: self._ownership.still_owner(record, epoch),
            ):
                self._again.setdefault(record.id, set()).update(report.unstable)
                if report.sent:
                    _tell(record, report, monotonic_s() - began_s)
                # Before enough members have it, nobody may rely on its being kept.
                if len(report.holders) >= max(1, enough):
                    self._publish(record, epoch, report.commit, report.holders)

    def _advance(
        self, record: VolumeRecord, epoch: int, journal: Journal, *, anew: bool
    ) -> Commit:
        """Return the newest commit, made now if anything has changed."""
        hints = self._hints(record, journal)
        again = self._again.pop(record.id, set())
        try:
            changes = journal.look(hints, again)
        except RemoraError:
            self._copies.give_back(record, hints)
            raise
        self._again[record.id] = set(changes.fresh)
        self._recent[record.id] = _newest(
            self._recent.get(record.id, ()),
            [each.entry.path for each in changes.changed],
        )
        current = Commit(*journal.commit())
        if not (changes.changed or changes.deleted or anew) and current.epoch == epoch:
            journal.manifest.touch(changes.touched)
            return current
        # The number is used up durably before anybody can have seen it.
        commit = self._ownership.commit_running(record, epoch)
        journal.record(changes, pair(commit))
        return commit

    def _hints(self, record: VolumeRecord, journal: Journal) -> Hints:
        hints = self._copies.hints(record, journal)
        if monotonic_s() >= self._scan_due_s.get(record.id, 0):
            self._scan_due_s[record.id] = monotonic_s() + _SCAN_INTERVAL_S
            return EVERYTHING
        if hints.everything:
            return hints
        # What a database writes directly to a file that stays open causes no event.
        recent = self._recent.get(record.id, ())
        return dataclasses.replace(hints, paths=hints.paths.union(recent))

    def _spread(
        self,
        record: VolumeRecord,
        journal: Journal,
        commit: Commit,
        others: Sequence[str],
        holders: set[str],
    ) -> None:
        """Add to *holders* who of *others* has *commit*, which nobody writes to."""
        if journal.commit() != pair(commit):
            again = self._again.pop(record.id, ())
            journal.record(journal.look(EVERYTHING, again), pair(commit))
        for report in self._sending.distribute(
            record,
            journal,
            self._ownership.heads.lineage(record.id),
            others,
            advance=lambda _: commit,
            valid=lambda: self._is_sealed(record, commit),
        ):
            holders |= report.holders

    def _is_sealed(self, record: VolumeRecord, commit: Commit) -> bool:
        replica = self._ownership.replica_of(record)
        return replica is not None and (replica.commit, replica.live_epoch) == (
            commit,
            0,
        )

    def _is_behind(self, record: VolumeRecord) -> bool:
        """Return whether members lack what this node was the last to own."""
        head = self._ownership.heads.read(record.id).head
        return (
            head is not None
            and head.committed != EMPTY  # who has no copy at all would hold that
            and head.owner == self._ownership.node_id
            and head.phase == "idle"
            and self._ownership.node_id in head.holders
            and bool(set(head.members) - set(head.holders))
            and not self._ownership.is_shared(record)
        )

    def _follow(self, record: VolumeRecord) -> None:
        """Bring the last commit to the members that lack it."""
        standing = self._ownership.heads.read(record.id)
        head = standing.head
        if head is None or not self._is_behind(record):
            return
        lacking = sorted(
            each
            for each in set(head.members) - set(head.holders)
            if self._placement.lives(each)
        )
        if not lacking:
            return
        deadline = Deadline(_ROUND_DEADLINE_S)
        with self._copies.using(record, deadline) as journal:
            if not self._is_sealed(record, head.committed):
                return
            holders: set[str] = set()
            self._spread(record, journal, head.committed, lacking, holders)
        if not holders:
            return
        standing = self._ownership.heads.read(record.id)
        if standing.head is None:
            return
        try:
            spread = rules.spread(
                standing.head,
                node=self._ownership.node_id,
                commit=head.committed,
                holders=tuple(holders),
            )
        except RefusedError:
            return
        self._ownership.heads.change(standing, spread)

    def _publish(
        self, record: VolumeRecord, epoch: int, commit: Commit, holders: set[str]
    ) -> None:
        """Let the store know which commit is kept, and by whom."""
        everybody = tuple(sorted({*holders, self._ownership.node_id}))
        standing = self._ownership.heads.read(record.id)
        if standing.head is None:
            return
        try:
            published = rules.publish(
                standing.head,
                node=self._ownership.node_id,
                epoch=epoch,
                commit=commit,
                holders=everybody,
            )
        except RefusedError:
            return
        if published == standing.head:
            return
        if self._ownership.heads.change(standing, published) is None:
            raise StoreError("the volume's head has changed meanwhile")

    def _others(self, head: Head | None) -> list[str]:
        if head is None:
            return []
        return [each for each in head.members if each != self._ownership.node_id]


def _newest(before: Sequence[bytes], more: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the paths that changed last, each once, a bounded number."""
    found = dict.fromkeys([*reversed(more[-_RECENT_MAX:]), *before])
    return tuple(found)[:_RECENT_MAX]


def _tell(record: VolumeRecord, report: Report, took_s: float) -> None:
    log.info(
        "synced",
        extra=fields(
            volume=record.name,
            commit=str(report.commit),
            copies=len(report.holders),
            bytes=report.size_bytes,
            duration_ms=round(1000 * took_s, 1),
        ),
    )


def _note(record: VolumeRecord, error: RemoraError) -> None:
    log.warning("copies are behind: %s", error, extra=fields(volume=record.name))
