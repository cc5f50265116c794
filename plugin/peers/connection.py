"""
One connection to another node: an ssh of its own, then requests and answers as lines.

The thread that opens it also reads it to its end. Only that thread waits without a
bound, for answers: ssh ends six seconds after the other side has become silent.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, Final

from backends.errors import BackendError, RemoraError, one_line
from backends.system.clock import Deadline
from backends.system.run import Dialogue
from plugin.errors import PeerSilentError, PeerUnreachableError
from plugin.peers.lines import Lines, decode, encode, error_from_json, read_answer
from plugin.peers.peer import Peer
from plugin.peers.sharing import SharedSsh

# The bound for all of it: name, address, keys, login.
_OPEN_WITHIN_S: Final = 10.0
_LOOK_EVERY_S: Final = 1.0
# ssh has one exit status for all its errors, so its words tell them apart. Our sshd
# ("MaxAuthTries 1") hangs up on a stranger before ssh can print the first of these.
_STRANGER: Final = re.compile(r"Permission denied \(|Too many authentication failures")
_OTHER_KEY: Final = "REMOTE HOST IDENTIFICATION HAS CHANGED"
_BEGINS: Final = re.compile(r"^ssh: (connect to host \S+ port \d+: )?")


class Connection:
    """A control session with *peer* at *address*; threads may share it."""

    def __init__(self, peer: Peer, address: str, ssh: Dialogue, lines: Lines) -> None:
        self.address = address
        self._peer = peer
        self._ssh = ssh
        self._lines = lines
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._pending: dict[int, Future[dict[str, Any]]] = {}
        self._count = 0
        self._fault = ""
        # Whether the node has ever answered: one that lets us in may still refuse.
        self.answered = False

    @property
    def fault(self) -> str:
        """Return why it cannot be used any more, "" while it can."""
        return self._fault

    def ask(
        self,
        request: str,
        body: Mapping[str, Any],
        *,
        deadline: Deadline,
        patient: Callable[[], bool],
    ) -> Mapping[str, Any]:
        """
        Return the node's answer, if it comes while *patient* says yes.

        Raises:
            PeerUnreachableError: it gave none; it may have done what was asked.
            RemoteError: it said no.

        """
        pending: Future[dict[str, Any]] = Future()
        with self._lock:
            if self._fault:
                raise PeerUnreachableError(self._fault)
            number = self._count = self._count + 1
            self._pending[number] = pending
        try:
            self._send(encode({**body, "id": number, "request": request}), deadline)
            while not wait([pending], min(_LOOK_EVERY_S, deadline.remaining_s())).done:
                if deadline.passed() or not patient():
                    raise PeerSilentError(
                        f"node '{self._peer.name}' did not answer '{request}' in time"
                    )
            answer = pending.result()
        finally:
            with self._lock:
                self._pending.pop(number, None)
        if "error" in answer:
            raise error_from_json(answer["error"])
        return read_answer(request, answer.get("result"))

    def close(self, why: str) -> None:
        """End the connection; all that wait for an answer get *why* as the error."""
        with self._lock:
            self._fault = self._fault or one_line(why)
            waiting = list(self._pending.values())
            self._pending.clear()
            with suppress(OSError):  # it has ended already
                self._ssh.socket.shutdown(socket.SHUT_RDWR)
        for each in waiting:
            each.set_exception(PeerUnreachableError(self._fault))

    def serve(self) -> None:
        """Hand out answers until the connection ends."""
        why = f"the connection to node '{self._peer.name}' has ended"
        try:
            while (line := self._lines.next()) is not None:
                answer = decode(line)
                self.answered = True
                with self._lock:
                    pending = self._pending.pop(answer.get("id", 0), None)
                if pending is not None:
                    pending.set_result(answer)
        except (RemoraError, OSError, TypeError) as error:
            self.close(f"{why}: {error}")
        finally:
            with self._lock:
                ours = not self._fault
                self._fault = self._fault or why  # nobody asks it any more
            said = self._ssh.end()
            if ours and said:
                self._fault = one_line(f"{why}: {said}")
            self.close(self._fault)
            # No thread may be about to use the socket's number when it is closed.
            with self._sending, self._lock:
                self._ssh.socket.close()

    def _send(self, line: bytes, deadline: Deadline) -> None:
        if not self._sending.acquire(timeout=deadline.remaining_s()):
            raise self._full()
        try:
            if self._fault:
                raise PeerUnreachableError(self._fault)
            if not self._ssh.takes_more(within_s=deadline.remaining_s()):
                raise self._full()
            # The kernel takes a line as a whole or not at all: it is far shorter than
            # the socket's buffer.
            self._ssh.socket.sendall(line, socket.MSG_DONTWAIT)
        except OSError as error:
            self.close(f"node '{self._peer.name}' takes no more requests: {error}")
            raise PeerUnreachableError(self._fault) from error
        finally:
            self._sending.release()

    def _full(self) -> PeerUnreachableError:
        return PeerUnreachableError(f"node '{self._peer.name}' took no request in time")


class StrangerError(PeerUnreachableError):
    """The node does not know this one's key: not yet, or not any more."""


def connect(peer: Peer, address: str, ssh: SharedSsh) -> Connection:
    """
    Return a connection to *peer* at *address*; this thread has to serve it.

    Raises:
        StrangerError: it does not let us in.
        PeerUnreachableError: there is none, or not to that node.

    """
    where = f"node '{peer.name}' at {address} port {peer.port}"
    try:
        process = Dialogue(ssh.control_command(peer, address))
    except (BackendError, OSError) as error:
        raise PeerUnreachableError(f"{where}: {error}") from error
    process.socket.settimeout(_OPEN_WITHIN_S)
    lines = Lines(process.socket.recv)
    with suppress(OSError):  # TimeoutError
        if lines.next() is not None:
            process.socket.settimeout(None)
            return Connection(peer, address, process, lines)
    said = process.end()
    process.socket.close()
    raise _fault(where, said)


def _fault(where: str, said: str) -> PeerUnreachableError:
    """Return the error that ssh's words *said* stand for."""
    if _STRANGER.search(said):
        return StrangerError(f"{where}: Authentication failed")
    if _OTHER_KEY in said:
        return PeerUnreachableError(
            f"{where} has another host key than its record: somebody else has the "
            "address, or the node's keys were made anew"
        )
    words = "; ".join(_BEGINS.sub("", said).splitlines())
    return PeerUnreachableError(f"{where}: {words or 'it hung up or fell silent'}")
