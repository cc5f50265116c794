"""
The daemon's side of the sessions that other nodes have here.

Each session is a connection of a `remora-receive` (see `receive.py`) to a Unix socket
that only root can reach. Its first line says for which node it is, which sshd knows by
its key, and for what purpose. The lines after that are written by the other node and
are not trusted. Closing the connection ends the session, and the rsync in it.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from backends.errors import InvalidRequestError, RemoraError
from backends.system.aside import begun, log_fault
from backends.system.decoding import from_json
from plugin.errors import PeerRefusedError
from plugin.logs import fields
from plugin.peers.control import (
    TRANSFERS_MAX,
    ControlSession,
    Handler,
    Slots,
    hang_up,
    log_refusal,
)
from plugin.peers.lines import Lines, decode, encode, error_as_json

log = logging.getLogger(__name__)

# A node has one control session and a few transfers. One node's faults must not use up
# the places of all others, nor its transfers the place of its control session.
SESSIONS_MAX: Final = 256
SESSIONS_OF_NODE_MAX: Final = TRANSFERS_MAX
# A reader that takes nothing for this long is not waited for.
_SEND_TIMEOUT_S: Final = 10
_FIRST_LINE_TIMEOUT_S: Final = 10.0
_STOP_WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class StagingPlace:
    """
    The ``directory`` for a commit's bytes, and the read-only ``basis`` with most of it.

    ``nice`` is the receiving rsync's, from 0 to 19. With ``is_tree`` the names that are
    sent are those of the volume's tree itself, as in ``basis``, and go into ``tree`` in
    the directory. rsync holds ``lock``, a
    file, until the last of its processes has ended.
    """

    directory: Path
    basis: Path
    lock: Path
    nice: int = 0
    is_tree: bool = False


class Receiver(Protocol):
    """Decides whether a node may send, and where the bytes go."""

    def begin(
        self,
        node_id: str,
        *,
        volume: str,
        epoch: int,
        seq: int,
        hang_up: Callable[[], None],
    ) -> StagingPlace:
        """
        Return the place for the commit (*epoch*, *seq*) of *volume*.

        *hang_up* ends the session, and soon its rsync; it may be called at any time.

        Raises:
            RemoraError: the node may not send it; nothing has changed.

        """

    def end(
        self,
        node_id: str,
        *,
        volume: str,
        epoch: int,
        seq: int,
        exit_status: int | None,
    ) -> None:
        """
        Take note that rsync has ended, exactly once after each `begin` that returned.

        *exit_status* is None if the session broke off; rsync may then live on for the
        moment that the kernel needs to end it.
        """


class _First(msgspec.Struct, frozen=True):
    """The first line of a session, written by `remora-receive`."""

    node: str
    session: str
    command: str = ""
    volume: str = ""
    epoch: int = 0
    seq: int = 0


class PeerServer:
    """
    Answers the sessions that come to *listener*.

    *transfers* are the requests that take as long as a transfer.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        handlers: Mapping[str, Handler],
        receiver: Receiver,
        transfers: Collection[str] = (),
    ) -> None:
        self._listener = listener
        self._handlers = handlers
        self._transfers = frozenset(transfers)
        self._receiver = receiver
        self._members: frozenset[str] = frozenset()
        self._sessions: dict[socket.socket, _First | None] = {}
        self._slots: dict[str, Slots] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(
            target=self._accept, name="peers:accept", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer nobody any more and end every session."""
        with self._lock:
            self._stopping = True
            sessions = list(self._sessions)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # close() would not wake accept()
        for each in sessions:
            hang_up(each)
        if self._thread.is_alive():
            self._thread.join(_STOP_WAIT_S)
        self._listener.close()

    def set_members(self, node_ids: Collection[str]) -> None:
        """Answer the nodes of *node_ids* alone; sessions of others end now."""
        with self._lock:
            self._members = frozenset(node_ids)
            self._slots = {
                each: self._slots.get(each) or Slots() for each in self._members
            }
            ended = [
                each
                for each, first in self._sessions.items()
                if first is not None and first.node not in self._members
            ]
        for each in ended:
            hang_up(each)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if self._stopping:
                    return
                log.warning("a peer's session was not accepted: %s", error.strerror)
                threading.Event().wait(1)  # no descriptor is left; do not spin
                continue
            with self._lock:
                full = len(self._sessions) >= SESSIONS_MAX or self._stopping
                if not full:
                    self._sessions[connection] = None
            if full:
                log.warning("a peer's session was refused: too many are open")
                connection.close()
                continue
            session = begun(partial(self._serve, connection), name="peers:session")
            session.add_done_callback(partial(self._ended, connection))

    def _ended(self, connection: socket.socket, session: Future[None]) -> None:
        log_fault(session)
        with self._lock:
            self._sessions.pop(connection, None)
        connection.close()

    def _serve(self, connection: socket.socket) -> None:
        """Serve one session to its end."""
        node_id = "?"
        try:
            connection.settimeout(_FIRST_LINE_TIMEOUT_S)
            lines = Lines(connection.recv)
            first = _first(lines)
            node_id = first.node
            try:
                self._admit(connection, first)
                session = self._opened(first)
            except RemoraError as error:
                log_refusal(node_id, error, session=first.session)
                connection.sendall(encode({"error": error_as_json(error)}))
                return
            _wait_for_ever_to_read(connection)
            session(connection, lines, first)
        except RemoraError as error:
            log_refusal(node_id, error)
        except OSError as error:
            log.info(
                "a peer's session broke: %s", error.strerror, extra=fields(node=node_id)
            )

    def _admit(self, connection: socket.socket, first: _First) -> None:
        """Count the session as its node's, if that may have one more."""
        with self._lock:
            if first.node not in self._members:
                raise PeerRefusedError(f"node {first.node} is no member of the cluster")
            count = sum(
                each is not None
                and (each.node, each.session) == (first.node, first.session)
                for each in self._sessions.values()
            )
            if count >= SESSIONS_OF_NODE_MAX:
                raise PeerRefusedError(
                    f"node {first.node} has {count} sessions open, and may no more"
                )
            self._sessions[connection] = first

    def _opened(self, first: _First) -> Callable[[socket.socket, Lines, _First], None]:
        """Return how the session goes on."""
        if first.session == "control":
            return self._control
        if first.session == "receive":
            return self._receive
        raise PeerRefusedError(f"asked for the command {first.command!r}")

    def _receive(self, connection: socket.socket, lines: Lines, first: _First) -> None:
        """Give out a staging directory and wait until rsync has ended."""
        about: dict[str, Any] = {
            "volume": first.volume,
            "epoch": first.epoch,
            "seq": first.seq,
        }
        try:
            place = self._receiver.begin(
                first.node, **about, hang_up=partial(hang_up, connection)
            )
        except RemoraError as error:
            log_refusal(first.node, error, **about)
            connection.sendall(encode({"error": error_as_json(error)}))
            return
        exit_status: int | None = None
        try:
            result = {
                "directory": str(place.directory),
                "basis": str(place.basis),
                "lock": str(place.lock),
                "nice": str(place.nice),
                "is_tree": "yes" if place.is_tree else "",
            }
            connection.sendall(encode({"result": result}))
            line = lines.next()
            if line is not None:
                exit_status = _exit_status(line)
        finally:
            self._receiver.end(first.node, **about, exit_status=exit_status)
        if exit_status is not None:
            connection.sendall(encode({"result": {}}))

    def _control(self, connection: socket.socket, lines: Lines, first: _First) -> None:
        """Answer requests, several at a time, until the session ends."""
        connection.sendall(encode({"result": {}}))
        with self._lock:
            slots = self._slots.get(first.node) or Slots()  # it is just being removed
        session = ControlSession(
            *(connection, first.node, self._handlers, self._transfers), slots=slots
        )
        try:
            while (line := lines.next()) is not None:
                session.handle(line)
        except RemoraError as error:
            # Nobody knows any more where the next request begins.
            session.send({"error": error_as_json(error)})
            raise


def _first(lines: Lines) -> _First:
    line = lines.next()
    if line is None:
        raise InvalidRequestError("a session ended before it began")
    try:
        return from_json(line, _First)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequestError(f"a session began wrong: {error}") from error


def _exit_status(line: bytes) -> int:
    said = decode(line).get("exit_status")
    if not isinstance(said, int):
        raise InvalidRequestError(f"{said!r} is no exit status")
    return said


def _wait_for_ever_to_read(connection: socket.socket) -> None:
    """Bound what we send; sshd ends a session whose other side is silent or dead."""
    connection.settimeout(None)
    connection.setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_TIMEOUT_S, 0)
    )
