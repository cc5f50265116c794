"""
Sending this node's copy on request: to a new owner, or to a member that has none yet.

A recovering owner asks a holder for its commit. The holder sends a sealed copy only,
and only if the store says that the asker recovers the volume. An owner that fills its
members asks one that it has just filled to bring the files to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import msgspec

from backends.base import WholeNumber
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.system.clock import Deadline
from plugin.errors import PeerRefusedError
from plugin.model import NodeId, VolumeId, VolumeName, VolumeRecord
from plugin.ownership.state import EMPTY, Commit
from plugin.ownership.view import OwnershipView
from plugin.ownership.votes import require_recovering
from plugin.replication.deliveries import Deliveries
from plugin.replication.journals import Journals
from plugin.replication.missing_paths import decoded_paths
from plugin.replication.room import on_disk_of
from plugin.replication.transfer import RsyncTransfer

# Of a whole volume, while there is work on it: see `at_work.Patience`.
TRANSFER_DEADLINE_S: Final = 6 * 3600.0
_USE_DEADLINE_S: Final = 30.0
# So often it is seen whether who asks has given up.
_LOOK_S: Final = 1.0


class SendRequest(msgspec.Struct, frozen=True):
    """What a recovering owner asks of a holder: *commit*, as changes since *have*."""

    volume: VolumeId
    name: VolumeName
    epoch: WholeNumber
    commit: tuple[WholeNumber, WholeNumber]
    have: tuple[WholeNumber, WholeNumber]
    paths: tuple[str, ...] = ()


class AheadRequest(msgspec.Struct, frozen=True):
    """What an owner asks of a member: to send its files ahead to member *node*."""

    volume: VolumeId
    name: VolumeName
    epoch: WholeNumber
    node: NodeId


class Handing:
    """Sends this node's copy when other nodes ask for it."""

    def __init__(
        self,
        ownership: OwnershipView,
        journals: Journals,
        transfer: RsyncTransfer,
        deliveries: Deliveries,
        *,
        find: Callable[[str], VolumeRecord | None],
    ) -> None:
        self._ownership = ownership
        self._journals = journals
        self._transfer = transfer
        self.workers = deliveries.workers
        self._deliveries = deliveries
        self._find = find

    def send(self, node_id: str, request: SendRequest) -> Mapping[str, Any]:
        """
        Answer a recovering owner's request when rsync has sent the commit.

        Raises:
            PeerRefusedError: it may not have it, or our copy is at another commit.

        """
        heads = self._ownership.heads
        record = require_recovering(heads, self._find, node_id, request)
        self._require_recovered(record, request.epoch)
        commit = Commit(*request.commit)
        # What it gets by that need not be sent again; two at once would end each other.
        while not self._deliveries.wait(record.id, node_id, Deadline(_LOOK_S)):
            self._require_recovered(record, request.epoch)
        with (
            self.workers.working(record.id),
            self._journals.using(record, Deadline(_USE_DEADLINE_S)) as journal,
        ):
            if not self._ownership.is_sealed(record, commit):
                raise PeerRefusedError(f"this copy is not at commit {commit}")
            if journal.commit() != request.commit:
                journal.record(journal.look(EVERYTHING), request.commit)
            size_bytes = self._send(node_id, record, journal, request)
        if not request.paths:
            self._transfer.progress.count("sending", commits=1)
        return {"carried_bytes": size_bytes}

    def _require_recovered(self, record: VolumeRecord, epoch: int) -> None:
        """Raise PeerRefusedError unless who asks is about to begin the volume."""
        head = self._ownership.heads.read(record.id).head
        if head is None or (head.epoch, head.phase) != (epoch, "recovering"):
            raise PeerRefusedError(f"'{record.name}' is not recovered any more")

    def send_ahead(self, node_id: str, request: AheadRequest) -> Mapping[str, Any]:
        """
        Answer an owner's request when rsync has brought the files to another member.

        This copy may change meanwhile: the files count for nothing before the owner's
        commit comes, which names all of them.

        Raises:
            PeerRefusedError: this copy has no commit, or the other node is no member.
            RemoraError: they could not be brought.

        """
        heads = self._ownership.heads
        record = require_recovering(heads, self._find, node_id, request)
        head = heads.read(record.id).head
        if head is None or request.node not in head.members:
            raise PeerRefusedError(f"'{record.name}' is not kept by {request.node}")
        with (
            self.workers.working(record.id),
            self._journals.using(record, Deadline(_USE_DEADLINE_S)) as journal,
        ):
            copy = self._ownership.copy_state(record)
            if copy is None or copy.live_epoch or copy.commit == EMPTY:
                raise PeerRefusedError(f"this copy of '{record.name}' has no commit")
            # Not from the commit's snapshot: the next commit would delete that.
            source, size_bytes = journal.live, journal.used_bytes()
        with self.workers.working(record.id):
            carried = self._transfer.send_ahead(
                request.node,
                volume_id=record.id,
                epoch=request.epoch,
                source=source,
                total_bytes=size_bytes,
            )
        return {"carried_bytes": carried}

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
        size_bytes = 0
        if have == EMPTY and not paths:
            size_bytes = self._transfer.send_ahead(
                node_id,
                volume_id=record.id,
                epoch=commit.epoch,
                source=journal.source(),
                total_bytes=journal.used_bytes(),
            )
        try:
            with on_disk_of(self._ownership.own.name):
                package = journal.pack(
                    base,
                    only=paths,
                    valid=lambda: self._ownership.is_sealed(record, commit),
                )
            size_bytes += self._transfer.send(
                node_id,
                volume_id=record.id,
                commit=commit,
                source=package.directory,
                names=[package.names],
                total_bytes=package.size_bytes,
            )
        finally:
            journal.unpack()
        return size_bytes
