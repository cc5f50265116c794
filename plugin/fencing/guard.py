"""
The guard: a small process that stops the writers of volumes whose time is over.

It does so whether the daemon lives or not, so that there is one way to do it. It
outlives the daemon, serves the next one, and ends by itself when nothing is held and
nobody is connected. Requests are lines of JSON on a Unix socket of its run directory:

    {"op": "hello", "version": V}       it ends if a daemon of other code started it
    {"op": "hold", "volumes": [...]}    all that is held, in place of what was before
    {"op": "kill", "ids": [...]}        volumes that other nodes own by now
    {"op": "forget", "id": I}
    {"op": "pause", "id": I, "targets": [...]}   for a commit, a second at most
    {"op": "resume", "id": I}
    {"op": "states"}

Every answer has `states`; to `pause` also who is `late` and does not stand still: then
nobody does; to `resume` whether all stood `still`.
Standard library only: it starts in a twentieth of a second.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final

from backends.system import clock, libc
from plugin.fencing import writers
from plugin.fencing.fences import Fences
from plugin.fencing.freezer import Target
from plugin.fencing.held import (
    MESSAGE_SIZE_MAX,
    HeldVolume,
    socket_address,
)
from plugin.fencing.timer import Timer

LOG_NAME: Final = "guard.log"
_LOCK_NAME: Final = "guard.lock"
_LOG_SIZE_MAX: Final = 256 * 1024
# We wait so long for a daemon that has just started us, or restarts.
_IDLE_S: Final = 5.0
_CONNECTIONS_MAX: Final = 16
_SEND_TIMEOUT_S: Final = 1.0
_PEER_CREDENTIALS: Final = struct.Struct("3i")
# MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT: a third of Python's pages is never touched.
_LOCKED: Final = 1 | 2 | 4


class _Connection:
    """A daemon that talks to us."""

    def __init__(self, ours: socket.socket) -> None:
        self.socket = ours
        self.pending = b""
        credentials = ours.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size
        )
        self.pid: int = _PEER_CREDENTIALS.unpack(credentials)[0]

    def lines(self) -> list[bytes] | None:
        """Return the requests that have come; None at the end of the connection."""
        try:
            chunk = self.socket.recv(1 << 20, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not chunk or len(self.pending) > MESSAGE_SIZE_MAX:
            return None
        *lines, self.pending = (self.pending + chunk).split(b"\n")
        return lines


class _Guard:
    """The socket, the timer, and the fences they drive."""

    def __init__(self, run_dir: str, version: str, log: Callable[[str], None]) -> None:
        self._log = log
        self._version = version
        self._fences = Fences(run_dir, log=log)
        self._timer = Timer()
        self._connections: dict[int, _Connection] = {}
        self._poll = select.poll()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with socket_address(run_dir) as address:
            with suppress(FileNotFoundError):
                os.unlink(address)
            self._listener.bind(address)
            os.chmod(address, 0o600)
        self._listener.listen(_CONNECTIONS_MAX)
        self._poll.register(self._listener, select.POLLIN)
        self._poll.register(self._timer.descriptor, select.POLLIN)
        self._ends = False

    def run(self) -> None:
        """Guard until there is nothing to guard, or another guard is to."""
        idle = clock.Deadline(_IDLE_S)
        while not self._ends:
            if self._connections or not self._fences.empty:
                idle = clock.Deadline(_IDLE_S)
            elif idle.passed():
                return
            self._fences.act()
            self._timer.set(self._fences.next_s())
            for descriptor, _ in self._poll.poll(_IDLE_S * 1000):
                self._serve(descriptor)

    def _serve(self, descriptor: int) -> None:
        if descriptor == self._timer.descriptor:
            with suppress(BlockingIOError):
                os.read(descriptor, 8)
        elif descriptor == self._listener.fileno():
            self._accept()
        elif connection := self._connections.get(descriptor):
            lines = connection.lines()
            if lines is None:
                self._close(descriptor)
            for line in lines or ():
                self._respond(descriptor, connection, line)

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return  # it has gone again
        accepted.settimeout(_SEND_TIMEOUT_S)
        if len(self._connections) >= _CONNECTIONS_MAX:
            accepted.close()
            return
        connection = _Connection(accepted)
        self._connections[accepted.fileno()] = connection
        self._poll.register(accepted, select.POLLIN)
        self._fences.never = frozenset(each.pid for each in self._connections.values())

    def _close(self, descriptor: int) -> None:
        connection = self._connections.pop(descriptor)
        self._fences.resume_all()
        self._poll.unregister(descriptor)
        connection.socket.close()
        self._fences.never = frozenset(each.pid for each in self._connections.values())

    def _respond(self, descriptor: int, connection: _Connection, line: bytes) -> None:
        try:
            answer = self._answer(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            answer = {"error": f"not understood: {error!r}"}
        try:
            connection.socket.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:
            if descriptor in self._connections:
                self._close(descriptor)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        operation, still, late = request["op"], False, list[Target]()
        if operation == "hello":
            same = request["version"] == self._version
            self._ends = not same
            if self._ends:
                self._log("hands over to a guard of another version")
                # It may be of one that knows of no pauses.
                self._fences.resume_all()
                self._fences.save()
            return {"same": same, "pid": os.getpid(), "states": self._fences.states()}
        if operation == "hold":
            self._fences.hold([HeldVolume(**each) for each in request["volumes"]])
        elif operation == "kill":
            self._fences.kill(request["ids"])
        elif operation == "forget":
            self._fences.forget(request["id"])
        elif operation == "pause":
            targets = [Target(**each) for each in request["targets"]]
            late = [*self._fences.pause(request["id"], targets)]
        elif operation == "resume":
            still = self._fences.resume(request["id"])
        elif operation != "states":
            raise KeyError(operation)
        # What is due is done before the daemon is told.
        self._fences.act()
        told = {"still": still, "late": [asdict(each) for each in late]}
        return {"states": self._fences.states(), **told}


def _logger(run_dir: str) -> Callable[[str], None]:
    """Return what writes a line into the guard's log, which is bounded."""
    path = f"{run_dir}/{LOG_NAME}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)

    def log(line: str) -> None:
        with suppress(OSError):
            if os.fstat(descriptor).st_size > _LOG_SIZE_MAX:
                os.ftruncate(descriptor, 0)
            text = f"{clock.now_rfc3339()} {clock.boottime_s():.3f} {line}\n"
            os.write(descriptor, text.encode(errors="backslashreplace"))

    return log


def _lock(run_dir: str) -> bool:
    """Return whether this is the only guard of *run_dir*, until it ends."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(f"{run_dir}/{_LOCK_NAME}", flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True  # the descriptor stays open


def _detach() -> int:
    """
    Continue as a process that nobody waits for; return a descriptor to the starter.

    The starter ends with success when something is written there, else with failure.
    """
    heard, told = os.pipe()
    if os.fork():
        os.close(told)
        os._exit(0 if os.read(heard, 1) else 1)
    os.close(heard)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    return told


def main() -> None:
    """Guard in the directory of the first argument; the second is our version."""
    run_dir, version = sys.argv[1:]
    told = _detach()
    if not _lock(run_dir):
        os.write(told, b"+")
        return
    os.chdir("/")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    log = _logger(run_dir)
    # A starved machine must not delay us. Both need privileges, and neither is vital.
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as adjustment:
        adjustment.write("-1000")
    guard = _Guard(run_dir, version, log)
    # Run the code of a scan once, so that its pages are in memory and can be locked.
    writers.find((), never=(), open_files=True)
    locked = _lock_memory()
    log(f"guards{'' if locked else ', its memory is not locked'}")
    os.write(told, b"+")
    os.close(told)
    try:
        guard.run()
    except BaseException as error:
        log(f"ends: {error!r}")
        raise
    log("ends: nothing is held")


def _lock_memory() -> bool:
    """Return whether what this process uses stays in memory. Source: mlockall(2)."""
    with suppress(OSError):
        libc.call("mlockall", _LOCKED)
        return True
    return False
