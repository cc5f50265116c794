"""
Keeping members in step with what this node owns, and with what it has let go.

Every `interval` the owner of a mounted volume makes a commit of what has changed and
brings it to the members; at the last unmount it does so once more, of a tree that is
quiet. What could not be brought then follows, as soon as the members answer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import wait
from contextlib import suppress
from functools import partial
from typing import Final

from backends.errors import RemoraError
from backends.replication_options import ReplicationOptions
from backends.rsync.journal.journal import Journal
from backends.system.aside import begun, log_fault
from backends.system.clock import Deadline, monotonic_s
from plugin.errors import StoreError
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.state import Commit, Head, RefusedError
from plugin.ownership.view import OwnershipView
from plugin.replication import pacing
from plugin.replication.committing import Committing
from plugin.replication.journals import Journals
from plugin.replication.meeting import Meeting
from plugin.replication.placement import Placement
from plugin.replication.publishing import publish, tell
from plugin.replication.receiving import pair
from plugin.replication.report import Report
from plugin.replication.schedule import Schedule
from plugin.replication.sending import Sending
from plugin.replication.together import Held, Together

log = logging.getLogger(__name__)
_TICK_S: Final = 1.0
_ROUND_DEADLINE_S: Final = 3600.0
# Engines wait 30 or 60 s for an Unmount; what is not done by then follows.
_FINAL_WAIT_S: Final = 20.0
# Final syncs under way; the others wait for their turn, as long as an engine waits.
_FINAL_MAX: Final = 8
_STOP_WAIT_S: Final = 5.0


class Syncing:
    """See the module's text; *held* returns the volumes that are mounted here."""

    def __init__(
        self,
        ownership: OwnershipView,
        journals: Journals,
        sending: Sending,
        *,
        held: Callable[[], Sequence[Held]],
        records: Callable[[Collection[str]], Sequence[VolumeRecord]],
        placement: Placement,
        together: Together,
    ) -> None:
        self._ownership = ownership
        self.placement = placement
        self._journals = journals
        self._sending = sending
        self._held = held
        self._records = records
        self._together, self._moments = together, together.moments
        self._looking = self._moments.looking
        self._committing = Committing(ownership, self._moments)
        self._progress = sending.progress
        self._schedule = Schedule()
        self._behind: list[VolumeRecord] = []
        self._idle_due_s = 0.0
        self._final_slots = threading.BoundedSemaphore(_FINAL_MAX)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="syncing", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._schedule.start()
        self._thread.start()

    def stop(self) -> None:
        """Begin no round any more; one that is under way ends with the process."""
        self._stopping.set()
        self._schedule.stop()
        self._thread.join(_STOP_WAIT_S)

    def final_sync(self, record: VolumeRecord, commit: Commit) -> tuple[str, ...]:
        """
        Return the members that have *commit*, this node's sealed copy, now.

        It takes no longer than an engine waits; nothing but time is lost without it.
        """
        self._together.let_go(record.id)
        self._sending.deliveries.hurry(record.id)
        self._journals.unwatch(record)
        self._looking.forget(record)
        self._progress.forget(record.id)
        head = self._ownership.heads.read(record.id).head
        if head is not None:
            # Without the cluster's answer it stays at the members that there are.
            with suppress(StoreError):
                head = self.placement.members(record, head.epoch)
        others = [each for each in self._others(head) if self.placement.lives(each)]
        holders: set[str] = set()
        if not others:
            return ()
        bring = partial(self._bring_last, record, commit, others, holders)
        bringing = begun(bring, name="syncing:final")
        bringing.add_done_callback(log_fault)
        if not wait([bringing], _FINAL_WAIT_S).done:
            log.info("copies follow later", extra=fields(volume=record.name))
        return tuple(sorted(holders))

    def _bring_last(
        self,
        record: VolumeRecord,
        commit: Commit,
        others: Collection[str],
        holders: set[str],
    ) -> None:
        """
        Add to *holders* who of *others* has *commit*.

        While it waits for who is slow it has neither a slot nor the copy. Who lives and
        gives no answer is asked again: this node may be shut down next. Whatever is not
        had in time is left to `follow`, which waits for nobody.
        """
        deadline = Deadline(_FINAL_WAIT_S)
        while self._final_slots.acquire(timeout=deadline.remaining_s()):
            try:
                with self._journals.using(record, deadline) as journal:
                    if not self._ownership.is_sealed(record, commit):
                        return  # it is mounted again
                    left = sorted(set(others) - holders)
                    reports = self._spread(
                        *(record, journal, commit, left, holders), last=True
                    )
            except RemoraError as error:
                _note(record, error)
                return
            finally:
                self._final_slots.release()
            unheard = {each for report in reports for each in report.unheard}
            lives = any(self.placement.lives(each) for each in unheard)
            if holders.issuperset(others) or not self._sending.beside.wait(
                record.id, deadline, unheard=lives
            ):
                return

    def _run(self) -> None:
        while not self._stopping.wait(_TICK_S):
            try:
                self._tick()
            except RemoraError as error:
                log.warning("%s", error)
            except Exception:
                log.exception("syncing failed")

    def _tick(self) -> None:
        """Tell the schedule which volumes are mounted here, and which are behind."""
        held = [e for e in self._held() if self._journals.home(e[0]) is not None]
        wanted = {record.id for record, _ in held}
        keys = set()
        for key, volumes in self._together.units(held).items():
            reading_s = max(self._progress.reading_s(r.id) for r, _ in volumes)
            interval_s = min(pacing.interval_s(r, reading_s) for r, _ in volumes)
            work = partial(self._together.round, volumes, self._sync_round)
            self._want(key, [r.id for r, _ in volumes], interval_s, work)
            keys.add(key)
        interval_s = self.placement.interval_s
        if monotonic_s() >= self._idle_due_s:
            self._idle_due_s = monotonic_s() + interval_s
            self.placement.look()
            heads = self._ownership.heads.naming(self._ownership.node_id)
            led = {key for key, head in heads.items() if self.placement.leads(head)}
            self._behind = [e for e in self._records(led) if self._may_be_behind(e)]
        for record in self._behind:
            if record.id not in wanted:
                work = partial(self._round, record, partial(self.follow, record))
                self._want(record.id, [record.id], interval_s, work)
                wanted.add(record.id)
                keys.add(record.id)
        self._schedule.keep_only(keys)
        self._sending.beside.keep_only(wanted)
        self._sending.seeding.begin_due()
        self._progress.keep_faults(wanted)

    def _want(
        self,
        key: str,
        volume_ids: Sequence[str],
        interval_s: float,
        work: Callable[[], object],
    ) -> None:
        # Who was filled just now has its commit to come; of others it is told.
        at_once = self._sending.beside.are_due(volume_ids)
        self._schedule.want(key, interval_s, work, at_once=at_once)

    def _sync_round(self, record: VolumeRecord, epoch: int, meeting: Meeting) -> None:
        self._round(record, partial(self.sync, record, epoch, meeting))

    def _round(self, record: VolumeRecord, work: Callable[[], object]) -> None:
        # Whatever it does with that: else a member that is not asked any more would
        # make it due again and again.
        self._sending.beside.begin_round(record.id)
        try:
            work()
        except RemoraError as error:
            before = self._progress.note_failure(record.id, str(error))
            if before != str(error):
                _note(record, error)
            if not before:
                self._ownership.events.add(record, "not-synced", why=str(error))
        else:
            self._progress.note_failure(record.id, "")

    def sync(self, record: VolumeRecord, epoch: int, meeting: Meeting) -> None:
        """
        Bring the members of a mounted volume in step, with all of the *meeting*.

        Raises:
            RemoraError: it could not be done as a whole; the next round tries again.

        """
        others = self._others(self.placement.members(record, epoch))
        # Without a lease and a connection, a node would only be waited for.
        reached = [e for e in others if self._is_reached(e)]
        silent = set(others).difference(reached)
        faults = dict.fromkeys(silent, "the node has no lease, and does not answer")
        self._progress.note_round(record.id, holders=(), faults=faults)
        if reached:
            self.bring(record, epoch, reached, meeting)

    def _is_reached(self, node_id: str) -> bool:
        return self.placement.lives(node_id) or self._sending.is_connected(node_id)

    def bring(
        self,
        record: VolumeRecord,
        epoch: int,
        others: Sequence[str],
        meeting: Meeting | None = None,
    ) -> list[Report]:
        """
        Bring *others*, members of a mounted volume, in step; return what came of it.

        The first commit is that of the *meeting*, if there is one.

        Raises:
            RemoraError: it could not be done as a whole.

        """
        enough = max(1, ReplicationOptions.of(record.options).min_acks)
        reports = []
        holders: dict[Commit, set[str]] = {}
        meeting = meeting or self._moments.meeting_of(record.id)
        with self._journals.using(record, Deadline(_ROUND_DEADLINE_S)) as journal:
            if not self._ownership.still_owner(record, epoch):
                return []
            lineage = self._ownership.heads.lineage(record.id)
            began_s = monotonic_s()
            for report in self._sending.distribute(
                *(record, journal, lineage, others),
                advance=lambda anew: self._committing.advance(
                    *(record, epoch, journal, meeting), anew=anew
                ),
                valid=lambda: self._ownership.still_owner(record, epoch),
                landing=meeting.landing,
            ):
                reports.append(report)
                self._note_round(record, report)
                if report.sent:
                    tell(self._ownership, record, report, monotonic_s() - began_s)
                held = holders.setdefault(report.commit, set())
                held |= report.holders
                # Before enough members have it, nobody may rely on its being kept.
                if report.holders and len(held) >= enough:
                    publish(
                        *(self._ownership, record, epoch, report.commit, held),
                        quality=report.quality_of(journal),
                        moment=report.moment_of(journal),
                    )
                    self._progress.synced(record.id)
            self._progress.note_reading(record.id, journal.reading_s)
        return reports

    def _spread(
        self,
        record: VolumeRecord,
        journal: Journal,
        commit: Commit,
        others: Sequence[str],
        holders: set[str],
        *,
        last: bool = False,
    ) -> list[Report]:
        """Add to *holders* who of *others* has *commit*, which nobody writes to."""
        reports = []
        if journal.commit() != pair(commit):
            journal.record(self._looking.look_at_all(record, journal), pair(commit))
        began_s = monotonic_s()
        for report in self._sending.distribute(
            record,
            journal,
            self._ownership.heads.lineage(record.id),
            others,
            advance=lambda _: commit,
            valid=lambda: self._ownership.is_sealed(record, commit),
            last=last,
        ):
            if report.commit == commit:  # it may be of before the end
                holders |= report.holders
            self._note_round(record, report)
            if report.sent:
                tell(self._ownership, record, report, monotonic_s() - began_s)
            reports.append(report)
        journal.seal()
        return reports

    def _is_behind(self, record: VolumeRecord) -> bool:
        """Return whether members lack what was released, and we are to bring it."""
        head = self._ownership.heads.head(record.id)
        return (
            head is not None
            and not self._ownership.is_shared(record)
            and self.placement.lacks(record, head)
        )

    def _may_be_behind(self, record: VolumeRecord) -> bool:
        """Return `_is_behind`; what cannot be told of one volume hides no other."""
        try:
            return self._is_behind(record)
        except Exception as error:  # noqa: BLE001 - whatever it is, others go on
            _note(record, error)
            return False

    def follow(self, record: VolumeRecord, only: str = "") -> list[Report]:
        """
        Bring the last commit to the members that lack it, or to node *only*.

        Raises:
            RemoraError: it could not be done as a whole.

        """
        head = self._ownership.heads.read(record.id).head
        if head is None or not self._is_behind(record):
            return []
        self.placement.members(record, head.epoch)
        begun = self._ownership.heads.read(record.id)
        head = begun.head or head
        lacking = sorted(
            each
            for each in set(head.members) - set(head.holders)
            if self.placement.lives(each) and only in ("", each)
        )
        if not lacking or not head.released:
            return []
        deadline = Deadline(_ROUND_DEADLINE_S)
        with self._journals.using(record, deadline) as journal:
            if not self._ownership.is_sealed(record, head.committed):
                return []
            holders: set[str] = set()
            reports = self._spread(record, journal, head.committed, lacking, holders)
        state = self._ownership.heads.read(record.id)
        # Who took it may have ceased to be a member meanwhile.
        changed = state.head_revision != begun.head_revision
        if not holders or state.head is None or changed:
            return reports
        try:
            spread = rules.spread(
                state.head,
                node=self._ownership.node_id,
                commit=head.committed,
                holders=tuple(holders),
            )
        except RefusedError:
            return reports
        self._ownership.heads.change(state, spread)
        return reports

    def _note_round(self, record: VolumeRecord, report: Report) -> None:
        self._progress.note_round(
            record.id, holders=report.holders, faults=report.faults
        )

    def _others(self, head: Head | None) -> list[str]:
        if head is None:
            return []
        return [each for each in head.members if each != self._ownership.node_id]


def _note(record: VolumeRecord, error: Exception) -> None:
    log.warning("copies are behind: %s", error, extra=fields(volume=record.name))
