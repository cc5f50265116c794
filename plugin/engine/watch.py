"""
A look at the engine every few seconds, in a thread of its own.

While the engine starts, or mounts, it may not answer: nothing of ours waits for it. And
only one that runs is asked: systemd listens at its socket, too, and would start a
Docker that an administrator has stopped.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from backends.errors import RemoraError
from backends.system.clock import Deadline
from plugin.engine.engine_api import EngineApi
from plugin.engine.local_volumes import hidden, local_volumes
from plugin.engine.starter import ContainerStarter
from plugin.errors import EngineError

log = logging.getLogger(__name__)
# Volumes are asked for at every third look.
_LOOKS: Final = 3
_CALL_S: Final = 15.0
_STOP_WAIT_S: Final = 2.0


class EngineWatch:
    """See the module's text; without a *starter* no container is started."""

    def __init__(
        self,
        socket: Path,
        names: Callable[[], Iterable[str]],
        starter: ContainerStarter | None,
        *,
        interval_s: float,
    ) -> None:
        """*names* returns those of our volumes."""
        self._socket = socket
        self._engine = EngineApi(socket, timeout_s=_CALL_S)
        self._names = names
        self._starter = starter
        self._interval_s = interval_s
        self._hidden: list[str] = []
        self._fault = ""
        self._volumes_due = Deadline(0)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin with a first look at once."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; wait a little for a look under way."""
        self._stopping.set()
        self._thread.join(_STOP_WAIT_S)

    def hidden(self) -> list[str]:
        """Return the names of ours by which Docker means volumes of its own."""
        return self._hidden

    def run_once(self) -> None:
        """
        Look once.

        Raises:
            EngineError: the engine does not answer, or does not run, and there is a
                starter.
            StoreError: the names of our volumes are not known.

        """
        if not _runs(self._socket):
            self._hidden = []
            if self._starter is None:
                return
            raise EngineError(
                f"no Docker runs at {self._socket}: no process has the number in "
                f"{_pid_file(self._socket)}, and start_containers starts nothing",
                hint="with another --pidfile of dockerd, give its default",
            )
        if self._volumes_due.passed():
            self._hidden = hidden(self._names(), local_volumes(self._engine))
            self._volumes_due = Deadline(_LOOKS * self._interval_s)
        if self._starter is not None:
            self._starter.run_once(self._engine)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.run_once()
            except (RemoraError, LookupError, TypeError, AttributeError) as error:
                # But for the first: the answer has another form than Docker's.
                self._tell(str(error) or "unknown answer")
            except Exception:
                log.exception("the engine was not looked at")
            else:
                self._tell("")
            self._stopping.wait(self._interval_s)

    def _tell(self, fault: str) -> None:
        """Log a *fault* once; without the switch nothing depends on the look."""
        if fault and fault != self._fault:
            level = logging.WARNING if self._starter else logging.DEBUG
            log.log(level, "the engine was not looked at: %s", fault)
        self._fault = fault


def _runs(socket: Path) -> bool:
    """Return whether a dockerd serves *socket*, by the pid file beside it."""
    try:
        pid = int(_pid_file(socket).read_text("ascii"))
    except (OSError, ValueError):
        return False
    return Path(f"/proc/{pid}").exists()


def _pid_file(socket: Path) -> Path:
    return socket.with_name("docker.pid")
