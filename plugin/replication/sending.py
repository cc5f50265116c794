"""
Bringing a copy's commit to members: plan (which commit is each at), step, report.

Members whose commit the journal knows get what has changed since. Others get a commit
that names everything; a member without any copy is filled before that (`seeding.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from backends.errors import RemoraError, one_line
from backends.rsync.journal.journal import Journal, Package
from plugin.errors import PeerUnreachableError
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership.state import Commit, Lineage
from plugin.peers.channel import Peers
from plugin.replication.grouping import Group, planned
from plugin.replication.missing_paths import decoded_paths
from plugin.replication.receiving import pair
from plugin.replication.room import on_disk_of
from plugin.replication.seeding import Seeding
from plugin.replication.transfer import RsyncTransfer

log = logging.getLogger(__name__)
_STAND_DEADLINE_S: Final = 3.0
# A member applies the commit before it answers.
_COMMIT_DEADLINE_S: Final = 900.0
# Each round sends what was missing; files that change all the time would never be done.
_ROUNDS_MAX: Final = 8
_AT_ONCE_MAX: Final = 8
# A member that lacks so many files of a whole commit would need many exchanges.
_FAR_BEHIND_FROM: Final = 100


@dataclass(slots=True)
class Report:
    """
    The outcome for a group of members: who has the commit.

    ``size_bytes`` is the size of the files that were sent to each, 0 if none were;
    ``carried_bytes`` went to all of them. ``faults`` says, by node, why it has not got
    it; the nodes in ``filling`` get their files first.
    """

    commit: Commit
    holders: set[str] = field(default_factory=set)
    sent: bool = False
    size_bytes: int = 0
    carried_bytes: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    filling: set[str] = field(default_factory=set)


# It makes a commit if anything has changed since the last one, and returns the newest;
# with True it makes one in any case.
Advance = Callable[[bool], Commit]


class Sending:
    """Sends commits of the copies of this node, which is called *node_name*."""

    def __init__(
        self, peers: Peers, transfer: RsyncTransfer, *, node_name: str
    ) -> None:
        self._peers = peers
        self._node_name = node_name
        self._transfer = transfer
        self.seeding = Seeding(peers, transfer)
        # Copies, by volume and node, that are filled first; members tell, not memory.
        self._far_behind: set[tuple[str, str]] = set()
        self.progress = transfer.progress

    def distribute(
        self,
        record: VolumeRecord,
        journal: Journal,
        lineage: Lineage,
        node_ids: Sequence[str],
        *,
        advance: Advance,
        valid: Callable[[], bool],
        fill_wait_s: float,
    ) -> Iterator[Report]:
        """
        Bring the newest commit to *node_ids*; yield who has which, group by group.

        *valid* says whether the packed files are of this commit: no owner has come. A
        member that is not filled within *fill_wait_s* gets the commit another time.

        Errors of members are logged: they are tried again in the next round.
        """
        faults, lacking = dict[str, str](), dict[str, str]()
        commits = self._commits(record, node_ids, faults, lacking)
        commit = advance(False)
        faults |= _left_out(record, commits, lacking, commit)
        if faults:
            yield Report(commit, faults=faults)
        plan = planned(journal, lineage, commits, commit)
        # What is copied now may be newer than what those have that are there.
        moves_on = bool(plan.there) and journal.quality() == "fuzzy"
        if moves_on and plan.together:
            commit = advance(True)
            plan = planned(journal, lineage, commits, commit)
        holder = min(plan.there, default="")
        if plan.there:
            yield Report(commit, set(plan.there))

        def begin() -> _Step:
            return _Step(record, journal, advance, valid, journal.commit())

        groups = list(plan.alone)
        if plan.together:
            report, left = self._together(begin(), plan.together, commit)
            yield report
            holder = min(report.holders, default=holder)
            groups = [*left, *groups]
        yield from self._one_by_one(
            *(begin, groups, commit),
            holder=holder,
            fill_wait_s=fill_wait_s,
            anew=bool(plan.together) or moves_on,
        )

    def _one_by_one(
        self,
        begin: Callable[[], _Step],
        groups: Sequence[Group],
        commit: Commit,
        *,
        holder: str,
        fill_wait_s: float,
        anew: bool,
    ) -> Iterator[Report]:
        """
        Bring each group a commit of its own: files may change meanwhile.

        The first one gets *commit*, the newest, unless a new one is needed (*anew*).
        """
        for group in groups:
            step = begin()
            try:
                far = (step.record.id, group.node_ids[0]) in self._far_behind
                if (group.is_empty or far) and not self._fill(
                    step, group.node_ids[0], holder=holder, wait_s=fill_wait_s
                ):
                    yield Report(commit, filling=set(group.node_ids))
                    continue
                report = self._step(step, group, anew=anew)
            except RemoraError as error:
                report = _failed(step.record, commit, group.node_ids, error)
            if (group.is_empty or far) and report.holders:
                self.seeding.forget(step.record.id)
                self._far_behind.discard((step.record.id, group.node_ids[0]))
            yield report
            anew = True
            holder = min(report.holders, default=holder)

    def _fill(self, step: _Step, node_id: str, *, holder: str, wait_s: float) -> bool:
        """Return whether the member is filled; if so, the step goes on from there."""
        if not step.journal.manifest.count():
            return True
        filling = self.seeding.fill(
            step.record, step.journal, node_id, holder=holder, wait_s=wait_s
        )
        if filling is None:
            return False
        step.since = filling.since
        step.filled = True
        step.carried[node_id] = filling.carried_bytes
        return True

    def _commits(
        self,
        record: VolumeRecord,
        node_ids: Sequence[str],
        faults: dict[str, str],
        lacking: dict[str, str],
    ) -> dict[str, Commit]:
        """
        Return the commit of each node that answers; add the others to *faults*.

        Those whose disk is too full for another one are added to *lacking*, too. Who
        was sent files ahead is filled: only who did that knew what changed meanwhile.
        """
        answers = self._peers.call_all(
            node_ids, "stand", {"volume": record.id}, deadline_s=_STAND_DEADLINE_S
        )
        commits = {}
        for node_id, answer in answers.items():
            if isinstance(answer, RemoraError):
                _note(record, node_id, answer)
                faults[node_id] = str(answer)
            else:
                commits[node_id] = Commit(*answer["commit"])
                # Earlier versions say nothing of either.
                if text := answer.get("lacking"):
                    lacking[node_id] = one_line(str(text))
                if answer.get("ahead") is True:
                    self._far_behind.add((record.id, node_id))
        return commits

    def _together(
        self, step: _Step, groups: Mapping[Commit, Sequence[str]], commit: Commit
    ) -> tuple[Report, list[Group]]:
        """
        Bring one commit to all members whose commit the journal knows.

        With the report go those that need more, each a group of its own.
        """
        report = Report(commit)
        left: list[Group] = []
        try:
            pending = self._exchange(step, groups, (), report)
            for base, group in groups.items():
                for each in pending.keys() & group:
                    at = None if "full" in pending[each] else base
                    left.append(Group(at, (each,)))
        except RemoraError as error:
            everybody = [each for group in groups.values() for each in group]
            return _failed(step.record, commit, everybody, error), []
        report.carried_bytes = sum(step.carried.values())
        return report, left

    def _step(self, step: _Step, group: Group, *, anew: bool) -> Report:
        """Bring a commit to members that are at one base; return who has it."""
        report = Report(step.advance(anew))
        base = group.base
        # Without a base only these are sent; the member tells which others it lacks.
        missing = step.journal.changed_since(step.since)
        pending = [*group.node_ids]
        for _ in range(_ROUNDS_MAX):
            answers = self._exchange(step, {base: pending}, missing, report)
            pending = [*answers]
            if not pending:
                break
            missing = set[bytes]().union(
                *(decoded_paths(each.get("missing", [])) for each in answers.values())
            )
            if base is None and not step.filled and len(missing) >= _FAR_BEHIND_FROM:
                self._far_behind.add((step.record.id, group.node_ids[0]))
                break
            if any("full" in each for each in answers.values()):
                base = None
            if report.holders:
                break  # the others follow in the next round, with their own commit
            before = step.journal.commit()
            report.commit = step.advance(True)
            missing |= step.journal.changed_since(before)
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
        step: _Step,
        groups: Mapping[Any, Sequence[str]],
        missing: Collection[bytes],
        report: Report,
    ) -> dict[str, Mapping[str, Any]]:
        """
        Send the newest commit to *groups* of members, by their bases or None.

        Return what those say that need more; who has it now is in *report*.
        """
        by_base = {pair(base) if base else None: groups[base] for base in groups}
        try:
            with on_disk_of(self._node_name):
                package = step.journal.pack(*by_base, only=missing, valid=step.valid)
            return self._carry(step, package, by_base, report)
        finally:
            step.journal.unpack()

    def _carry(
        self,
        step: _Step,
        package: Package,
        groups: Mapping[tuple[int, int] | None, Sequence[str]],
        report: Report,
    ) -> dict[str, Mapping[str, Any]]:
        """Send what was packed to *groups*; return what those say that need more."""
        report.sent = True
        report.size_bytes += package.size_bytes
        answers: dict[str, Mapping[str, Any]] = {}
        for number, (base, group) in enumerate(groups.items()):
            if number:
                package = step.journal.repack(base)
            told = self._send_all(step, package, group, report)
            report.holders |= {each for each in told if "commit" in told[each]}
            answers |= told
        return {
            node_id: answer
            for node_id, answer in answers.items()
            if answer.keys() & {"missing", "full"}
        }

    def _send_all(
        self,
        step: _Step,
        package: Package,
        node_ids: Collection[str],
        report: Report,
    ) -> dict[str, Mapping[str, Any]]:
        """Return what each member says to *package*; {} after an error, in *report*."""

        def send(node_id: str) -> Mapping[str, Any]:
            try:
                return self._send(step, package, node_id)
            except RemoraError as error:
                _note(step.record, node_id, error)
                report.faults[node_id] = str(error)
                return {}

        with ThreadPoolExecutor(min(_AT_ONCE_MAX, len(node_ids))) as pool:
            return dict(zip(node_ids, pool.map(send, node_ids), strict=True))

    def _send(self, step: _Step, package: Package, node_id: str) -> Mapping[str, Any]:
        commit, record = Commit(*package.commit), step.record
        carried_bytes = self._transfer.send(
            node_id,
            volume_id=record.id,
            commit=commit,
            source=package.directory,
            names=[package.names],
            total_bytes=package.size_bytes,
        )
        step.carried[node_id] = step.carried.get(node_id, 0) + carried_bytes
        body = {
            "volume": record.id,
            "name": record.name,
            "epoch": commit.epoch,
            "seq": commit.seq,
            "carried_bytes": step.carried[node_id],
        }
        answer = self._peers.call(
            node_id, "commit", body, deadline_s=_COMMIT_DEADLINE_S
        )
        if "commit" in answer:
            self.progress.count("sending", commits=1)
        return answer


@dataclass(slots=True)
class _Step:
    record: VolumeRecord
    journal: Journal
    advance: Advance
    valid: Callable[[], bool]
    # The members lack what has changed after this commit.
    since: tuple[int, int]
    # The member was filled before.
    filled: bool = False
    # Bytes on the line, by node.
    carried: dict[str, int] = field(default_factory=dict)


def _left_out(
    record: VolumeRecord,
    commits: dict[str, Commit],
    lacking: Mapping[str, str],
    commit: Commit,
) -> dict[str, str]:
    """Take those out of *commits* that lack the room for another; return why."""
    full = {each: why for each, why in lacking.items() if commits[each] != commit}
    for node_id, why in full.items():
        _note(record, node_id, why)
        del commits[node_id]
    return full


def _failed(
    record: VolumeRecord, commit: Commit, group: Sequence[str], error: RemoraError
) -> Report:
    """Return the report of what failed for all of *group*, which is logged."""
    _note(record, ",".join(group), error)
    return Report(commit, faults=dict.fromkeys(group, str(error)))


def _note(record: VolumeRecord, node: str, error: RemoraError | str) -> None:
    quiet = isinstance(error, PeerUnreachableError)
    log.log(
        logging.INFO if quiet else logging.WARNING,
        "a copy is not up to date: %s",
        error,
        extra=fields(volume=record.name, node=node),
    )
