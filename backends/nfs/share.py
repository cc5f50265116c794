"""
One share: its agent process, its control mount, and what is known of it.

A monitor thread asks the server every few seconds, renews leases, reads the catalogue
and the sizes. What is asked of the share's state is answered from what it found last.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backends.errors import BackendError, DeadlineError, RemoraError
from backends.nfs import agent, mounting
from backends.nfs.agent import main as agent_main
from backends.nfs.errors import HINTS, NfsError, NfsTimeoutError
from backends.nfs.options import Export
from backends.system import clock
from backends.system.clock import Deadline
from backends.system.mounts import mounted_at
from backends.system.run import Helper

log = logging.getLogger(__name__)

_SURVEY_INTERVAL_S: Final = 15.0
_SURVEY_DEADLINE_S: Final = 20.0
# The catalogue must be as the server has it now, not as this client remembers it.
_CONTROL_ENTRIES: Final = "actimeo=0,lookupcache=none"


@dataclass(frozen=True, slots=True)
class ShareState:
    """What is known of a share; ``markers`` is None until it was read once."""

    state: str = "unknown"
    error: str = ""
    checked_at: str = ""
    total_bytes: int | None = None
    available_bytes: int | None = None
    markers: list[dict[str, Any]] | None = field(default=None)


class Share:
    """The daemon's side of one share; methods may be called from any thread."""

    def __init__(self, export: Export, control_mount: Path, *, node: str) -> None:
        self.export = export
        self.state = ShareState()
        self.held: set[str] = set()
        self.control_mount = control_mount
        self._node = node
        self._agent: Helper | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._monitor = threading.Thread(
            target=self._watch, name=f"nfs:{export}", daemon=True
        )

    def start(self) -> None:
        """Begin to watch the share."""
        self._monitor.start()

    def close(self) -> None:
        """End the agent and let go of the share."""
        self._stopping = True
        self._wake.set()
        with self._lock:
            self._drop_agent()
            if mounted_at(self.control_mount):
                mounting.unmount(
                    self.control_mount, where=str(self.export), server_answers=False
                )

    def survey_soon(self) -> None:
        """Have the monitor look now rather than at its next turn."""
        self._wake.set()

    def answers(self) -> bool:
        """Return whether the server answers a call at this moment."""
        try:
            mounting.ping(self.export)
        except NfsError:
            return False
        return True

    def call(self, operation: str, *, deadline: Deadline, **request: Any) -> Any:
        """
        Return the agent's answer to *operation*.

        Raises:
            NfsError: the server or the share refused; nothing was changed.
            NfsTimeoutError: no answer in time; the agent was ended.

        """
        where = self.export.source()
        if not self._lock.acquire(timeout=deadline.remaining_s()):
            raise NfsTimeoutError("another call waits for this server", where)
        try:
            running = self._agent or self._start_agent(deadline)
            try:
                answer = running.ask(
                    json.dumps({"op": operation, **request}), deadline=deadline
                )
            except (DeadlineError, BackendError) as error:
                self._drop_agent()
                raise NfsTimeoutError(
                    f"'{operation}' was not answered", where
                ) from error
        finally:
            self._lock.release()
        return self._result(json.loads(answer), where)

    def _result(self, answer: dict[str, Any], where: str) -> Any:
        code = answer.get("code")
        if code is None:
            return answer["result"]
        if code == "STALE":
            self.survey_soon()
        raise NfsError(code if code in HINTS else "IO", str(answer["text"]), where)

    def _start_agent(self, deadline: Deadline) -> Helper:
        """Return a new agent on a control mount that works; the lock is held."""
        mounting.ping(self.export)
        if mounted_at(self.control_mount) is None:
            self.control_mount.mkdir(mode=0o700, parents=True, exist_ok=True)
            mounting.mount(
                self.export,
                self.control_mount,
                subdir="",
                entries=_with_control_entries(self.export.entries),
                deadline=deadline,
            )
        self._agent = Helper(
            agent.command(agent_main, str(self.control_mount), self._node)
        )
        return self._agent

    def _drop_agent(self) -> None:
        if self._agent is not None:
            self._agent.end()
            self._agent = None

    def _watch(self) -> None:
        while not self._stopping:
            self._wake.clear()
            self.survey()
            self._wake.wait(_SURVEY_INTERVAL_S)

    def survey(self) -> None:
        """Look at the share once and remember what was found."""
        try:
            mounting.ping(self.export)
            found = self.call(
                "survey", deadline=Deadline(_SURVEY_DEADLINE_S), held=sorted(self.held)
            )
        except RemoraError as error:
            self._note_failure(error)
            return
        if self.state.state not in ("ok", "unknown"):
            log.info("%s answers again", self.export)
        self.state = ShareState(
            state="ok",
            checked_at=clock.now_rfc3339(),
            total_bytes=found["total_bytes"],
            available_bytes=found["available_bytes"],
            markers=found["markers"],
        )

    def _note_failure(self, error: RemoraError) -> None:
        away = error.code in (
            "NFS-UNREACHABLE",
            "NFS-REFUSED",
            "NFS-TIMEOUT",
            "NFS-DNS",
        )
        state = (
            "unreachable" if away else "stale" if error.code == "NFS-STALE" else "error"
        )
        if self.state.state != state:
            log.warning("%s is %s: %s", self.export, state, error)
        if state == "stale":
            # The control mount's own root is gone: only a new mount heals that.
            with self._lock:
                self._drop_agent()
                mounting.unmount(
                    self.control_mount, where=str(self.export), server_answers=False
                )
        self.state = ShareState(
            state=state,
            error=str(error),
            checked_at=clock.now_rfc3339(),
            total_bytes=self.state.total_bytes,
            available_bytes=self.state.available_bytes,
            markers=self.state.markers,
        )


def _with_control_entries(entries: str) -> str:
    """Return mount options for the control mount: the user's, but uncached."""
    kept = [
        entry
        for entry in entries.split(",")
        if entry and not entry.startswith(("ac", "noac", "lookupcache", "nocto"))
    ]
    return ",".join([*kept, _CONTROL_ENTRIES])
