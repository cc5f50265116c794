"""What the driver asks the daemon, over the control socket as the command does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, Protocol
from urllib.parse import quote

from plugin.api.csi.errors import CsiError
from plugin.limits import SHORT_DEADLINE_S

# The daemon has fewer threads for its control socket, and people use some of them.
_CALLS_MAX: Final = 16
# What a scheduler waits for a call at most, whatever it says: Swarm asks one volume
# after the other, and none of them for more than 15 s.
WAIT_S: Final = 10.0
_ANSWER_S: Final = 0.5
# A node that starts all its pods has more calls than turns: each gets one.
_TURN_S: Final = 60.0
_SHORTEST_S: Final = 1.0
# The daemon ends each call before that, with an error that says more.
_DAEMON_S: Final = SHORT_DEADLINE_S + 10


class Calls(Protocol):
    """A client of the control socket."""

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        read_timeout_s: float | None = None,
    ) -> Any:
        """Return the daemon's answer, or raise the error that it tells."""
        ...


class Daemon:
    """
    The daemon, asked by at most `_CALLS_MAX` threads at once.

    *connect* makes a client, of which each thread has its own.
    """

    def __init__(self, connect: Callable[[], Calls]) -> None:
        self._connect = connect
        self._local = threading.local()
        self._room = threading.BoundedSemaphore(_CALLS_MAX)

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Return the daemon's answer, or raise the error that it tells."""
        client = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = self._connect()
        if not self._room.acquire(timeout=_TURN_S):
            raise CsiError(
                "volume-busy", f"{_CALLS_MAX} calls are under way already", hint="retry"
            )
        try:
            return client.call(method, path, body, read_timeout_s=_DAEMON_S)
        finally:
            self._room.release()

    def node_name(self) -> str:
        """Return what the daemon's node is called."""
        return str(self.call("GET", "/v1/status")["node"]["name"])


def quoted(name: str) -> str:
    """Return *name* as a part of a path."""
    return quote(name, safe="")


def wait_s(left_s: float | None) -> float:
    """Return how long the daemon may take for a call that has *left_s*."""
    if left_s is None:
        return WAIT_S
    return max(_SHORTEST_S, min(WAIT_S, left_s - _ANSWER_S))
