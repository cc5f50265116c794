"""
One connection to another node: SSH with our key and its key, then requests as lines.

paramiko costs 20 MB and a tenth of a second to import, so a node without peers does
not: it is imported here, at the first connection.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from backends.errors import RemoraError, one_line
from backends.system.clock import Deadline
from plugin.errors import PeerUnreachableError
from plugin.peers.lines import Lines, decode, encode, error_from_json
from plugin.peers.peer import KEY_TYPE, Peer
from plugin.peers.receive import CONTROL

if TYPE_CHECKING:
    import paramiko

# Each step of a connection: reaching the address, the keys, the login.
STEP_TIMEOUT_S: Final = 5.0
# The kernel gives a connection up when a machine is silent for this long.
_SILENCE_MAX_MS: Final = 10_000
_PROBE_IDLE_S: Final = 5
_PROBE_INTERVAL_S: Final = 2
_PROBES: Final = 3
# How long one wait for bytes lasts; it ends earlier when some come or the other side
# hangs up. A write to a side that takes nothing ends after it as well.
_WAIT_S: Final = 5.0
_SAID_LENGTH_MAX: Final = 1000


class _Pending:
    """A request that waits for its answer."""

    __slots__ = ("answer", "done", "fault")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.answer: dict[str, Any] | None = None
        self.fault = ""


class Connection:
    """A control session with *peer*, over *transport*; threads may share it."""

    def __init__(
        self,
        peer: Peer,
        address: str,
        transport: paramiko.Transport,
        session: paramiko.Channel,
    ) -> None:
        self.address = address
        self._peer = peer
        self._transport = transport
        self._session = session
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._pending: dict[int, _Pending] = {}
        self._count = 0
        self._fault = ""
        threading.Thread(target=self._read, name="peers:read", daemon=True).start()

    @property
    def fault(self) -> str:
        """Return why it is of no use any more, "" while it is."""
        return self._fault

    def ask(
        self, request: str, body: Mapping[str, Any], *, deadline: Deadline
    ) -> Mapping[str, Any]:
        """
        Return the node's answer.

        Raises:
            PeerUnreachableError: it gave none; it may have done what was asked.
            RemoteError: it said no.

        """
        pending = _Pending()
        with self._lock:
            if self._fault:
                raise PeerUnreachableError(self._fault)
            number = self._count = self._count + 1
            self._pending[number] = pending
        try:
            self._send(encode({**body, "id": number, "request": request}))
            if not pending.done.wait(deadline.remaining_s()):
                raise PeerUnreachableError(
                    f"node '{self._peer.name}' did not answer '{request}' in time"
                )
        finally:
            with self._lock:
                self._pending.pop(number, None)
        if pending.answer is None:
            raise PeerUnreachableError(pending.fault)
        if "error" in pending.answer:
            raise error_from_json(pending.answer["error"])
        result = pending.answer.get("result")
        return result if isinstance(result, dict) else {}

    def close(self, why: str) -> None:
        """End the connection; whoever waits for an answer hears *why*."""
        with self._lock:
            self._fault = self._fault or one_line(why)
            waiting = list(self._pending.values())
            self._pending.clear()
        for each in waiting:
            each.fault = self._fault
            each.done.set()
        with suppress(Exception):  # it may be in any state; all we want is its end
            self._transport.close()

    def _send(self, line: bytes) -> None:
        try:
            with self._sending:
                self._session.sendall(line)
        except OSError as error:
            self.close(f"node '{self._peer.name}' takes no more requests: {error}")
            raise PeerUnreachableError(self._fault) from error

    def _read(self) -> None:
        """Hand out answers until the connection ends."""
        lines = Lines(self._receive)
        why = f"the connection to node '{self._peer.name}' has ended"
        try:
            while (line := lines.next()) is not None:
                answer = decode(line)
                with self._lock:
                    pending = self._pending.pop(answer.get("id", 0), None)
                if pending is not None:
                    pending.answer = answer
                    pending.done.set()
            why += self._last_words()
        except (RemoraError, OSError, TypeError) as error:
            why += f": {error}"
        self.close(why)

    def _receive(self, size: int) -> bytes:
        while True:
            with suppress(TimeoutError):
                return self._session.recv(size)
            if self._fault or not self._transport.is_active():
                return b""

    def _last_words(self) -> str:
        """Return what the node's `remora-receive` had to say about its end."""
        with suppress(OSError):
            said = self._session.recv_stderr(_SAID_LENGTH_MAX)
            if said:
                return f": {said.decode(errors='replace').strip()}"
        return ""


class StrangerError(PeerUnreachableError):
    """The node does not know this one's key: not yet, or not any more."""


def connect(peer: Peer, address: str, *, node_key: Path) -> Connection:
    """
    Return a connection to *peer* at *address*.

    Raises:
        StrangerError: it does not let us in.
        PeerUnreachableError: there is none, or not to that node.

    """
    import paramiko  # noqa: PLC0415 - see the module's text

    # Its lines about broken connections are ours, told once and with the node's name.
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    where = f"node '{peer.name}' at {address} port {peer.port}"
    transport: paramiko.Transport | None = None
    raw: socket.socket | None = None
    try:
        raw = socket.create_connection((address, peer.port), STEP_TIMEOUT_S)
        _watch(raw)
        transport = paramiko.Transport(raw)
        _restrict(transport)
        transport.start_client(timeout=STEP_TIMEOUT_S)
        _require_host_key(transport, peer, where)
        # Nothing else is tried: no agent, no keys or files of the user.
        transport.auth_publickey("root", paramiko.Ed25519Key(filename=str(node_key)))
        session = transport.open_session(timeout=STEP_TIMEOUT_S)
        session.settimeout(_WAIT_S)
        session.exec_command(CONTROL)
    except BaseException as error:
        for each in (transport, raw):
            if each is not None:
                each.close()
        if isinstance(error, paramiko.AuthenticationException):
            raise StrangerError(f"{where}: {_cause(error)}") from error
        if isinstance(error, paramiko.SSHException | OSError | EOFError):
            raise PeerUnreachableError(f"{where}: {_cause(error)}") from error
        raise
    return Connection(peer, address, transport, session)


def _require_host_key(transport: paramiko.Transport, peer: Peer, where: str) -> None:
    key = transport.get_remote_server_key()
    if f"{KEY_TYPE} {key.get_base64()}" != peer.host_key:
        raise PeerUnreachableError(
            f"{where} has another host key than its record: somebody else has the "
            "address, or the node's keys were made anew"
        )


def _restrict(transport: paramiko.Transport) -> None:
    """Offer what our sshd offers, and no more."""
    options = transport.get_security_options()
    options.key_types = (KEY_TYPE,)
    options.kex = ("curve25519-sha256@libssh.org",)
    options.ciphers = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
    transport.banner_timeout = STEP_TIMEOUT_S
    transport.handshake_timeout = STEP_TIMEOUT_S
    transport.auth_timeout = STEP_TIMEOUT_S


def _watch(raw: socket.socket) -> None:
    """Have the kernel end the connection when the other machine is gone. tcp(7)."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, _PROBE_IDLE_S),
        (socket.TCP_KEEPINTVL, _PROBE_INTERVAL_S),
        (socket.TCP_KEEPCNT, _PROBES),
        (socket.TCP_USER_TIMEOUT, _SILENCE_MAX_MS),
        (socket.TCP_NODELAY, 1),
    ):
        raw.setsockopt(socket.IPPROTO_TCP, option, value)


def _cause(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
