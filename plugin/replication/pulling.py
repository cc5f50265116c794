"""
Pulling: a node that comes to own a volume asks a holder for its newest commit.

The transfer goes on when the engine's time for the Mount is over; the next Mount finds
it further, or done. The holder's side is `handing.py`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from concurrent.futures import Future, wait
from functools import partial
from typing import Final

import msgspec

from backends.errors import RemoraError
from backends.system.aside import begun, log_fault
from backends.system.clock import Deadline
from plugin.errors import NotOwnerError, PeerRefusedError
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.state import EMPTY, Choice, Commit, CopyState, Kept
from plugin.ownership.view import OwnershipView
from plugin.peers.channel import Peers
from plugin.replication.at_work import Patience
from plugin.replication.handing import TRANSFER_DEADLINE_S, SendRequest
from plugin.replication.journals import Journals, is_whole
from plugin.replication.progress import Progress
from plugin.replication.receiving import Receiving, pair

log = logging.getLogger(__name__)
_REFRESH_DEADLINE_S: Final = 2.0
_ROUNDS_MAX: Final = 20
# A copy that lacks so many files is filled before: rsync finds them by itself.
_FAR_BEHIND_FROM: Final = 100
# We answer so long before the Mount's own deadline, whose error would say less.
_ANSWER_S: Final = 1.0
# A pull that is not wanted any more looks at that each second, and in between takes in.
_END_WAIT_S: Final = 60.0


class Pulling:
    """Pulls the volumes that this node comes to own."""

    def __init__(
        self,
        ownership: OwnershipView,
        journals: Journals,
        receiving: Receiving,
        peers: Peers,
        progress: Progress,
    ) -> None:
        self._ownership = ownership
        self._journals = journals
        self._receiving = receiving
        self._peers = peers
        self._progress = progress
        self._lock = threading.Lock()
        self._pulls: dict[str, _Pull] = {}

    def pull(
        self, record: VolumeRecord, epoch: int, choice: Choice, deadline: Deadline
    ) -> None:
        """
        Return when this node's copy is at the commit that *choice* begins with.

        Raises:
            NotOwnerError: the transfer still runs, or no holder could send it.

        """
        with self._lock:
            before = under_way = self._pulls.get(record.id)
            if before is None or before.choice.base != choice.base:
                self._note("catching-up", record, choice.base, choice.holders)
            if under_way is not None and under_way.brings(choice.base):
                under_way.choice, under_way.epoch = choice, epoch
            else:
                under_way = self._pulls[record.id] = _Pull(choice, epoch)
                run = partial(self._run, record, under_way, before)
                under_way.work = begun(run, name="pulling")
                under_way.work.add_done_callback(under_way.end)
        wait([under_way.work], max(0.0, deadline.remaining_s() - _ANSWER_S))
        if self._is_at(record, choice.base):
            return
        names = " and ".join(
            f"'{self._ownership.name_of(each)}'" for each in choice.holders
        )
        if not under_way.work.done():
            percent = self._progress.receiving_percent(record.id)
            so_far = "" if percent is None else f", {percent} %"
            raise NotOwnerError(
                f"'{record.name}' is catching up with node {names}{so_far}",
                hint="retry; it goes on meanwhile",
                transient=True,
            )
        raise NotOwnerError(
            f"commit {choice.base} of '{record.name}' could not be had from node "
            f"{names}: {under_way.fault}",
            hint="see the daemon's log there",
            transient=True,
        )

    def _is_at(self, record: VolumeRecord, commit: Commit) -> bool:
        """Return whether this node's copy is at *commit*, and all of it in place."""
        copy, home = self._ownership.copy_state(record), self._journals.home(record)
        at = copy is not None and copy.commit == commit
        return at and home is not None and is_whole(home)

    def _run(self, record: VolumeRecord, pull: _Pull, before: _Pull | None) -> None:
        if before is not None:
            before.unwanted.set()
            if not wait([before.work], _END_WAIT_S).done:
                pull.fault = f"commit {before.choice.base} is still taken in"
                return
        tried = {self._ownership.node_id}
        while left := [each for each in pull.choice.holders if each not in tried]:
            if not self._is_wanted(record, pull):
                return
            holder = left[0]
            tried.add(holder)
            self._receiving.expect(record.id, holder, pull.choice.base)
            try:
                self._fetch_from(holder, record, pull)
            except RemoraError as error:
                pull.fault = str(error)
                log.warning(
                    "not taken over: %s",
                    error,
                    extra=fields(volume=record.name, holder=holder),
                )
            else:
                self._note("caught-up", record, pull.choice.base, [holder])
                return
            finally:
                base = pull.choice.base
                self._receiving.expect_nothing(record.id, holder, base)

    def _is_wanted(self, record: VolumeRecord, pull: _Pull) -> bool:
        """Return whether this node may yet begin with what *pull* brings."""
        heads = self._ownership.heads
        head, lineage = heads.read(record.id).head, heads.lineage(record.id)
        if head is None or head.owner != self._ownership.node_id:
            return False
        return not pull.unwanted.is_set() and lineage.newest(head.epoch) < pull.epoch

    def _note(
        self, kind: str, record: VolumeRecord, commit: Commit, holders: Iterable[str]
    ) -> None:
        others = sorted({*holders} - {self._ownership.node_id})
        self._ownership.events.add(
            record, kind, commit=str(commit), holders=",".join(others)
        )

    def _fetch_from(self, holder: str, record: VolumeRecord, pull: _Pull) -> None:
        base = pull.choice.base

        def to_keep(copy: CopyState, *, stopped: bool) -> Kept | None:
            del stopped
            epoch = pull.epoch
            lineage = self._ownership.heads.lineage(record.id)
            grown = lineage.after(epoch, base, self._ownership.node_id)
            return rules.take_over(copy, epoch=epoch, base=base, lineage=grown)

        def doubted() -> bool:
            lease = self._ownership.nodes.lease_of(holder)
            return not lease or holder not in pull.choice.holders

        have = self._have(record)
        paths: list[str] = []
        size_bytes = 0
        for _ in range(_ROUNDS_MAX):
            request = SendRequest(
                record.id, record.name, pull.epoch, pair(base), have, tuple(paths)
            )
            patience = Patience(
                *(self._peers, holder, record.id),
                doubted=doubted,
                wanted=partial(self._is_wanted, record, pull),
            )
            sent = self._peers.call(
                holder,
                "send",
                msgspec.to_builtins(request),
                deadline_s=TRANSFER_DEADLINE_S,
                patient=patience,
            )
            size_bytes += max(0, sent.get("carried_bytes", 0))
            answer = self._receiving.receive(record, base, to_keep)
            if "commit" in answer:
                self._progress.count("receiving", size_bytes=size_bytes, commits=1)
                return
            paths = answer.get("missing", [])
            # A sealed copy stands still: if more is missing when all that was told has
            # come, not all was told.
            is_far = bool(request.paths) or len(paths) >= _FAR_BEHIND_FROM
            if "full" in answer:
                have = pair(EMPTY)
            elif is_far and have != pair(EMPTY):
                have, paths = pair(EMPTY), []
        raise PeerRefusedError("there is always something missing")

    def _have(self, record: VolumeRecord) -> tuple[int, int]:
        with self._journals.using(record, Deadline(_REFRESH_DEADLINE_S)) as journal:
            copy = self._ownership.copy_state(record)
            at = journal.commit()
        if copy is None or copy.live_epoch or pair(copy.commit) != at:
            return pair(EMPTY)
        return at


class _Pull:
    """
    A transfer under way, of the commit that *choice*, the last one, begins with.

    It is for *epoch* alone, that of the last Mount that chose this commit: what a later
    one has voted with, and begun with, is not to change under it.
    """

    def __init__(self, choice: Choice, epoch: int) -> None:
        self.choice = choice
        self.epoch = epoch
        self.unwanted = threading.Event()
        self.work: Future[None] = Future()
        self.fault = "no holder answered"

    def end(self, work: Future[None]) -> None:
        """Note why it has ended, if not by the rules; it may never have begun."""
        log_fault(work)
        if error := work.exception():
            self.fault = str(error)

    def brings(self, commit: Commit) -> bool:
        """Return whether it goes on, and brings *commit*."""
        return not self.work.done() and self.choice.base == commit
