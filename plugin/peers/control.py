"""
A control session of another node: its requests, several at a time, in two classes.

A request that goes on for as long as a transfer takes no place of those that are asked
for each Mount and each round: a promise must not wait behind hours.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final

from backends.errors import InvalidRequestError, RemoraError, one_line
from backends.system.aside import begun
from plugin.errors import PeerRefusedError
from plugin.limits import OPERATIONS_MAX
from plugin.logs import fields
from plugin.peers.lines import decode, encode, error_as_json

log = logging.getLogger(__name__)

Handler = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]

# Under way for one node, over all its sessions: a transfer for each that it may have,
# and for each of its Mounts and rounds a question.
TRANSFERS_MAX: Final = 32
REQUESTS_MAX: Final = 2 * OPERATIONS_MAX


class Slots:
    """What may be under way for one node."""

    def __init__(self) -> None:
        self.requests = threading.BoundedSemaphore(REQUESTS_MAX)
        self.transfers = threading.BoundedSemaphore(TRANSFERS_MAX)


class ControlSession:
    """
    The requests of node *node_id* that come over *connection*.

    Those in *transfers* take as long as a transfer. All its sessions share *slots*.
    """

    def __init__(
        self,
        connection: socket.socket,
        node_id: str,
        handlers: Mapping[str, Handler],
        transfers: Collection[str],
        slots: Slots,
    ) -> None:
        self._connection = connection
        self._node_id = node_id
        self._handlers = handlers
        self._transfers = transfers
        self._sending = threading.Lock()
        self._slots = slots

    def handle(self, line: bytes) -> None:
        """Begin to answer *line*."""
        message = decode(line)
        number = message.pop("id", None)
        is_transfer = str(message.get("request")) in self._transfers
        slots = self._slots.transfers if is_transfer else self._slots.requests
        if not slots.acquire(blocking=False):
            most = TRANSFERS_MAX if is_transfer else REQUESTS_MAX
            kind = "transfers" if is_transfer else "requests"
            self._refuse(
                number, PeerRefusedError(f"{most} {kind} are under way already")
            )
            return

        def ended(answer: Future[None]) -> None:
            slots.release()
            error = answer.exception()
            if isinstance(error, RemoraError):
                self._refuse(number, error)

        answer = begun(partial(self._answer, number, message), name="peers:call")
        answer.add_done_callback(ended)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send *message*; a session that cannot take it is ended."""
        try:
            with self._sending:
                self._connection.sendall(encode(message))
        except OSError:
            hang_up(self._connection)

    def _answer(self, number: object, message: dict[str, Any]) -> None:
        try:
            request = message.get("request")
            handler = self._handlers.get(str(request), self._unknown)
            answer = {"id": number, "result": handler(self._node_id, message)}
            encode(answer)  # what is too long becomes an error
            self.send(answer)
        except RemoraError as error:
            self._refuse(number, error)
        except Exception:
            log.exception("a fault of ours", extra=fields(node=self._node_id))
            self._refuse(number, RemoraError("a fault in the daemon; see its log"))

    def _unknown(self, node_id: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
        del node_id
        raise InvalidRequestError(
            f"there is no request {message.get('request')!r}",
            hint=f"there are: {', '.join(self._handlers)}",
        )

    def _refuse(self, number: object, error: RemoraError) -> None:
        log_refusal(self._node_id, error)
        self.send({"id": number, "error": error_as_json(error)})


def hang_up(connection: socket.socket) -> None:
    """End the session of *connection*, wherever it waits."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def log_refusal(node_id: str, error: RemoraError, **values: object) -> None:
    """Log that a node was refused, with what it asked for."""
    log.warning(
        "refused a peer: %s", error, extra=fields(node=one_line(node_id), **values)
    )
