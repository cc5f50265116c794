"""
Promises: asking the other members of a volume for them, and giving them.

A member that promises an epoch takes nothing from earlier owners any more. If it was an
owner itself, it first stops its writers for good and seals what they wrote, so that the
new owner can have it. It promises only what the store confirms: a thief of a node's key
cannot make a volume's copies useless.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from backends.errors import RemoraError
from backends.system.clock import Deadline
from plugin.errors import PeerRefusedError, PeerUnreachableError
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.copy_states import CopyStates
from plugin.ownership.heads import Heads
from plugin.ownership.sealing import Flushes
from plugin.ownership.state import Choice, Commit, Head, Lineage, RefusedError
from plugin.ownership.view import initial_commit
from plugin.peers.lines import read_request

log = logging.getLogger(__name__)
# After an orderly release nobody has anything newer: a silent member is not missed.
_ORDERLY_WAIT_S: Final = 2.0
# After a crash a member that is slow may have the newest commit.
_FAILOVER_WAIT_S: Final = 5.0
_REFRESH_DEADLINE_S: Final = 2.0


class Asks(Protocol):
    """How other nodes are asked; see `Peers`."""

    def call(
        self, node_id: str, request: str, body: Mapping[str, Any], *, deadline_s: float
    ) -> Mapping[str, Any]:
        """Return a node's answer, or raise PeerUnreachableError or its error."""
        ...

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
    """What a recovering owner asks of a member; see `Votes.of_others`."""

    volume: str
    name: str
    epoch: int
    orderly: bool = False


class NewerPromiseError(PeerRefusedError):
    """A copy has promised a newer epoch than the store has: the records are old."""

    code = "newer-promise"


class NoCopyError(PeerRefusedError):
    """A node has no copy to promise with: it is not silent, but has no vote."""

    code = "no-copy-here"

    def __init__(self, volume: str) -> None:
        super().__init__(f"there is no copy of '{volume}' here")


class Votes:
    """The asking side."""

    def __init__(self, asks: Asks | None, *, node_id: str) -> None:
        self._asks = asks
        self._node_id = node_id

    def of_others(
        self, record: VolumeRecord, head: Head, deadline: Deadline, *, orderly: bool
    ) -> tuple[dict[str, Commit], set[str]]:
        """
        Return the commits of the other members that have promised ``head.epoch``.

        With them, the members that say that they have no copy. *orderly* says that the
        last owner has released the volume.

        Raises:
            RefusedError: stale-epoch: the records are older than a copy.

        """
        others = [each for each in head.members if each != self._node_id]
        if not others or self._asks is None:
            return {}, set()
        wait_s = _ORDERLY_WAIT_S if orderly else _FAILOVER_WAIT_S
        answers = self._asks.call_all(
            others,
            "promise",
            {
                "volume": record.id,
                "name": record.name,
                "epoch": head.epoch,
                "orderly": orderly,
            },
            deadline_s=min(wait_s, deadline.remaining_s()),
        )
        votes, without_copy = {}, set()
        for node_id, answer in answers.items():
            if isinstance(answer, RemoraError):
                level = (
                    logging.INFO
                    if isinstance(answer, PeerUnreachableError)
                    else logging.WARNING
                )
                log.log(
                    level,
                    "no promise: %s",
                    answer,
                    extra=fields(volume=record.name, node=node_id),
                )
                if answer.code == NewerPromiseError.code:
                    raise RefusedError("stale-epoch", node=node_id)
                if answer.code == NoCopyError.code:
                    without_copy.add(node_id)
                continue
            votes[node_id] = Commit(*answer["commit"])
        return votes, without_copy


def unheard(
    head: Head,
    lineage: Lineage,
    votes: Mapping[str, Commit],
    choice: Choice,
    *,
    orderly: bool,
) -> set[str]:
    """
    Return the nodes that may have newer bytes than *choice*, and have not voted.

    These are the last owner, unless it has released the volume itself (*orderly*), and
    the holders of what is committed, if that would be lost.
    """
    wanted = {*head.holders} if choice.lost is not None else set()
    last = lineage.epochs.get(lineage.newest(head.epoch - 1))
    if last is not None and not orderly:
        wanted.add(last.owner)
    return wanted - {*votes}


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
        self._flushes = Flushes()

    def promise(self, node_id: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """
        Promise a volume's epoch to its new owner; return the commit of our copy.

        What our containers have written is durable by then.

        Raises:
            BackendError: the disk is not done with that yet.
            PeerRefusedError: the store does not say that *node_id* recovers it, or
                there is no copy here, or a newer promise.

        """
        request = read_request(message, PromiseRequest)
        record = require_recovering(self._heads, self._find, node_id, request)
        initial = initial_commit(record, self._node_id)
        copy = self._copy_states.read(record.id, initial=initial)
        if copy is None:
            raise NoCopyError(record.name)
        if not request.orderly:  # else the last owner has let it go itself
            self._require_free(record.id)
        live = 0 < copy.live_epoch < request.epoch
        stopped = not live or self._stop_writers(record)
        directory = self._copy_states.directory(record.id)
        if live and stopped and directory is not None:
            # Nobody writes to it any more, so nothing is left to be flushed later.
            self._flushes.flush(record, copy.live_epoch, directory)
        with self._copy_states.changing(record.id):
            copy = self._copy_states.read(record.id, initial=initial)
            if copy is None:
                raise NoCopyError(record.name)
            try:
                promised = rules.promise(copy, request.epoch, writers_stopped=stopped)
            except RefusedError as error:
                newer = error.reason == "stale-epoch"
                refused = NewerPromiseError if newer else PeerRefusedError
                raise refused(
                    f"{error.reason}: '{record.name}', epoch {request.epoch} "
                    f"(here: {error.epoch})"
                ) from None
            self._copy_states.write(record.id, promised)
        log.info(
            "promised",
            extra=fields(
                volume=record.name,
                epoch=request.epoch,
                to=node_id,
                commit=str(promised.commit),
            ),
        )
        return {"commit": [promised.commit.epoch, promised.commit.seq]}


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
