"""
The daemon's side of the guard: it tells what is held until when, and gets states.

If a guard ends, its connection breaks: it is replaced at once, and the new one is told
what the last one was told. Every call is bounded.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import threading
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from backends.errors import RemoraError
from backends.system import clock, files, run
from backends.system.programs import own_program
from plugin.errors import FencingError
from plugin.fencing import guard
from plugin.fencing.freezer import Target
from plugin.fencing.held import (
    MESSAGE_SIZE_MAX,
    HeldVolume,
    State,
    code_version,
    socket_address,
)

log = logging.getLogger(__name__)

# On a machine that starts everything at once a process may take so long to start.
_START_S: Final = 30.0
# A guard that kills many processes is busy for a second or two.
_ANSWER_S: Final = 5.0
_RETRY_S: Final = 0.5
# The pause in which a guard of another version ends.
_CONNECT_PAUSE_S: Final = 0.02


class _EndedError(FencingError):
    """The guard has ended during a call."""


class Guard:
    """The guard of *run_dir*, which outlives this object if volumes are held."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = str(run_dir)
        self._version = code_version()
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._volumes: Sequence[HeldVolume] | None = None
        self._closing = threading.Event()
        self._watcher = threading.Thread(
            target=self._watch, name="fencing-guard", daemon=True
        )
        # Wakes the watcher for a new connection, and at the end.
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def start(self) -> None:
        """
        Connect to the guard, starting one if there is none of this version.

        Raises:
            FencingError: none answers.

        """
        try:
            files.keep_private(Path(self._run_dir))
        except OSError as error:
            raise FencingError(
                f"cannot make {self._run_dir}: {error.strerror}",
                hint="move aside what is there",
            ) from error
        with self._lock:
            self._connect()
        if not self._watcher.is_alive():
            self._watcher.start()

    def hold(self, volumes: Sequence[HeldVolume]) -> Mapping[str, State]:
        """
        Hold exactly *volumes*; return the state of each that the guard knows.

        A frozen volume whose deadline is renewed runs again; one that *volumes* lacks
        stays frozen. A killed one stays killed until *volumes* has lacked it once.

        Raises:
            FencingError: the guard has not heard it; it acts on what it knows.

        """
        with self._lock:
            self._volumes = tuple(volumes)
            return self._ask(_hold_request(self._volumes))

    def kill(self, volume_ids: Collection[str]) -> Mapping[str, State]:
        """
        Kill the volumes' writers; return the state of each that the guard knows.

        While a state is `stopping` or `frozen`, some writers are still dying: call it
        again. Raises as `hold`.
        """
        with self._lock:
            return self._ask({"op": "kill", "ids": sorted(volume_ids)})

    def forget(self, volume_id: str) -> None:
        """Let the volume's writers run and guard it no more; raises as `hold`."""
        with self._lock:
            held = self._volumes or ()
            self._volumes = tuple(each for each in held if each.id != volume_id)
            self._ask({"op": "forget", "id": volume_id})

    def held(self, volume_id: str) -> HeldVolume | None:
        """Return the volume as it was held last, None if it is not held."""
        held = self._volumes or ()
        return next((each for each in held if each.id == volume_id), None)

    def pause(self, volume_id: str, targets: Collection[Target]) -> set[Target]:
        """
        Stop *targets* until `resume`; return those that do not stand still.

        If there are any, none is stopped. All go on by themselves after `PAUSE_MAX_S`,
        or when this process ends. Raises as `hold`.
        """
        listed = [asdict(each) for each in targets]
        request = {"op": "pause", "id": volume_id, "targets": listed}
        with self._lock:
            return {Target(**each) for each in self._answer(request)["late"]}

    def resume(self, volume_id: str) -> bool:
        """Let go on what is paused; return whether it has stood still; as `hold`."""
        with self._lock:
            return bool(self._answer({"op": "resume", "id": volume_id})["still"])

    def states(self) -> Mapping[str, State]:
        """Return the state of every volume that the guard knows; raises as `hold`."""
        with self._lock:
            return self._ask({"op": "states"})

    def close(self) -> None:
        """Leave the guard, which goes on with what it knows."""
        if self._closing.is_set():
            return
        self._closing.set()
        os.write(self._wake, b"+")
        if self._watcher.is_alive():
            self._watcher.join(_START_S + _ANSWER_S)
        with self._lock:
            self._disconnect()
            os.close(self._woken)
            os.close(self._wake)

    def _ask(self, request: Mapping[str, Any]) -> Mapping[str, State]:
        states: Mapping[str, State] = self._answer(request)["states"]
        return states

    def _answer(self, request: Mapping[str, Any]) -> Any:
        """Return what the guard answers, or a new guard if it has ended."""
        if self._connection is not None:
            with suppress(FencingError):
                return self._exchange(request)
        self._connect()
        return self._exchange(request)

    def _connect(self) -> None:
        """Connect to a guard of this version that knows what is held."""
        if self._closing.is_set():  # a thread of the keeper may be late
            raise FencingError("the daemon has left its guard")
        self._disconnect()
        deadline = clock.Deadline(_START_S)
        while not self._greeted():
            self._disconnect()
            if deadline.passed():
                raise FencingError(
                    "no fencing guard answers",
                    hint=f"its log is {self._run_dir}/{guard.LOG_NAME}",
                )
            try:
                command = own_program(guard, self._run_dir, self._version)
                run.run(command, deadline_s=max(1.0, deadline.remaining_s()))
            except RemoraError as error:
                raise FencingError(f"no fencing guard starts: {error.cause}") from error
            clock.pause(_CONNECT_PAUSE_S)
        if self._volumes is not None:
            self._exchange(_hold_request(self._volumes))
        os.write(self._wake, b"+")

    def _greeted(self) -> bool:
        """Return whether there is a guard of this version; then we are connected."""
        hello = {"op": "hello", "version": self._version}
        try:
            return self._reach() and bool(self._exchange(hello)["same"])
        except _EndedError:
            return False  # it ended by itself: nobody had been connected to it

    def _reach(self) -> bool:
        """Return whether there is a guard to talk to."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_ANSWER_S)
        try:
            with socket_address(self._run_dir) as address:
                connection.connect(address)
        except OSError:
            connection.close()
            return False
        self._connection = connection
        return True

    def _exchange(self, request: Mapping[str, Any]) -> Any:
        """Return what the guard answers; close the connection if it does not."""
        connection = self._connection
        if connection is None:
            raise FencingError("there is no connection to the fencing guard")
        deadline = clock.Deadline(_ANSWER_S)
        try:
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                connection.settimeout(max(0.01, deadline.remaining_s()))
                chunk = connection.recv(1 << 20)
                if not chunk or len(answer) > MESSAGE_SIZE_MAX:
                    raise ConnectionResetError("it has ended")
                answer += chunk
        except ConnectionError as error:
            self._disconnect()
            raise _EndedError(f"the fencing guard has gone: {error}") from error
        except OSError as error:
            self._disconnect()
            raise FencingError(f"the fencing guard does not answer: {error}") from error
        response = json.loads(answer)
        if "error" in response:
            raise FencingError(f"the fencing guard refuses: {response['error']}")
        return response

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            os.write(self._wake, b"+")

    def _watch(self) -> None:
        """Replace a guard that ends, until this is closed."""
        told = False
        while not self._closing.is_set():
            with self._lock:
                connection = self._connection
                poll = select.poll()
                poll.register(self._woken, select.POLLIN)
                if connection is not None:
                    poll.register(connection, select.POLLRDHUP)
            events = poll.poll(_RETRY_S * 1000 if connection is None else None)
            if any(descriptor == self._woken for descriptor, _ in events):
                os.read(self._woken, 1 << 12)
                continue
            with self._lock:
                if self._connection is not connection or self._closing.is_set():
                    continue
                try:
                    self._connect()
                    log.warning("the fencing guard had ended: it is replaced")
                    told = False
                except FencingError as error:
                    if not told:
                        log.error("no fencing guard: %s", error)  # noqa: TRY400
                    told = True


def _hold_request(volumes: Sequence[HeldVolume]) -> Mapping[str, Any]:
    return {"op": "hold", "volumes": [asdict(volume) for volume in volumes]}
