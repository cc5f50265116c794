"""
Bringing a volume to a node ahead of time: before its container starts there.

The owner makes the node a member and brings it in step, again and again while
containers write, until one round carries little. The scheduler switches the container:
then only the final sync is left, of what was written since.

Another node writes down in the store that it wishes the move, and the owner begins it.
Nothing else of a move is written down: a daemon that ends forgets it, and the usual
syncs keep the new member in step.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from backends.errors import InvalidRequestError, RemoraError, VolumeBusyError
from backends.system import clock
from backends.system.aside import begun
from plugin.errors import (
    NodeConflictError,
    NotOwnerError,
    PeerRefusedError,
    PeerUnreachableError,
)
from plugin.logs import fields
from plugin.membership.nodes import NodeView
from plugin.model import VolumeId, VolumeRecord
from plugin.ownership.parts import Asking
from plugin.ownership.refusals import explained
from plugin.ownership.state import Head, RefusedError
from plugin.ownership.view import OwnershipView
from plugin.ownership.wishes import Wish
from plugin.replication.move import Round, VolumeMove
from plugin.replication.progress import Progress
from plugin.replication.report import Report
from plugin.replication.syncing import Syncing

log = logging.getLogger(__name__)
# A node that has come back can be reached some seconds later.
_TRIES_MAX: Final = 5
_PAUSE_S: Final = 2.0
_MOVES_MAX: Final = 4
_ENDED_KEPT_MAX: Final = 50
_REFRESH_DEADLINE_S: Final = 3.0
_ASK_DEADLINE_S: Final = 10.0


class MoveStateRequest(msgspec.Struct, frozen=True):
    """What another node asks while a move is under way."""

    volume: VolumeId


class Moving:
    """Moves of this node's volumes, and requests to other owners."""

    def __init__(
        self,
        ownership: OwnershipView,
        syncing: Syncing,
        progress: Progress,
        asking: Asking,
        by_id: Callable[[str], VolumeRecord | None],
    ) -> None:
        self._ownership = ownership
        self._syncing = syncing
        self._placement = syncing.placement
        self._lives = self._placement.lives
        self._progress = progress
        self._asking = asking
        self._by_id = by_id
        self._lock = threading.Lock()
        self._moves: dict[str, VolumeMove] = {}
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Begin no round any more; one that is under way ends with the process."""
        self._stopping.set()

    def start(self, record: VolumeRecord, node: str) -> Mapping[str, Any]:
        """
        Begin to bring the volume to *node*, or join the move that does; return a view.

        Raises:
            RemoraError: it cannot go there, or not now; nothing has changed.

        """
        owner, target = self._checked(record, node)
        if owner == self._ownership.node_id:
            return self._begin(record, target.record.id)
        wish = Wish(
            volume=record.id,
            node=self._ownership.node_id,
            action="move",
            to=owner,
            target=target.record.id,
        )
        try:
            self._asking.fulfil(wish, _ASK_DEADLINE_S)
        except PeerUnreachableError:
            raise self._ownership.silent(owner) from None
        return self._asked(record, owner)

    def state(self, record: VolumeRecord, owner: str) -> Mapping[str, Any]:
        """
        Return the view of a move that node *owner*, by name, makes.

        Raises:
            RemoraError: what has ended the move, or *owner* gives no answer.

        """
        node_id = self._ownership.nodes.find(owner).record.id
        if node_id == self._ownership.node_id:
            return self._view(record)
        return self._asked(record, node_id)

    def _asked(self, record: VolumeRecord, node_id: str) -> Mapping[str, Any]:
        """Return the view of a move that node *node_id* makes."""
        body = {
            "volume": record.id,
            "name": record.name,  # for earlier versions
        }
        return self._asking.call(
            node_id, "move-state", body, deadline_s=_ASK_DEADLINE_S
        )

    def grant(self, wish: Wish) -> None:
        """
        Begin the move that another node wishes.

        Raises:
            RemoraError: it cannot go there, or it is not ours to bring it.

        """
        record = self._known(wish.volume)
        owner, target = self._checked(record, wish.target)
        if owner != self._ownership.node_id:
            raise NotOwnerError(
                f"'{record.name}' changes hands", hint="retry", transient=True
            )
        self._begin(record, target.record.id)

    def answer_state(
        self, node_id: str, request: MoveStateRequest
    ) -> Mapping[str, Any]:
        """Tell another node how far a move is."""
        del node_id
        return self._view(self._known(request.volume))

    def _known(self, volume_id: str) -> VolumeRecord:
        record = self._by_id(volume_id)
        if record is None:
            raise PeerRefusedError(f"volume {volume_id} is not known here")
        return record

    def _checked(self, record: VolumeRecord, node: str) -> tuple[str, NodeView]:
        """Return who can bring it, and the target node, or raise why it cannot go."""
        ownership = self._ownership
        if ownership.is_shared(record):
            raise InvalidRequestError(
                f"'{record.name}' lies on a share that every node sees, or shows "
                "another volume: there is nothing to move",
                hint=f"start its container on '{node}'",
            )
        target = ownership.nodes.find(node)
        name = target.record.name
        if not target.alive:
            raise PeerUnreachableError(f"node '{name}' is down", hint="start it first")
        if target.record.drained:
            raise NodeConflictError(
                f"node '{name}' is drained and takes no volumes",
                hint=f"remora node undrain {name}",
            )
        ownership.heads.refresh(_REFRESH_DEADLINE_S)
        head = ownership.heads.read(record.id).head
        if head is None:
            raise InvalidRequestError(
                f"'{record.name}' has never been mounted: there is nothing to move",
                hint=f"start its container on '{name}'",
            )
        self._require_steady(record, head)
        self._placement.look()
        bringer = self._placement.bringer(head)
        if bringer == target.record.id:
            raise InvalidRequestError(f"'{record.name}' is on node '{name}' already")
        if not self._lives(bringer):
            owner = ownership.name_of(bringer)
            raise PeerUnreachableError(
                f"'{record.name}' was last on node '{owner}', which is down, and only "
                "that node could bring it",
                hint=f"start '{owner}'; or start the container on '{name}', which "
                "begins with the newest commit that can be had",
            )
        return bringer, target

    def _require_steady(self, record: VolumeRecord, head: Head) -> None:
        """Raise NotOwnerError for a volume that changes its owner, or is removed."""
        if head.phase == "removing":
            removing = RefusedError("removing")
            raise explained(record.name, removing, self._ownership.name_of)
        if head.phase == "recovering":
            raise NotOwnerError(
                f"node '{self._ownership.name_of(head.owner)}' is just taking "
                f"'{record.name}' over",
                hint="retry",
                transient=True,
            )

    def _begin(self, record: VolumeRecord, node_id: str) -> Mapping[str, Any]:
        with self._lock:
            move = self._moves.get(record.id)
            if move is None or move.ended:
                self._require_room()
                move = self._moves[record.id] = VolumeMove(record, node_id)
                moving = begun(partial(self._run, move), name="moving")
                moving.add_done_callback(move.end)
            elif move.node_id != node_id:
                raise VolumeBusyError(
                    f"'{record.name}' is being brought to node "
                    f"'{self._ownership.name_of(move.node_id)}'",
                    hint="retry when that is done",
                )
        return self._view(record)

    def _require_room(self) -> None:
        """Forget moves that have ended long ago; raise VolumeBusyError if all go on."""
        ended = [each for each, move in self._moves.items() if move.ended]
        for each in ended[:-_ENDED_KEPT_MAX]:
            del self._moves[each]
        if len(self._moves) - len(ended) >= _MOVES_MAX:
            raise VolumeBusyError(
                f"{_MOVES_MAX} volumes are being moved from here already",
                hint="retry when one of them is done",
            )

    def _view(self, record: VolumeRecord) -> Mapping[str, Any]:
        """Return what is known of the volume's move, or raise what has ended it."""
        with self._lock:
            move = self._moves.get(record.id)
        if move is None:
            raise InvalidRequestError(
                f"no move of '{record.name}' is under way on node "
                f"'{self._ownership.own.name}'",
                hint="if its daemon was started again meanwhile: repeat the move",
            )
        if move.error is not None:
            raise move.error
        return move.view(
            self._progress.under_way(record.id),
            owner=self._ownership.own.name,
            node=self._ownership.name_of(move.node_id),
        )

    def _run(self, move: VolumeMove) -> None:
        """Go through the rounds."""
        try:
            self._go(move)
        except RemoraError as error:
            move.error = error
        except Exception:
            log.exception("a move failed", extra=fields(volume=move.record.name))
            move.error = RemoraError("a fault in the daemon; see its log")
        move.ended = True
        last = move.rounds[-1].commit if move.rounds else ""
        log.info(
            "moved ahead" if move.error is None else "not moved ahead",
            extra=fields(
                volume=move.record.name,
                target=self._ownership.name_of(move.node_id),
                commit=last,
                rounds=len(move.rounds),
                error=str(move.error or ""),
            ),
        )

    def _go(self, move: VolumeMove) -> None:
        failed = 0
        while not move.is_over() and not self._stopping.is_set():
            fault = self._round(move)
            failed = failed + 1 if fault else 0
            if failed == _TRIES_MAX or (fault and not self._lives(move.node_id)):
                raise self._not_moved(move, fault)
            if fault:
                self._stopping.wait(_PAUSE_S)
        if not move.is_over():
            raise VolumeBusyError(
                f"the daemon that brings '{move.record.name}' is being stopped",
                hint="repeat the move when it runs again",
            )

    def _round(self, move: VolumeMove) -> str:
        """Bring the node in step once; return why it could not be, "" if it is."""
        record, node_id = move.record, move.node_id
        head = self._joined(record, node_id)
        began_s = clock.monotonic_s()
        reports: list[Report]
        if head.phase == "owned":
            reports = self._syncing.bring(record, head.epoch, (node_id,))
        else:
            reports = self._syncing.follow(record, only=node_id)
        took_s = clock.monotonic_s() - began_s
        if any(node_id in each.filling for each in reports):
            # This cannot go on for ever: a transfer without progress is given up.
            self._stopping.wait(_PAUSE_S)
            return ""
        commits = [each.commit for each in reports if node_id in each.holders]
        after = self._ownership.heads.read(record.id).head
        if not commits and after is not None and after.phase == "idle":
            commits = [after.committed] if node_id in after.holders else []
        if not commits:
            faults = [each.faults.get(node_id, "") for each in reports]
            return max(faults, default="") or "it is not in step yet"
        if after is None or after.phase != head.phase:
            return "it changes hands"  # there is a newer commit, for the next round
        move.mounted = head.phase == "owned"
        carried_bytes = sum(each.carried_bytes for each in reports)
        move.rounds.append(Round(str(commits[-1]), carried_bytes, round(took_s, 3)))
        return ""

    def _joined(self, record: VolumeRecord, node_id: str) -> Head:
        """Return the head, with *node_id* a member of the volume, which is ours."""
        head = self._ownership.heads.read(record.id).head
        if head is not None:
            head = self._placement.bind(record, head.epoch, node_id)
        bringer = self._placement.bringer(head) if head else ""
        if head is None or bringer != self._ownership.node_id:
            owner = self._ownership.name_of(bringer) if bringer else "nobody"
            raise NotOwnerError(f"'{record.name}' has gone to '{owner}' meanwhile")
        self._require_steady(record, head)
        return head

    def _not_moved(self, move: VolumeMove, fault: str) -> RemoraError:
        name = self._ownership.name_of(move.node_id)
        cause = f"node '{name}' has not taken '{move.record.name}': {fault}"
        if self._lives(move.node_id):
            return PeerRefusedError(cause, hint="see the daemon's log there")
        return PeerUnreachableError(cause, hint=f"repeat the move when '{name}' is up")
