"""
Taking over: a node that comes to own a volume asks a holder for its newest commit.

The transfer goes on when the engine's time for the Mount is over; the next Mount finds
it further, or done. The holder sends only what its sealed copy is, and only to the node
that the store says recovers the volume.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

import msgspec

from backends.errors import RemoraError
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.system.clock import Deadline
from plugin.cluster import rules
from plugin.cluster.ownership import Ownership
from plugin.cluster.state import EMPTY, Choice, Commit, Kept, RefusedError, Replica
from plugin.cluster.votes import require_recovering
from plugin.errors import NotOwnerError, PeerRefusedError
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.peers.channel import Peers
from plugin.peers.lines import read_request
from plugin.replication.copies import Copies
from plugin.replication.progress import Progress
from plugin.replication.receiving import Receiving, decoded_paths, pair
from plugin.replication.transfer import Transfer

log = logging.getLogger(__name__)
_TRANSFER_DEADLINE_S: Final = 6 * 3600.0
_REFRESH_DEADLINE_S: Final = 2.0
_ROUNDS_MAX: Final = 20
# Before the Mount's own deadline, whose error would say less.
_ANSWER_S: Final = 1.0


class SendRequest(msgspec.Struct, frozen=True):
    """What a recovering owner asks of a holder: *commit*, leading on from *have*."""

    volume: str
    name: str
    epoch: int
    commit: tuple[int, int]
    have: tuple[int, int]
    paths: tuple[str, ...] = ()


class Pulling:
    """The taking side."""

    def __init__(
        self,
        ownership: Ownership,
        copies: Copies,
        receiving: Receiving,
        peers: Peers,
        progress: Progress,
    ) -> None:
        self._ownership = ownership
        self._copies = copies
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
            NotOwnerError: it is not yet, or no holder could send it.

        """
        with self._lock:
            under_way = self._pulls.get(record.id)
            if under_way is None or under_way.choice.base != choice.base:
                self._note("catching-up", record, choice.base, choice.holders)
            if under_way is None or not under_way.thread.is_alive():
                under_way = _Pull(choice)
                under_way.thread = threading.Thread(
                    target=self._run,
                    args=(record, epoch, under_way),
                    name="pulling",
                    daemon=True,
                )
                self._pulls[record.id] = under_way
                under_way.thread.start()
        under_way.thread.join(max(0.0, deadline.remaining_s() - _ANSWER_S))
        if self._is_at(record, choice.base):
            return
        names = " and ".join(
            f"'{self._ownership.name_of(each)}'" for each in choice.holders
        )
        if under_way.thread.is_alive():
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
        replica = self._ownership.replica_of(record)
        return replica is not None and replica.commit == commit

    def _run(self, record: VolumeRecord, epoch: int, pull: _Pull) -> None:
        for holder in pull.choice.holders:
            if holder == self._ownership.node_id:
                continue
            self._receiving.expect(record.id, holder)
            try:
                self._take_from(holder, record, epoch, pull.choice.base)
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
                self._receiving.expect_nothing(record.id)

    def _note(
        self, kind: str, record: VolumeRecord, commit: Commit, holders: Iterable[str]
    ) -> None:
        others = sorted({*holders} - {self._ownership.node_id})
        self._ownership.events.add(
            record, kind, commit=str(commit), holders=",".join(others)
        )

    def _take_from(
        self, holder: str, record: VolumeRecord, epoch: int, base: Commit
    ) -> None:
        lineage = self._ownership.heads.lineage(record.id)
        grown = lineage.after(epoch, base, self._ownership.node_id)

        def taken(replica: Replica, *, stopped: bool) -> Kept | None:
            del stopped
            head = self._ownership.heads.read(record.id).head
            if head is None or head.owner != self._ownership.node_id:
                raise RefusedError("not-owner")
            return rules.take_over(
                replica, epoch=replica.promised, base=base, lineage=grown
            )

        have = self._have(record)
        paths: list[str] = []
        carried_bytes = 0
        for _ in range(_ROUNDS_MAX):
            request = SendRequest(
                record.id, record.name, epoch, pair(base), have, tuple(paths)
            )
            sent = self._peers.call(
                holder,
                "send",
                msgspec.to_builtins(request),
                deadline_s=_TRANSFER_DEADLINE_S,
            )
            carried_bytes += _carried_bytes(sent)
            answer = self._receiving.take(record, base, taken)
            if "commit" in answer:
                self._receiving.count(carried_bytes)
                return
            paths = answer.get("missing", [])
            if "full" in answer:
                have = pair(EMPTY)
        raise PeerRefusedError("there is always something missing")

    def _have(self, record: VolumeRecord) -> tuple[int, int]:
        with self._copies.using(record, Deadline(_REFRESH_DEADLINE_S)) as journal:
            replica = self._ownership.replica_of(record)
            at = journal.commit()
        if replica is None or replica.live_epoch or pair(replica.commit) != at:
            return pair(EMPTY)
        return at


def _carried_bytes(answer: Mapping[str, Any]) -> int:
    told = answer.get("carried_bytes", 0)
    return told if isinstance(told, int) else 0


class _Pull:
    """One transfer under way."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.thread = threading.Thread()
        self.fault = "no holder answered"


class Handing:
    """The giving side."""

    def __init__(
        self,
        ownership: Ownership,
        copies: Copies,
        transfer: Transfer,
        *,
        find: Callable[[str], VolumeRecord | None],
    ) -> None:
        self._ownership = ownership
        self._copies = copies
        self._transfer = transfer
        self._find = find

    def send(self, node_id: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        Answer a recovering owner's request when rsync has sent the commit.

        Raises:
            PeerRefusedError: it may not have it, or this node's copy is another.

        """
        request = read_request(message, SendRequest)
        heads = self._ownership.heads
        record = require_recovering(heads, self._find, node_id, request)
        head = heads.read(record.id).head
        if head is None or head.phase != "recovering":
            raise PeerRefusedError(f"'{record.name}' is not recovered any more")
        commit = Commit(*request.commit)
        with self._copies.using(record, Deadline(_TRANSFER_DEADLINE_S)) as journal:
            self._require_sealed(record, commit)
            if journal.commit() != request.commit:
                journal.record(journal.look(EVERYTHING, ()), request.commit)
            carried_bytes = self._send(node_id, record, journal, request)
        if not request.paths:
            self._transfer.progress.count("sending", commits=1)
        return {"carried_bytes": carried_bytes}

    def _send(
        self,
        node_id: str,
        record: VolumeRecord,
        journal: Journal,
        request: SendRequest,
    ) -> int:
        commit, have = Commit(*request.commit), Commit(*request.have)
        lineage = self._ownership.heads.lineage(record.id)
        known = journal.manifest.since(request.have) is not None
        base = None
        if known and have < commit and lineage.contains(have, at=commit.epoch):
            base = request.have
        paths: Collection[bytes] = decoded_paths(list(request.paths))
        carried_bytes = 0
        if have == EMPTY and not paths:
            carried_bytes = self._transfer.send_ahead(
                node_id,
                volume_id=record.id,
                epoch=commit.epoch,
                source=journal.source(),
                total_bytes=journal.manifest.size_bytes(),
            )
        package = journal.pack(base, only=paths)
        self._require_sealed(record, commit)
        carried_bytes += self._transfer.send(
            node_id,
            volume_id=record.id,
            commit=commit,
            source=package.directory,
            names=[package.names],
            total_bytes=package.size_bytes,
        )
        journal.unpack()
        return carried_bytes

    def _require_sealed(self, record: VolumeRecord, commit: Commit) -> None:
        replica = self._ownership.replica_of(record)
        if replica is None or replica.live_epoch or replica.commit != commit:
            raise PeerRefusedError(f"this copy is not at commit {commit}")
