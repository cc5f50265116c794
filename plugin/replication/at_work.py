"""
Whether a node that was asked for a transfer is at work on it.

That takes hours, and its bytes may come late: they are read, compared and copied before
they are sent. So who asks bounds the silence, not the whole. A thread that works takes
processor time; one on a disk that hangs takes none, and a daemon that is stopped does
not tell.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from backends.errors import InvalidRequestError, RemoraError
from backends.system.clock import Deadline, monotonic_s, thread_cpu_ns
from plugin.errors import RemoteError
from plugin.model import VolumeId
from plugin.peers.channel import Peers

REQUEST: Final = "at-work"
_ASK_EVERY_S: Final = 5.0
_ASK_DEADLINE_S: Final = 2.0
_NO_SUCH_REQUEST: Final = InvalidRequestError.code
# rsync may stand still for sixty seconds before its own node gives it up.
SILENCE_MAX_S: Final = 90.0
# Of one without a lease, say: it may be cut off from etcd alone, and send nevertheless.
DOUBTED_SILENCE_MAX_S: Final = 10.0


class WorkRequest(msgspec.Struct, frozen=True):
    """What a node asks that waits for work on *volume*."""

    volume: VolumeId


class Workers:
    """What this node does for others; threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The threads by their numbers, each with its volume.
        self._threads: dict[int, str] = {}

    @contextmanager
    def working(self, volume_id: str) -> Iterator[None]:
        """Count this thread as one that works on the volume."""
        thread = threading.get_ident()
        with self._lock:
            self._threads[thread] = volume_id
        try:
            yield
        finally:
            with self._lock:
                del self._threads[thread]

    def answer(self, node_id: str, request: WorkRequest) -> Mapping[str, Any]:
        """Answer with a number that moves while there is work on the volume."""
        del node_id
        with self._lock:  # a thread that has ended has no clock
            worked_ns = sum(
                thread_cpu_ns(thread)
                for thread, volume_id in self._threads.items()
                if volume_id == request.volume
            )
        return {"worked_ns": worked_ns}


class Patience:
    """
    Whether to wait on for node *node_id*, which works on a volume; called often.

    It may be silent for less long if it is *doubted*. *wanted* says whether anybody
    still needs the work.
    """

    def __init__(
        self,
        peers: Peers,
        node_id: str,
        volume_id: str,
        *,
        doubted: Callable[[], bool] = lambda: False,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._peers = peers
        self._node_id = node_id
        self._body = {"volume": volume_id}
        self._doubted = doubted
        self._wanted = wanted
        self._told: object = None
        self._changes = itertools.count()
        self._moved_s = monotonic_s()
        self._pause = Deadline(_ASK_EVERY_S)

    def __call__(self) -> bool:
        """Return whether to wait on; the node is asked now and then."""
        if self._pause.passed():
            told = self._ask()
            if told != self._told:
                self._told, self._moved_s = told, monotonic_s()
            self._pause = Deadline(_ASK_EVERY_S)
        bound_s = DOUBTED_SILENCE_MAX_S if self._doubted() else SILENCE_MAX_S
        return self._wanted() and monotonic_s() - self._moved_s < bound_s

    def _ask(self) -> object:
        """Return what differs from the last answer if the node has worked since."""
        try:
            answer = self._peers.call(
                self._node_id, REQUEST, self._body, deadline_s=_ASK_DEADLINE_S
            )
        except RemoraError as error:
            if isinstance(error, RemoteError) and error.code == _NO_SUCH_REQUEST:
                return next(self._changes)  # the version before cannot tell
            return self._told
        return answer.get("worked_ns")
