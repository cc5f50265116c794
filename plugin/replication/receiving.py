"""
The member's side: whether another node may send, and taking in what it has sent.

A commit is taken from the volume's owner, in its epoch, or from a holder that this node
has asked because it comes to own the volume. All is checked again when it is taken in:
the copy may have promised to another owner meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Final

from backends.errors import BackendError
from backends.rsync.journal.delta import Delta
from backends.rsync.journal.fitting import described
from backends.rsync.journal.journal import Journal
from backends.rsync.journal.partial import keep
from backends.system.clock import Deadline
from plugin.errors import PeerRefusedError
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.state import EMPTY, Commit, CopyState, Head, Kept, RefusedError
from plugin.ownership.view import OwnershipView
from plugin.peers.server import StagingPlace
from plugin.peers.sharing import AHEAD_SEQ
from plugin.replication.incoming import Incoming
from plugin.replication.journals import Journals
from plugin.replication.missing_paths import encoded_paths
from plugin.replication.progress import Progress
from plugin.replication.redoing import Redoing
from plugin.replication.requests import CommitRequest, StandRequest
from plugin.replication.room import Room
from plugin.replication.sessions import Session, Sessions

log = logging.getLogger(__name__)
_REFRESH_DEADLINE_S: Final = 2.0
_USE_DEADLINE_S: Final = 30.0
_STILL_DEADLINE_S: Final = 5.0
# A commit of fewer names is applied before its sender is answered: it takes no time.
_ANSWER_BEFORE_FROM: Final = 1000
# rsync went through all files; with 23 and 24 it left some as they had come before.
_WHOLE: Final = (0, 23, 24)


class Receiving:
    """The daemon's word on each transfer; see `peers.server.Receiver`."""

    def __init__(  # noqa: PLR0913 - the composition root names each of them
        self,
        ownership: OwnershipView,
        journals: Journals,
        *,
        find: Callable[[str], VolumeRecord | None],
        by_id: Callable[[str], VolumeRecord | None],
        room: Room,
        stop_writers: Callable[[VolumeRecord], bool],
        note_apart: Callable[[str], None],
        progress: Progress,
        nice: int,
    ) -> None:
        self._heads = ownership.heads
        self._node_id = ownership.node_id
        self._events = ownership.events
        self._journals = journals
        self._find = find
        self._by_id = by_id
        self._room = room
        self._stop_writers = stop_writers
        self._note_apart = note_apart
        self._progress = progress
        self._nice = nice
        self._expected: dict[str, str] = {}
        self._sessions = Sessions()
        self._departing: set[str] = set()
        self._incoming = Incoming()
        self._redoing = Redoing()

    def expect(self, volume_id: str, node_id: str, commit: Commit) -> None:
        """
        Let *node_id*, a holder, send *commit* of a volume that this node recovers.

        What holders have sent of it before stays: all have the same bytes.
        """
        self._incoming.pull(volume_id, commit)
        self._expected[volume_id] = node_id

    def expect_nothing(self, volume_id: str, node_id: str, commit: Commit) -> None:
        """End what `expect` allowed, and the transfer: it keeps the holder's copy."""
        self._expected.pop(volume_id, None)
        self._sessions.hang_up_of(node_id, volume_id, commit.epoch)

    @contextmanager
    def departing(self, volume_id: str) -> Iterator[None]:
        """
        Inside the block, refuse to say what this node's copy has: it may be removed.

        An owner that asked earlier had made this node a member in the store, so the
        caller, which reads the store inside the block, sees that.
        """
        self._departing.add(volume_id)
        self._incoming.forget(volume_id)
        try:
            yield
        finally:
            self._departing.discard(volume_id)

    def begin(
        self,
        node_id: str,
        *,
        volume: str,
        epoch: int,
        seq: int,
        hang_up: Callable[[], None],
    ) -> StagingPlace:
        """
        Return where the commit (*epoch*, *seq*) of *volume* from *node_id* goes.

        Earlier transfers from *node_id* are ended; if it is the owner, or was asked by
        us, so are those from other nodes.

        Raises:
            PeerRefusedError: it may not, another node does, or the disk is too full.

        """
        commit = Commit(epoch, seq)
        head = self._require_sender(node_id, volume, commit)
        record = self._by_id(volume)
        if record is None:
            raise PeerRefusedError(f"volume {volume} is not known here")
        copy = self._journals.copy_states.read(volume, initial=EMPTY)
        if copy is None:
            self._journals.make(record, head.epoch, Deadline(_USE_DEADLINE_S))
        elif self._expected.get(volume) != node_id and head.epoch < copy.promised:
            raise PeerRefusedError(
                f"stale-epoch: epoch {copy.promised} of volume {volume} was "
                f"promised, {head.epoch} is over"
            )
        if self._journals.home(record) is None:
            raise PeerRefusedError(f"the copy of volume {volume} has gone")
        self._room.require(record)
        # A marked commit is applied first: no other node may write to its files.
        with self._journals.using(record, Deadline(_USE_DEADLINE_S)) as journal:
            if node_id not in (head.owner, self._expected.get(volume)):
                self._sessions.require_alone(node_id, volume)
            self._sessions.hang_up(volume)
            empty = copy is None or copy.commit == EMPTY
            basis = self._journals.basis(record)
            clean = keep(journal.staging, basis, is_tree=seq == AHEAD_SEQ)
            self._incoming.note(volume, journal.home, commit, empty=empty, clean=clean)
            number = self._progress.begin("receiving", volume, node_id)
            self._sessions.add(Session(node_id, volume, commit, number, hang_up))
            place = journal.staging.directory(), basis, journal.staging.lock
        return StagingPlace(*place, nice=self._nice, is_tree=seq == AHEAD_SEQ)

    def end(
        self,
        node_id: str,
        *,
        volume: str,
        epoch: int,
        seq: int,
        exit_status: int | None,
    ) -> None:
        """Forget the transfer: its files are looked at when the commit is asked for."""
        ended = self._sessions.take_out(node_id, volume, Commit(epoch, seq))
        self._progress.end(ended.number)
        if seq == AHEAD_SEQ and exit_status in _WHOLE:
            self._incoming.note_all_ahead(volume, skipped=exit_status != 0)

    def commit_of_copy(self, node_id: str, request: StandRequest) -> Mapping[str, Any]:
        """
        Answer which commit our copy is at: zeros if there is none, or it is live.

        ``lacking`` says why no other commit is taken: the disk is too full. ``ahead``:
        files were sent ahead of a commit, and only who knows since when may bring that.
        ``unfit``: what of its commit the copy lacks. ``in_place``: it has been applied.
        ``applying``: it is, and no other one is taken before that.
        """
        del node_id
        volume_id, record = request.volume, self._by_id(request.volume)
        if volume_id in self._departing:
            raise PeerRefusedError(f"the copy of volume {volume_id} may be going")
        copy = self._journals.copy_states.read(volume_id, initial=EMPTY)
        commit = EMPTY if copy is None or copy.live_epoch else copy.commit
        applying = self._redoing.is_under_way(volume_id)
        return {
            "commit": [*pair(commit)],
            "lacking": self._room.lacking(record) if record else "",
            "ahead": self._incoming.is_ahead(volume_id),
            "unfit": self._journals.unfit(record) if record else "",
            "in_place": self._journals.copy_states.in_place(volume_id),
            "applying": applying or bool(record and self._journals.is_applying(record)),
        }

    def commit(self, node_id: str, request: CommitRequest) -> Mapping[str, Any]:
        """
        Answer an owner's request to take in what it has sent.

        ``commit``: it is our copy's now, in place or about to be. ``missing``: send
        these paths as well. ``full``: the delta does not lead on from our copy; it has
        to name everything.

        Raises:
            PeerRefusedError: it may not be; nothing has changed.

        """
        wanted = Commit(request.epoch, request.seq)
        at = self._require_sender(node_id, request.volume, wanted).epoch
        record = self._find(request.name)
        if record is None or record.id != request.volume:
            raise PeerRefusedError(f"volume {request.volume} is not known here")
        lineage = self._heads.lineage(record.id)

        def to_keep(copy: CopyState, *, stopped: bool) -> Kept | None:
            return rules.receive(copy, wanted, lineage, at=at, writers_stopped=stopped)

        self._incoming.note_last(record.id, last=request.last)
        receive = partial(self.receive, record, wanted, to_keep, request.since)
        answer: dict[str, Any] = self._redoing.answered(receive)
        if "commit" in answer:
            self._progress.count(
                "receiving", size_bytes=request.carried_bytes, commits=1
            )
            log.info(
                "received",
                extra=fields(volume=record.name, commit=str(wanted), sender=node_id),
            )
            self._events.add(record, "received", commit=str(wanted), sender=node_id)
        return answer

    def receive(
        self,
        record: VolumeRecord,
        wanted: Commit,
        rule: Callable[..., Kept | None],
        since: tuple[int, int] | None = None,
        early: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """
        Return the answer to a request to take commit *wanted* in; see `commit`.

        *rule* returns the next copy state, or refuses. *since*: see `come_for`. *early*
        gets the answer before a commit of many names is applied.
        """
        answer = {"commit": list(pair(wanted))}
        with self._journals.using(record, Deadline(_USE_DEADLINE_S)) as journal:
            copy = self._copy_state(record)
            if copy.commit == wanted and not copy.live_epoch:
                return answer
            # No container is ended for what is refused.
            _applied(rule, copy, stopped=True)
            stopped = not copy.live_epoch or self._stop_writers(record)
            kept = _applied(rule, copy, stopped=stopped)
            if kept is None:
                return answer
            # Nobody needs a transfer any more that seems to be under way still.
            self._sessions.hang_up(record.id)
            with (
                journal.staging.still(Deadline(_STILL_DEADLINE_S)),
                journal.staged() as delta,
            ):
                if delta.header.commit != pair(wanted):
                    raise PeerRefusedError(f"commit {wanted} has not been sent")
                apart = kept.keep_live or kept.keep_commit
                base = delta.header.base
                if base is not None and (apart or base != journal.commit()):
                    return {"full": True}
                if apart:
                    self._keep_apart(record, journal, copy)
                missing = journal.staging.missing(
                    *(delta, journal.manifest),
                    self._incoming.come_for(record.id, delta.header, since),
                    refused=self._incoming.refused(record.id),
                )
                if missing:
                    return {"missing": encoded_paths(missing)}
                now = partial(early, answer) if early else None
                self._take(record, journal, delta, rule, now)
        return answer

    def _take(
        self,
        record: VolumeRecord,
        journal: Journal,
        delta: Delta,
        rule: Callable[..., Kept | None],
        answer: Callable[[], None] | None,
    ) -> None:
        """Make the commit ours, and apply it; of many names, *answer* before that."""
        # No promise is to wait for it.
        self._incoming.flush(record.id, journal)
        self._mark(record, journal, delta, rule)
        self._incoming.forget(record.id)
        is_large = delta.header.entries >= _ANSWER_BEFORE_FROM
        with self._redoing.afterwards(record.id, answer if is_large else None):
            self._journals.put_in_place(record, journal)

    def _mark(
        self,
        record: VolumeRecord,
        journal: Journal,
        delta: Delta,
        rule: Callable[..., Kept | None],
    ) -> None:
        """Put our copy at the commit, unless it has promised another epoch by now."""
        with self._journals.copy_states.changing(record.id):
            kept = _applied(rule, self._copy_state(record), stopped=True)
            if kept is None or kept.keep_live or kept.keep_commit:
                raise PeerRefusedError("the copy has changed meanwhile")
            urgent = self._incoming.is_urgent(record.id)
            unfit = journal.staging.mark(delta, urgent=urgent)
            self._journals.copy_states.write(record.id, kept.copy)
        if unfit:
            lacks = described(unfit)
            log.warning("%s", lacks, extra=fields(volume=record.name))
            self._events.add(record, "unfit", lacks=lacks)

    def set_apart(self, record: VolumeRecord) -> None:
        """Set this copy's bytes apart; the caller keeps others from using the copy."""
        home = self._journals.require_home(record)
        with closing(Journal(home, record.id)) as journal:
            with journal.staging.still(Deadline(_STILL_DEADLINE_S)):
                self._journals.apply(record, journal)
            self._keep_apart(record, journal, self._copy_state(record))

    def _keep_apart(
        self, record: VolumeRecord, journal: Journal, copy: CopyState
    ) -> None:
        """Set bytes apart that no other copy has; only people delete them."""
        name = str(rules.seal(copy).commit)
        place = journal.keep_apart(name)
        log.warning(
            "bytes that no other copy has were set apart",
            extra=fields(volume=record.name, commit=name, path=str(place)),
        )
        self._events.add(record, "set-apart", commit=name, path=str(place))
        self._journals.begin_empty(record, journal)
        self._note_apart(record.id)

    def _copy_state(self, record: VolumeRecord) -> CopyState:
        copy = self._journals.copy_states.read(record.id, initial=EMPTY)
        if copy is None:
            raise BackendError(f"there is no copy of '{record.name}' here")
        return copy

    def _require_sender(self, node_id: str, volume: str, commit: Commit) -> Head:
        """Return the head if *node_id* may send *commit*, or files ahead of it."""
        head = self._heads.read(volume).head
        if not self._may_send(head, node_id, volume, commit):
            self._heads.refresh(_REFRESH_DEADLINE_S)
            head = self._heads.read(volume).head
        if head is None or self._node_id not in (*head.members, head.owner):
            raise PeerRefusedError(f"not-a-member: volume {volume} has no copy here")
        if not self._may_send(head, node_id, volume, commit):
            raise PeerRefusedError(
                f"stale-epoch: node {node_id} does not own volume {volume} "
                f"in epoch {commit.epoch}"
            )
        return head

    def _may_send(
        self, head: Head | None, node_id: str, volume: str, commit: Commit
    ) -> bool:
        if head is None:
            return False
        # A holder that has come to own the volume meanwhile sends its own commits.
        if self._expected.get(volume) == node_id and head.owner == self._node_id:
            return head.phase == "recovering" and commit.epoch < head.epoch
        if self._node_id not in head.members:
            return False
        ahead = commit.seq == AHEAD_SEQ
        if head.released:
            # Any holder may have to send the last commit to others.
            epoch, seq = pair(head.committed)
            last = commit.epoch == epoch and (ahead or commit.seq == seq)
            return last and node_id in head.holders
        # An owner asks a holder to send files ahead.
        owns = head.owner == node_id and head.phase == "owned"
        may = owns or (ahead and node_id in head.holders)
        return may and commit.epoch == head.epoch


def pair(commit: Commit) -> tuple[int, int]:
    """Return *commit* as the journal writes it: epoch and number."""
    return commit.epoch, commit.seq


def _applied(
    rule: Callable[..., Kept | None], copy: CopyState, *, stopped: bool
) -> Kept | None:
    try:
        return rule(copy, stopped=stopped)
    except RefusedError as error:
        raise PeerRefusedError(f"{error.reason} (here: {error.epoch})") from None
