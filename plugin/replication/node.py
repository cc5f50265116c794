"""What replication consists of on a node of a cluster, built from its parts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
from msgspec import UNSET

from backends.errors import RemoraError
from backends.rsync.backend import RsyncBackend
from backends.system.clock import Deadline
from plugin.errors import PeerRefusedError
from plugin.model import VolumeId, VolumeRecord
from plugin.ownership.failsafe import Holds
from plugin.ownership.holders import Holders
from plugin.ownership.keeper import Keeper
from plugin.ownership.parts import Asking, OfVolume
from plugin.ownership.state import Choice, Commit, Head
from plugin.ownership.view import OwnershipView
from plugin.peers.channel import Peers
from plugin.peers.control import Handler
from plugin.peers.questions import NoBody, Question, anybody
from plugin.replication import at_work, pacing, quarantine, reporting, room
from plugin.replication.at_work import WorkRequest
from plugin.replication.departing import Departing
from plugin.replication.handing import AheadRequest, Handing, SendRequest
from plugin.replication.journals import Journals, is_whole
from plugin.replication.looking import Looking
from plugin.replication.moments import Moments
from plugin.replication.moving import MoveStateRequest, Moving
from plugin.replication.pauses import PauseFacts
from plugin.replication.placement import Placement
from plugin.replication.progress import (
    CopyFacts,
    Progress,
    TransferFacts,
    TransferUnderWay,
)
from plugin.replication.pulling import Pulling
from plugin.replication.receiving import Receiving
from plugin.replication.reporting import Reporting
from plugin.replication.requests import CommitRequest, StandRequest
from plugin.replication.room import Room, RoomRequest
from plugin.replication.sending import Sending
from plugin.replication.syncing import Syncing
from plugin.replication.together import Together
from plugin.replication.transfer import RsyncTransfer

# The requests of `ReplicationNode.questions` that take as long as a transfer.
TRANSFERS: Final = ("commit", "send", "ahead")
_UNUSED_WAIT_S: Final = 2.0


class UnusedRequest(msgspec.Struct, frozen=True):
    """A volume that was not released is to be removed."""

    volume: VolumeId


class ReplicationNode:
    """The parts, built; to ownership it is a `Replication`, see `bytes_port.py`."""

    def __init__(  # noqa: PLR0913 - the composition root names each of them
        self,
        ownership: OwnershipView,
        backend: RsyncBackend,
        journals: Journals,
        peers: Peers,
        *,
        asking: Asking,
        holds: Holds,
        find: Callable[[str], VolumeRecord | None],
        by_id: Callable[[str], VolumeRecord | None],
        records: Callable[[Collection[str]], Sequence[VolumeRecord]],
        of_group: Callable[[str], Sequence[VolumeRecord]],
        keeper: Keeper,
        nice: int,
        placement: Placement,
        look_interval_s: float,
    ) -> None:
        self._holds, self._asking, self._records = holds, asking, records
        self._ownership, self._held, self.progress = ownership, keeper.held, Progress()
        self._journals, self._reporting = journals, Reporting(self.progress, peers)
        transfer, name = RsyncTransfer(peers, self.progress), ownership.own.name
        self._room = Room(journals, node_name=name, by_id=by_id)
        self.receiving = receiving = Receiving(
            *(ownership, journals),
            find=find,
            by_id=by_id,
            room=self._room,
            stop_writers=keeper.stop_writers,
            note_apart=partial(quarantine.note, ownership, backend.quarantine),
            progress=self.progress,
            nice=nice,
        )
        self._pulling = Pulling(ownership, journals, receiving, peers, self.progress)
        sending = Sending(peers, transfer, node_name=name)
        self._handing = Handing(
            *(ownership, journals, transfer, sending.deliveries), find=find
        )
        moments = self._moments_of(keeper, look_interval_s)
        self._together = Together(ownership, moments, self.progress, of_group)
        self._syncing = Syncing(
            *(ownership, journals, sending),
            held=keeper.held,
            records=records,
            placement=placement,
            together=self._together,
        )
        self.moving = Moving(ownership, self._syncing, self.progress, asking, by_id)
        holders = Holders(ownership, asking)
        self.departing = Departing(ownership, holders, journals, receiving)

    def _moments_of(self, keeper: Keeper, look_interval_s: float) -> Moments:
        looking = Looking(self._journals, interval_s=look_interval_s)
        return Moments(looking, self.progress.pauses, keeper.pausing)

    def questions(self, part: Callable[[str, OfVolume], None]) -> dict[str, Handler]:
        """Return what other nodes may ask, that have a *part* in the volume."""
        receiving, handing = self.receiving, self._handing
        return {
            "unused": Question(UnusedRequest, part, self.answer_unused),
            "stand": Question(StandRequest, part, receiving.commit_of_copy),
            "commit": Question(CommitRequest, part, receiving.commit),
            "send": Question(SendRequest, part, handing.send),
            "ahead": Question(AheadRequest, part, handing.send_ahead),
            "move-state": Question(MoveStateRequest, part, self.moving.answer_state),
            at_work.REQUEST: Question(WorkRequest, part, handing.workers.answer),
            room.REQUEST: Question(RoomRequest, part, self._room.answer),
            reporting.REQUEST: Question(NoBody, anybody, self._reporting.answer),
        }

    def start(self) -> None:
        """Begin to keep members in step, and finish what a crash has left."""
        self._journals.repair()
        self._syncing.start()
        self._reporting.start()

    def stop(self) -> None:
        """End all of it; transfers under way end with the process."""
        self.moving.stop()
        self._reporting.stop()
        self._syncing.stop()
        self._journals.close()

    def final_sync(self, record: VolumeRecord, commit: Commit) -> tuple[str, ...]:
        """Return the other members that have *commit*; see `Syncing.final_sync`."""
        return self._syncing.final_sync(record, commit)

    def ready(self, record: VolumeRecord, deadline: Deadline) -> None:
        """Return when this node's copy, if there is one, is exactly its commit."""
        home = self._journals.home(record)
        if home is None or is_whole(home):
            return
        with self._journals.using(record, deadline):
            return

    def pull(
        self, record: VolumeRecord, epoch: int, choice: Choice, deadline: Deadline
    ) -> None:
        """Return when this node has the commit; see `Pulling.pull`."""
        self._pulling.pull(record, epoch, choice, deadline)

    def require_free(self, record: VolumeRecord) -> None:
        """Raise PeerRefusedError while an owner may rely on our word to wait."""
        self._holds.require_free(record.id)

    def require_unused(self, record: VolumeRecord, head: Head) -> None:
        """Raise PeerRefusedError if a node that can be reached knows of its use."""
        self._holds.require_free(record.id, insist=False)
        others = {*head.members, head.owner} - {self._ownership.node_id}
        answers = self._asking.call_all(
            sorted(others), "unused", {"volume": record.id}, deadline_s=_UNUSED_WAIT_S
        )
        for answer in answers.values():
            # Of what another node raised only the code and the text come.
            error = answer if isinstance(answer, RemoraError) else None
            if error is not None and error.code == PeerRefusedError.code:
                raise PeerRefusedError(error.cause)

    def answer_unused(self, node_id: str, request: UnusedRequest) -> Mapping[str, Any]:
        """Answer `require_unused`; refuse if it is mounted here, or may be there."""
        del node_id
        volume_id = request.volume
        if volume_id in {record.id for record, _ in self._held()}:
            raise PeerRefusedError(f"it is mounted on '{self._ownership.own.name}'")
        self._holds.require_free(volume_id, insist=False)
        return {}

    def copies_of(self, record: VolumeRecord) -> CopyFacts | None:
        """Return how far the volume's copies are; None where nodes share its bytes."""
        if self._ownership.is_shared(record):
            return None
        head = self._ownership.heads.head(record.id)
        faults = self.progress.behind(record.id)
        if (why := self.progress.failure(record.id)) and head is not None:
            others = {*head.members} - {self._ownership.node_id}
            faults |= dict.fromkeys(others, why)
        behind = {
            self._ownership.name_of(node_id): why
            for node_id, why in faults.items()
            if head is not None and node_id in head.members
        }
        return CopyFacts(
            [self._facts(each) for each in self.progress.under_way(record.id)],
            behind,
            slowed=pacing.told(record, self.progress.reading_s(record.id)),
            pauses=self.progress.pauses.facts(record.id),
            group=self._together.facts(record) or UNSET,
        )

    def transfers(self) -> list[dict[str, object]]:
        """Return how far all transfers are, for people."""
        transfers = self.progress.under_way()
        records = self._records({each.volume_id for each in transfers})
        names = {each.id: each.name for each in records}
        return [
            {
                "volume": names.get(each.volume_id, each.volume_id),
                **msgspec.to_builtins(self._facts(each)),
            }
            for each in transfers
        ]

    def sync_ages_s(self) -> dict[str, float]:
        """Return how long ago each volume that is mounted here was synced, by name."""
        ages = {
            record.name: self.progress.synced_before_s(record.id)
            for record, _ in self._held()
        }
        return {name: age_s for name, age_s in ages.items() if age_s is not None}

    def pauses(self) -> dict[str, PauseFacts]:
        """Return how long volumes that are mounted here have stood still, by name."""
        return {r.name: self.progress.pauses.facts(r.id) for r, _ in self._held()}

    def left_out(self) -> list[str]:
        """Return which volumes here are of no one moment with others of their group."""
        return [r.name for r, _ in self._held() if self._together.left_out(r.id)]

    def failures(self) -> dict[str, str]:
        """Return why no commit is made of volumes that are mounted here, by name."""
        found = {r.name: self.progress.failure(r.id) for r, _ in self._held()}
        return {name: why for name, why in found.items() if why}

    def _facts(self, transfer: TransferUnderWay) -> TransferFacts:
        return transfer.facts(self._ownership.name_of(transfer.node_id))
