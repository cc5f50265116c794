"""
waitress, tuned for a volume plugin: silent clients, many connections, graceful stop.

Measured: docs/adr/0002-http-server.md says which settings hold which behaviour.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import waitress.channel
import waitress.server
import waitress.task

from backends.system.aside import Threads
from backends.system.clock import Deadline
from plugin.limits import (
    CONNECTION_IDLE_S,
    CONNECTIONS_MAX,
    REQUEST_SIZE_READ_MAX,
    SERVER_THREADS_KEPT,
)

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)
_POLL_S: Final = 0.05


class _ClosingTask(waitress.task.WSGITask):  # type: ignore[misc]
    """
    Sends an answer in one piece, and ends the connection after it.

    An engine that reuses a connection just as we close it repeats its call with an
    empty body; a connection that is never reused cannot do that to it. An engine that
    gets a header without its body takes the volume for gone; a daemon that is killed
    sends the whole answer or nothing.
    """

    wrote_header: bool

    def write(self, data: bytes) -> None:
        whole = self.has_body and self.content_length == len(data)
        if self.wrote_header or not whole:
            super().write(data)
            return
        self.channel.write_soon(self.build_response_header() + data)
        self.wrote_header = True
        self.content_bytes_written = len(data)

    def build_response_header(self) -> bytes:
        self.set_close_on_finish()
        header: bytes = super().build_response_header()
        return header


class _ClosingChannel(waitress.channel.HTTPChannel):  # type: ignore[misc]
    task_class = _ClosingTask


class _Threads(Threads):
    """The threads of a server."""

    def add_task(self, call: waitress.channel.HTTPChannel) -> None:
        """Serve *call*; waitress asks for it by this name."""
        self.run(call.service)


class Server:
    """One WSGI application on one listening socket, in threads of its own."""

    def __init__(
        self, app: WSGIApplication, listener: socket.socket, *, name: str, threads: int
    ) -> None:
        self._app = app
        self._busy = 0
        self._guard = threading.Lock()
        self._server: Any = waitress.server.create_server(
            self._count,
            sockets=[listener],
            # Its own starts all of its threads at once.
            _dispatcher=_Threads(
                f"call:{name}", threads_max=threads, kept=SERVER_THREADS_KEPT
            ),
            connection_limit=CONNECTIONS_MAX,
            asyncore_use_poll=True,  # select() ends at descriptor 1024
            channel_timeout=CONNECTION_IDLE_S,
            cleanup_interval=CONNECTION_IDLE_S,
            max_request_body_size=REQUEST_SIZE_READ_MAX,
            # Reads on while a call is under way, so that a hang-up is noticed.
            channel_request_lookahead=1,
            clear_untrusted_proxy_headers=False,
            ident="remora",
        )
        self._server.channel_class = _ClosingChannel
        self._thread = threading.Thread(
            target=self._server.run, name=f"server:{name}", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop_accepting(self) -> None:
        """Take no new connections; those that are open are served."""
        self._server.accepting = False

    def drain(self, deadline: Deadline) -> bool:
        """Return whether every call under way ended before *deadline*."""
        while self._busy:
            if deadline.passed():
                return False
            threading.Event().wait(_POLL_S)
        # The last answer is in the output buffer when its call ends; let it out.
        threading.Event().wait(_POLL_S)
        return True

    def _count(
        self, environment: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        with self._guard:
            self._busy += 1
        try:
            return self._app(environment, start_response)
        finally:
            with self._guard:
                self._busy -= 1
