"""
Bringing a copy's commit to members: plan (which commit is each at), step, report.

Members whose commit the journal knows get what has changed since. Others get a commit
that names everything; a member without any copy is filled before that (`seeding.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from backends.errors import RemoraError
from backends.rsync.journal.entries import Commit as Base
from backends.rsync.journal.journal import Journal
from backends.rsync.journal.outbox import unpack
from backends.rsync.journal.packing import Package
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership.state import EMPTY, Commit, Lineage
from plugin.peers.channel import Peers
from plugin.replication.beside import Beside
from plugin.replication.debts import Debts
from plugin.replication.deliveries import Deliveries, Delivery
from plugin.replication.grouping import Group, planned
from plugin.replication.landing import Landing
from plugin.replication.missing_paths import decoded_paths
from plugin.replication.receiving import pair
from plugin.replication.report import Advance, Report, Step, failed, note
from plugin.replication.room import on_disk_of
from plugin.replication.seeding import Seeding
from plugin.replication.standings import Standings
from plugin.replication.transfer import RsyncTransfer

log = logging.getLogger(__name__)
# A member applies the commit before it answers.
_COMMIT_DEADLINE_S: Final = 900.0
# Each round sends what was missing; files that change all the time would never be done.
_ROUNDS_MAX: Final = 8


class Sending:
    """Sends commits of the copies of this node, which is called *node_name*."""

    def __init__(
        self, peers: Peers, transfer: RsyncTransfer, *, node_name: str
    ) -> None:
        self._peers = peers
        self._node_name = node_name
        self._transfer = transfer
        self._standings = Standings(peers)
        self.seeding = Seeding(peers, transfer)
        self.deliveries = Deliveries()
        self._debts = Debts()
        self.progress = transfer.progress
        self.beside = Beside(self.seeding, self.deliveries, self.progress)

    def is_connected(self, node_id: str) -> bool:
        """Return whether a connection to the node stands at this moment."""
        return self._peers.is_connected(node_id)

    def distribute(  # noqa: PLR0913 - what is sent, to whom, and while what holds
        self,
        record: VolumeRecord,
        journal: Journal,
        lineage: Lineage,
        node_ids: Sequence[str],
        *,
        advance: Advance,
        valid: Callable[[], bool],
        landing: Landing | None = None,
        last: bool = False,
    ) -> Iterator[Report]:
        """
        Bring the newest commit to *node_ids*; yield who has which, group by group.

        What has come to an end beside the rounds is told of first, with the commits of
        then. *valid* says whether the packed files are of this commit: no owner has
        come; *landing*, when a commit may become a member's. A member that is not
        filled soon, or is slow, gets the commit another time. After the *last* one
        nothing comes.

        Errors of members are logged: they are tried again in the next round.
        """
        self.beside.begin_round(record.id)
        ended = self.deliveries.take_ended(record.id)
        busy = self.deliveries.busy(record.id, node_ids)
        free = [each for each in node_ids if each not in busy]
        standing = self._standings.ask(record, free, last=last)
        self._debts.fill(record.id, standing.ahead)
        for each in ended:
            yield self._late(record, each, standing.commits)
        landing = landing or Landing([record.id])
        about = Step(record, journal, advance, valid, journal.commit(), landing)
        about.stands_still = last
        journal.moments.expect(standing.bases())
        commit = advance(False)
        standing.leave_out(record, commit)
        full = {each: why for each, why in busy.items() if why}
        faults, filling = standing.faults | full, standing.applying.union(busy)
        # Who applies a commit is asked again soon, if nothing comes after this round.
        unheard = standing.unheard.union(full, standing.applying)
        if faults or filling:
            yield Report(commit, faults=faults, filling=filling, unheard=unheard)
        yield from self._bring(about, lineage, standing.commits, commit)

    def _bring(
        self,
        about: Step,
        lineage: Lineage,
        commits: Mapping[str, Commit],
        commit: Commit,
    ) -> Iterator[Report]:
        """Bring members at *commits* the newest, *commit*, or one after it."""
        record, journal, advance = about.record, about.journal, about.advance
        owed = self._debts.take(record.id, commits)
        apart = self._debts.apart(record.id, owed)
        plan = planned(journal, lineage, commits, commit, apart=apart)
        # What is copied now may be newer than what was copied in an earlier round, and
        # who was asked to take that may do so yet, whether or not it has answered.
        is_used = pair(commit) == about.since and journal.quality() == "fuzzy"
        if is_used and plan.together:
            commit = advance(True)
            plan = planned(journal, lineage, commits, commit, apart=apart)
        holder = min(plan.there, default="")
        if plan.there:
            self._debts.settle(record.id, plan.there)
            yield Report(commit, set(plan.there))

        def begin(*node_ids: str) -> Step:
            debts = [owed[each] for each in node_ids if each in owed]
            since = min((each.since for each in debts), default=journal.commit())
            missing = set[bytes]().union(*(each.missing for each in debts))
            return replace(about, since=since, missing=missing, carried={})

        groups = list(plan.alone)
        if plan.together:
            report, left = self._together(begin(*owed), plan.together, commit)
            yield report
            holder = min(report.holders, default=holder)
            groups = [*left, *groups]
        yield from self._one_by_one(
            *(begin, groups, commit),
            holder=holder,
            anew=bool(plan.together) or is_used,
        )

    def _one_by_one(
        self,
        begin: Callable[[str], Step],
        groups: Sequence[Group],
        commit: Commit,
        *,
        holder: str,
        anew: bool,
    ) -> Iterator[Report]:
        """
        Bring each group a commit of its own: files may change meanwhile.

        The first one gets *commit*, the newest, unless a new one is needed (*anew*).
        *holder*, a member or "", has *commit*.
        """
        held = pair(commit)
        for group in groups:
            step = begin(group.node_ids[0])
            # What has changed since its commit would not be sent by anybody.
            filler = holder if held == step.journal.commit() else ""
            try:
                far = self._debts.is_far_behind(step.record.id, group.node_ids[0])
                if (group.is_empty or far) and not self._fill(
                    step, group.node_ids[0], holder=filler
                ):
                    yield Report(commit, filling=set(group.node_ids))
                    continue
                report = self._step(step, group, anew=anew)
            except RemoraError as error:
                report = failed(step.record, commit, group.node_ids, error)
            if (group.is_empty or far) and report.holders:
                self._is_filled(step.record, group.node_ids[0])
            yield report
            anew = True
            if report.holders:
                holder, held = min(report.holders), pair(report.commit)

    def _fill(self, step: Step, node_id: str, *, holder: str) -> bool:
        """Return whether the member is filled; if so, the step goes on from there."""
        if not step.journal.manifest.count():
            return True
        filling = self.seeding.fill(step.record, step.journal, node_id, holder=holder)
        if filling is None:
            return False
        step.since = filling.since
        step.filled = True
        step.carried[node_id] = filling.carried_bytes
        return True

    def _is_filled(self, record: VolumeRecord, node_id: str) -> None:
        """Note that a member which was filled has its commit now."""
        self.seeding.forget(record.id)
        self._debts.settle(record.id, [node_id])

    def _late(
        self, record: VolumeRecord, ended: Delivery, commits: Mapping[str, Commit]
    ) -> Report:
        """
        Return the report of what has ended beside the rounds.

        Whose copy has gone meanwhile holds nothing: *commits* are those of now.
        """
        node_id, commit = ended.node_id, ended.commit
        if ended.error is not None:
            return failed(record, commit, [node_id], ended.error)
        if "commit" not in ended.answer:
            self._debts.note(ended)
            return Report(commit)
        if ended.filled:
            self._is_filled(record, node_id)
        ended.report.holders.add(node_id)
        newer = Commit(commit.epoch + 1, 0)
        at = {each: commits.get(each, EMPTY) for each in ended.report.holders}
        holders = {each for each in at if commit <= at[each] < newer}
        if ended.report.commit != commit:
            return Report(commit, holders)
        quality, moment = ended.report.quality, ended.report.moment
        return Report(commit, holders, quality=quality, moment=moment)

    def _together(
        self, step: Step, groups: Mapping[Commit, Sequence[str]], commit: Commit
    ) -> tuple[Report, list[Group]]:
        """
        Bring one commit to all members whose commit the journal knows.

        With the report go those that need more, each a group of its own.
        """
        report = Report(commit)
        left: list[Group] = []
        try:
            pending = self._exchange(step, groups, step.missing, report)
            for base, group in groups.items():
                for each in pending.keys() & group:
                    at = None if "full" in pending[each] else base
                    left.append(Group(at, (each,)))
        except RemoraError as error:
            everybody = [each for group in groups.values() for each in group]
            return failed(step.record, commit, everybody, error), []
        report.carried_bytes = sum(step.carried.values())
        return report, left

    def _step(self, step: Step, group: Group, *, anew: bool) -> Report:
        """Bring a commit to members that are at one base; return who has it."""
        base, since, missing = group.base, step.since, {*step.missing}

        def to_send() -> set[bytes]:
            # Without a base only these are sent; the member tells which others it
            # lacks. With one it gets all that is after it, in the cheapest way.
            return missing | (step.journal.changed_since(since) if not base else set())

        step.journal.moments.expect({pair(base)} if base else (), to_send())
        report = Report(step.advance(anew))
        pending = [*group.node_ids]
        for _ in range(_ROUNDS_MAX):
            answers = self._exchange(step, {base: pending}, to_send(), report)
            pending = [*answers]
            if not pending:
                break
            missing = set[bytes]().union(
                *(decoded_paths(each.get("missing", [])) for each in answers.values())
            )
            if not step.filled and self._debts.look(
                step.record.id, group.node_ids[0], missing, whole=base is None
            ):
                break
            if any("full" in each for each in answers.values()):
                base = None
            if report.holders:
                break  # the others follow in the next round, with their own commit
            since = step.journal.commit()
            step.journal.moments.expect({pair(base)} if base else (), missing)
            report.commit = step.advance(True)
        report.carried_bytes = sum(step.carried.values())
        if pending:
            log.info(
                "not all has arrived yet",
                extra=fields(
                    volume=step.record.name,
                    nodes=",".join(sorted(pending)),
                    missing=len(missing),
                    first=repr(min(missing, default=b"")),
                ),
            )
        return report

    def _exchange(
        self,
        step: Step,
        groups: Mapping[Any, Sequence[str]],
        missing: Collection[bytes],
        report: Report,
    ) -> dict[str, Mapping[str, Any]]:
        """
        Send the newest commit to *groups* of members, by their bases or None.

        Return what those say that need more; who has it now is in *report*.
        """
        by_base = {pair(base) if base else None: groups[base] for base in groups}
        late: list[Delivery] = []
        try:
            with on_disk_of(self._node_name):
                package = step.pack(by_base, missing)
            report.quality, report.moment = step.journal.quality(), step.journal.moment
            return self._carry(step, package, by_base, report, late)
        finally:
            if late and (outbox := step.journal.leave_packed()) is not None:
                self.deliveries.after(late, partial(unpack, outbox))
            step.journal.unpack()

    def _carry(
        self,
        step: Step,
        package: Package,
        groups: Mapping[Base | None, Sequence[str]],
        report: Report,
        late: list[Delivery],
    ) -> dict[str, Mapping[str, Any]]:
        """
        Send what was packed to *groups*; return what those say that need more.

        Those that are *late* still read it, so the groups behind them get another one.
        """
        report.sent = True
        report.size_bytes += package.size_bytes
        answers: dict[str, Mapping[str, Any]] = {}
        for number, (base, group) in enumerate(groups.items()):
            if late:
                answers |= {each: {"missing": []} for each in group}
                continue
            if number:
                package = step.journal.repack(base)
            begun = [
                Delivery(
                    *(step.record, node_id, report),
                    base=base,
                    since=step.since,
                    filled=step.filled,
                    send=partial(self._send, step, package, node_id),
                    landing=step.landing,
                )
                for node_id in group
            ]
            step.landing.begin(step.record.id, group)
            late += self.deliveries.deliver(begun, step.journal.advance_bases)
            report.filling |= {each.node_id for each in late}
            for each in begun:
                if each.error is not None:
                    note(step.record, each.node_id, each.error)
                    report.faults[each.node_id] = str(each.error)
                elif each not in late:
                    answers[each.node_id] = each.answer
        report.holders |= {each for each in answers if "commit" in answers[each]}
        return {
            node_id: answer
            for node_id, answer in answers.items()
            if answer.keys() & {"missing", "full"}
        }

    def _send(self, step: Step, package: Package, node_id: str) -> Mapping[str, Any]:
        commit, record = Commit(*package.commit), step.record
        try:
            carried_bytes = self._transfer.send(
                node_id,
                volume_id=record.id,
                commit=commit,
                source=package.directory,
                names=[package.names],
                total_bytes=package.size_bytes,
            )
        except BaseException:
            step.landing.end(record.id, node_id)
            raise
        step.landing.come(record.id, node_id)
        step.carried[node_id] = step.carried.get(node_id, 0) + carried_bytes
        body = {
            "volume": record.id,
            "name": record.name,
            "epoch": commit.epoch,
            "seq": commit.seq,
            "carried_bytes": step.carried[node_id],
            # So that nothing counts that was filled before it changed.
            "since": step.since,
            "last": step.stands_still,
        }
        answer = self._peers.call(
            node_id, "commit", body, deadline_s=_COMMIT_DEADLINE_S
        )
        if "commit" in answer:
            self.progress.count("sending", commits=1)
        return answer
