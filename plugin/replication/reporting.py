"""
Nodes tell each other how far transfers are: only the sender knows the whole size.

A node that receives asks the senders once in a second while a transfer is under way;
shorter ones are not asked for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from backends.errors import RemoraError
from backends.system.clock import monotonic_s
from backends.system.decoding import from_objects
from plugin.peers.channel import Peers
from plugin.peers.questions import NoBody
from plugin.peers.server import SESSIONS_OF_NODE_MAX
from plugin.replication.progress import Done, Progress

log = logging.getLogger(__name__)
REQUEST: Final = "transfers"
_INTERVAL_S: Final = 1.0
_DEADLINE_S: Final = 2.0
_STOP_WAIT_S: Final = 3.0

_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Told(msgspec.Struct, frozen=True):
    """What a sender says of one transfer to the node that asks."""

    volume: str
    done_bytes: _Count
    total_bytes: _Count
    files: _Count
    rate_bytes_s: Annotated[float, msgspec.Meta(ge=0)]


class _Answer(msgspec.Struct, frozen=True):
    transfers: Annotated[
        list[_Told], msgspec.Meta(max_length=SESSIONS_OF_NODE_MAX)
    ] = []


class Reporting:
    """Answers, and asks while it runs."""

    def __init__(self, progress: Progress, peers: Peers) -> None:
        self._progress = progress
        self._peers = peers
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporting", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()
        self._thread.join(_STOP_WAIT_S)

    def answer(self, node_id: str, request: NoBody) -> Mapping[str, Any]:
        """Tell *node_id* how far the transfers to it are."""
        del request
        told = [
            _Told(
                each.volume_id,
                each.done.done_bytes,
                each.done.total_bytes,
                each.done.files,
                each.done.rate_bytes_s,
            )
            for each in self._progress.under_way()
            if (each.direction, each.node_id) == ("sending", node_id)
        ]
        answer: dict[str, Any] = msgspec.to_builtins(
            _Answer(told[:SESSIONS_OF_NODE_MAX])
        )
        return answer

    def _run(self) -> None:
        while not self._stopping.wait(_INTERVAL_S):
            try:
                self._ask()
            except Exception:
                log.exception("progress is not known")

    def _ask(self) -> None:
        now_s = monotonic_s()
        senders = {
            each.node_id
            for each in self._progress.under_way()
            if each.direction == "receiving" and now_s - each.began_s > _INTERVAL_S
        }
        if not senders:
            return
        answers = self._peers.call_all(
            sorted(senders), REQUEST, {}, deadline_s=_DEADLINE_S
        )
        for node_id, answer in answers.items():
            if isinstance(answer, RemoraError):
                continue  # it is shown without a percentage
            try:
                told = from_objects(answer, _Answer).transfers
            except msgspec.ValidationError as error:
                log.info("node %s tells no progress: %s", node_id, error)
                continue
            for each in told:
                done = Done(
                    each.done_bytes, each.total_bytes, each.files, each.rate_bytes_s
                )
                self._progress.note_received(each.volume, node_id, done)
