"""
Promises: asking the other members of a volume for them, and giving them.

Silent is not dead: who lives and may have newer bytes is asked until it has answered,
or the new owner has to do without the volume. Only an end of a lease is an end.

A member that promises an epoch takes nothing from earlier owners any more. If it was an
owner itself, it first stops its writers for good and seals what they wrote, so that the
new owner can have it. It promises only what the store confirms: a thief of a node's key
cannot make a volume's copies useless.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from backends.base import WholeNumber
from backends.errors import RemoraError
from backends.system.clock import Deadline
from plugin.errors import PeerRefusedError, PeerUnreachableError
from plugin.logs import fields
from plugin.model import VolumeId, VolumeName, VolumeRecord
from plugin.ownership import rules
from plugin.ownership.copy_states import CopyStates
from plugin.ownership.heads import Heads
from plugin.ownership.sealing import Flushes, has_gone_back
from plugin.ownership.state import Choice, Commit, CopyState, Head, RefusedError
from plugin.ownership.view import initial_commit
from plugin.peers.channel import Peers

log = logging.getLogger(__name__)
# How long a round waits. Who is still busy then (it ends writers, it flushes) is asked
# again, and has meanwhile gone on. After a release a member is seldom missed.
_ORDERLY_WAIT_S: Final = 2.0
_FAILOVER_WAIT_S: Final = 5.0
# For a node with neither a lease nor a connection to here.
_ABSENT_WAIT_S: Final = 1.0
_REFRESH_DEADLINE_S: Final = 2.0


class AsksAll(Protocol):
    """How several nodes are asked at once; see `Peers` and `parts.Asking`."""

    def call_all(
        self,
        node_ids: Sequence[str],
        request: str,
        body: Mapping[str, Any],
        *,
        deadline_s: float,
    ) -> dict[str, Mapping[str, Any] | RemoraError]:
        """Return each node's answer, or its error."""
        ...


class OwnersRequest(Protocol):
    """What each request of an owner says of itself."""

    @property
    def volume(self) -> str:
        """The volume's id."""
        ...

    @property
    def name(self) -> str:
        """The volume's name."""
        ...

    @property
    def epoch(self) -> int:
        """The epoch that it recovers, or owns."""
        ...


class PromiseRequest(msgspec.Struct, frozen=True):
    """What a recovering owner asks of a member; see `Votes.ask`."""

    volume: VolumeId
    name: VolumeName
    epoch: WholeNumber
    orderly: bool = False


class NewerPromiseError(PeerRefusedError):
    """A copy is of a newer epoch than the store knows: the records are old."""

    code = "newer-promise"


class NoCopyError(PeerRefusedError):
    """A node has no copy to promise with: it is not silent, but has no vote."""

    code = "no-copy-here"

    def __init__(self, volume: str) -> None:
        super().__init__(f"there is no copy of '{volume}' here")


@dataclass(frozen=True, slots=True)
class Heard:
    """
    What nodes have answered: the commits of their copies, or that they have none.

    ``faults`` says of the others why they have given no vote.
    """

    votes: dict[str, Commit] = field(default_factory=dict)
    without_copy: set[str] = field(default_factory=set)
    faults: dict[str, str] = field(default_factory=dict)


class Votes:
    """The asking side."""

    def __init__(self, peers: Peers | None, *, node_id: str) -> None:
        self._peers = peers
        self._node_id = node_id

    def ask(
        self,
        record: VolumeRecord,
        head: Head,
        heard: Heard,
        deadline: Deadline,
        *,
        absent: Collection[str],
        orderly: bool,
    ) -> None:
        """
        Ask who was not *heard* yet to promise ``head.epoch``, and add what it says.

        *absent* are the nodes without a lease. *orderly* says that the last owner has
        released the volume.

        Raises:
            RefusedError: stale-epoch: the records are older than a copy.

        """
        others = {*head.members} - {self._node_id, *heard.votes, *heard.without_copy}
        if self._peers is None:
            return
        silent = {
            each
            for each in others.intersection(absent)
            if not self._peers.is_connected(each)
        }
        wait_s = _ORDERLY_WAIT_S if orderly else _FAILOVER_WAIT_S
        body = {
            "volume": record.id,
            "name": record.name,
            "epoch": head.epoch,
            "orderly": orderly,
        }
        for nodes, within_s in ((others - silent, wait_s), (silent, _ABSENT_WAIT_S)):
            answers = self._peers.call_all(
                sorted(nodes),
                "promise",
                body,
                deadline_s=min(within_s, deadline.remaining_s()),
            )
            for node_id, answer in answers.items():
                _take(record, node_id, answer, heard)


def _take(
    record: VolumeRecord,
    node_id: str,
    answer: Mapping[str, Any] | RemoraError,
    heard: Heard,
) -> None:
    """Add a node's answer to *heard*; what is no answer, or a "not now", is logged."""
    if not isinstance(answer, RemoraError):
        heard.votes[node_id] = Commit(*answer["commit"])
        return
    quiet = isinstance(answer, PeerUnreachableError)
    log.log(
        logging.INFO if quiet else logging.WARNING,
        "no promise: %s",
        answer,
        extra=fields(volume=record.name, node=node_id),
    )
    if answer.code == NewerPromiseError.code:
        raise RefusedError("stale-epoch", node=node_id)
    if answer.code == NoCopyError.code:
        heard.without_copy.add(node_id)
    heard.faults[node_id] = answer.cause


def was_released(head: Head) -> bool:
    """
    Return whether the last owner to begin has released the volume, so all is known.

    Nodes that raised the epoch since, and gave up, have written nothing.
    """
    return head.released or head.released_at != ""


def unheard(
    head: Head,
    votes: Mapping[str, Commit],
    choice: Choice | None,
    *,
    orderly: bool,
) -> set[str]:
    """
    Return the nodes that have not voted, and may have newer bytes than *choice*.

    After a release (*orderly*) nobody has newer ones than what is committed. Else any
    member may: the last owner, and whom it has sent a commit that it did not live to
    publish. None as the choice: *votes* do not do.
    """
    if orderly and choice is not None and choice.lost is None:
        return set()
    return {*head.members} - {*votes}


class Witness:
    """
    The promising side.

    *stop_writers* returns whether no writer of a volume is left; *require_free* raises
    an error while its owner relies on our word not to promise.
    """

    def __init__(
        self,
        *,
        heads: Heads,
        copy_states: CopyStates,
        find: Callable[[str], VolumeRecord | None],
        stop_writers: Callable[[VolumeRecord], bool],
        require_free: Callable[[str], None],
        node_id: str,
    ) -> None:
        self._node_id = node_id
        self._heads = heads
        self._copy_states = copy_states
        self._find = find
        self._stop_writers = stop_writers
        self._require_free = require_free
        self._flushes = Flushes(copy_states)

    def promise(self, node_id: str, request: PromiseRequest) -> Mapping[str, Any]:
        """
        Promise a volume's epoch to its new owner; return the commit of our copy.

        What our containers have written is durable by then.

        Raises:
            BackendError: the disk is not done with that yet.
            PeerRefusedError: the store does not say that *node_id* recovers it, or
                there is no copy here, or a newer promise.

        """
        record = require_recovering(self._heads, self._find, node_id, request)
        initial = initial_commit(record, self._node_id)
        copy = self._copy_states.read(record.id, initial=initial)
        if copy is None:
            raise NoCopyError(record.name)
        if not request.orderly:  # else the last owner has let it go itself
            self._require_free(record.id)
        live = 0 < copy.live_epoch < request.epoch
        # No container is ended for a promise that is refused.
        self._promised(record, copy, request, stopped=True)
        stopped = not live or self._stop_writers(record)
        if live and stopped:
            # Nobody writes to it any more, so nothing is left to be flushed later.
            self._flushes.flush(record, copy.live_epoch)
        with self._copy_states.changing(record.id):
            copy = self._copy_states.read(record.id, initial=initial)
            if copy is None:
                raise NoCopyError(record.name)
            promised = self._promised(record, copy, request, stopped=stopped)
            self._copy_states.write(record.id, promised)
        commit = promised.commit
        log.info(
            "promised",
            extra=fields(
                volume=record.name, epoch=request.epoch, to=node_id, commit=str(commit)
            ),
        )
        return {"commit": [commit.epoch, commit.seq]}

    def _promised(
        self,
        record: VolumeRecord,
        copy: CopyState,
        request: PromiseRequest,
        *,
        stopped: bool,
    ) -> CopyState:
        """Return the copy state that has promised, or raise PeerRefusedError."""
        try:
            return rules.promise(
                copy,
                request.epoch,
                self._heads.lineage(record.id),
                writers_stopped=stopped,
                gone_back=has_gone_back(self._heads, record.id, copy),
            )
        except RefusedError as error:
            newer = error.reason == "stale-epoch"
            refused = NewerPromiseError if newer else PeerRefusedError
            raise refused(
                f"{error.reason}: '{record.name}', epoch {request.epoch} "
                f"(here: {error.epoch})"
            ) from None


def require_recovering(
    heads: Heads,
    find: Callable[[str], VolumeRecord | None],
    node_id: str,
    request: OwnersRequest,
) -> VolumeRecord:
    """
    Return the record of the volume that *node_id* truly recovers, or owns.

    Raises:
        PeerRefusedError: the store, asked anew, does not say so.

    """
    for fresh in (False, True):
        if fresh:
            heads.refresh(_REFRESH_DEADLINE_S)
        record = find(request.name)
        head = heads.read(request.volume).head
        if (
            record is not None
            and record.id == request.volume
            and head is not None
            and (head.epoch, head.owner) == (request.epoch, node_id)
        ):
            return record
    raise PeerRefusedError(
        f"stale-epoch: '{request.name}' is not recovered by node {node_id} "
        f"in epoch {request.epoch}"
    )
