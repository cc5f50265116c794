"""
One share: its agent process, its control mount, and what is known of it.

A monitor thread asks the server every few seconds, renews leases, reads the catalogue
and the sizes. What is asked of the share's state is answered from what it found last.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from backends.base import VOLUME_ID
from backends.errors import BackendError, DeadlineError, RemoraError
from backends.nfs import mounting, server
from backends.nfs.agent import main as agent_main
from backends.nfs.agent import trash as trash_program
from backends.nfs.agent.markers import PAGES_MAX
from backends.nfs.errors import HINTS, NfsError, NfsTimeoutError
from backends.nfs.identity import Identified, Known
from backends.nfs.options import Export, usable_entries
from backends.system import clock
from backends.system.clock import Deadline
from backends.system.mounts import mount_table, mounted_at
from backends.system.programs import own_program
from backends.system.run import Helper, run

log = logging.getLogger(__name__)

# The engine gives Create and Mount 120 s; a shorter call leaves it time for a second.
CALL_BUDGET_S: Final = 45.0
_SURVEY_INTERVAL_S: Final = 15.0
# While the server is away, or a call waits for it.
_UNEASY_INTERVAL_S: Final = 5.0
_SURVEY_DEADLINE_S: Final = 20.0
_SURVEY_PATIENCE_S: Final = 5.0
_TRASH_TURN_S: Final = 30.0
# What a failed look says of a share.
_STATES: Final = {
    **dict.fromkeys(
        ("NFS-UNREACHABLE", "NFS-REFUSED", "NFS-TIMEOUT", "NFS-DNS"), "unreachable"
    ),
    "NFS-STALE": "stale",
    "NFS-OTHER": "replaced",
}
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
    thrown_away: int = 0


class Share:
    """The daemon's side of one share; methods may be called from any thread."""

    def __init__(
        self,
        export: Export,
        control_mount: Path,
        *,
        node: str,
        copying: set[str],
        known: Known,
    ) -> None:
        self.export = export
        self.state = ShareState()
        self.held: set[str] = set()
        # Tokens of the copies that this daemon is making, for all its shares together:
        # two of them may be one directory of a server, mounted in two ways.
        self.copying = copying
        self.control_mount = control_mount
        # Whether it could be mounted once: then its name is no typing error.
        self.proven = False
        self._node = node
        self._identified = Identified(str(export), known, self._call)
        self._agent: Helper | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._asking_since_s: float | None = None
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
        self._interrupt(clock.monotonic_s())
        with self._lock:
            try:
                self._drop_control_mount()
            except RemoraError as error:
                log.warning("the next start finds it: %s", error)

    @property
    def was_read(self) -> bool:
        """Whether its catalogue was read since the daemon's start."""
        return self.state.markers is not None

    def survey_soon(self) -> None:
        """Have the monitor look now rather than at its next turn."""
        self._wake.set()

    def empty_trash(self, deadline: Deadline) -> int:
        """Delete what removals have left for that; return how many things."""
        self.require_server(deadline)
        # In short turns: should the server die, nobody waits for it for long.
        turn_s = min(deadline.remaining_s(), _TRASH_TURN_S)
        done = run(
            own_program(trash_program, str(self.control_mount)), deadline_s=turn_s
        )
        self.survey_soon()
        return int(done.output)

    def require_server(self, deadline: Deadline) -> str:
        """
        Return the address at which the server answers.

        Raises:
            NfsError: it does not, in three seconds at most.

        """
        try:
            return server.ping(self.export, timeout_s=deadline.remaining_s())
        except NfsError as error:
            if not deadline.passed():  # it was given its full time
                self._note_failure(error)
            raise

    def call(self, operation: str, *, deadline: Deadline, **request: Any) -> Any:
        """
        Return the agent's answer to *operation*.

        Raises:
            NfsError: the server or the share refused, or another share answers; nothing
                was changed.
            NfsTimeoutError: no answer in time; the agent was ended.

        """
        return self._identified.call(operation, deadline=deadline, **request)

    def accept(self, deadline: Deadline) -> str:
        """Let the share that answers be the right one; return its identity."""
        identity = self._identified.accept(deadline)
        self.survey_soon()
        return identity

    def _call(self, operation: str, *, deadline: Deadline, **request: Any) -> Any:
        # Before the lock: with a dead server each call says so in its own few seconds.
        address = self.require_server(deadline)
        where = self.export.source()
        if not self._lock.acquire(timeout=deadline.remaining_s()):
            raise NfsTimeoutError("another call waits for this server", where)
        try:
            if server.has_moved(self.export, self.control_mount, address):
                log.warning("%s has moved to %s: mounted anew", self.export, address)
                self._drop_control_mount()
            # Only now, for sets may change until the lock is ours. JSON has no sets.
            line = json.dumps({"op": operation, **request}, default=_listed)
            answer = self._ask(line, operation, deadline)
            if operation != "check" and _is_not_ours(answer):
                # The control mount itself: only a new one heals that, or tells whether
                # the server has its disk again.
                self._drop_control_mount()
                answer = self._ask(line, operation, deadline)
        finally:
            self._lock.release()
        code = answer.get("code")
        if code is None:
            return answer["result"]
        raise NfsError(code if code in HINTS else "IO", str(answer["text"]), where)

    def check(self, *, deadline: Deadline, **request: Any) -> None:
        """
        Raise NfsError unless the server knows a directory.

        It is what is mounted at `target`, or the `directory` of the share.
        """
        try:
            self.call("check", deadline=deadline, **request)
        except NfsError as error:
            # A server that refuses a look into the directory has found it.
            if error.code not in ("NFS-SQUASH", "NFS-DENIED"):
                raise

    def _ask(self, line: str, operation: str, deadline: Deadline) -> dict[str, Any]:
        """Return the agent's answer to *line*; the lock is held."""
        where = self.export.source()
        if self._stopping:
            raise NfsTimeoutError("the share is being let go", where)
        running = self._agent
        # On a directory that is no mount it would make a catalogue on our own disk.
        if running and not (running.lives() and mounted_at(self.control_mount)):
            self._drop_agent()
            running = None
        running = running or self._start_agent(deadline)
        self._asking_since_s = clock.monotonic_s()
        try:
            answer: dict[str, Any] = json.loads(running.ask(line, deadline=deadline))
        except (DeadlineError, BackendError, ValueError, RecursionError) as error:
            self._drop_agent()
            raise NfsTimeoutError(f"'{operation}' was not answered", where) from error
        finally:
            self._asking_since_s = None
        return answer

    def _start_agent(self, deadline: Deadline) -> Helper:
        """Return a new agent on a control mount that works; the lock is held."""
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
            own_program(agent_main, str(self.control_mount), self._node)
        )
        self.proven = True
        return self._agent

    def _drop_control_mount(self) -> None:
        """End the agent and unmount what it works on; the lock is held."""
        self._drop_agent()
        mounting.unmount(self.control_mount, where=str(self.export))

    def _interrupt(self, began_before_s: float) -> None:
        """End the agent under a call that waits for it since then: it fails at once."""
        agent, since_s = self._agent, self._asking_since_s
        if agent is not None and since_s is not None and since_s <= began_before_s:
            agent.kill()

    def _drop_agent(self) -> None:
        if self._agent is not None:
            self._agent.end()
            self._agent = None

    def _watch(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                self.survey()
            except Exception:  # the watch must go on
                log.exception("%s was not looked at", self.export)
            away = self.state.state in ("unreachable", "replaced")
            calm = not away and self._asking_since_s is None
            self._wake.wait(_SURVEY_INTERVAL_S if calm else _UNEASY_INTERVAL_S)

    def survey(self) -> None:
        """Look at the share once and remember what was found."""
        try:
            self._require_life()
            # A call that waits for a server that has died must be noticed soon.
            if not self._lock.acquire(timeout=_SURVEY_PATIENCE_S):
                return
            self._lock.release()
            found = self._surveyed()
            thrown_away = found["thrown_away"]
            # `copying` is read after the share was: each copy is in there before it is
            # on the share, so that what is found and not in there was cut short.
            if cut_short := sorted(found["begun"] - self.copying):
                thrown_away = self.call(
                    "repair", deadline=Deadline(_SURVEY_DEADLINE_S), tokens=cut_short
                )
        except RemoraError as error:
            self._note_failure(error)
            return
        if found["error"] and found["error"] != self.state.error:
            log.warning("%s: %s", self.export, found["error"])
        if self.state.state not in ("ok", "unknown"):
            log.info("%s answers again", self.export)
        self.state = ShareState(
            state="ok",
            error=found["error"],
            checked_at=clock.now_rfc3339(),
            total_bytes=found["total_bytes"],
            available_bytes=found["available_bytes"],
            markers=found["markers"],
            thrown_away=thrown_away,
        )

    def _surveyed(self) -> dict[str, Any]:
        """Return what is found, page by page: other calls have their turn between."""
        markers: dict[str, Any] = {}
        begun: set[str] = set()
        renewal = Deadline(0)
        for number in range(PAGES_MAX + 1):
            # A function, called when the lock is ours: a lease that is given back
            # before must not be taken anew.
            held = self._ids_in_use if renewal.passed() else tuple
            if renewal.passed():
                renewal = Deadline(_SURVEY_INTERVAL_S)
            deadline, is_first = Deadline(_SURVEY_DEADLINE_S), number == 0
            found = self.call("survey", deadline=deadline, first=is_first, held=held)
            # An agent that was started anew meanwhile has begun anew as well.
            markers |= {each["name"]: each for each in found["markers"]}
            begun.update(found["begun"])
            if not found["more"]:
                break
        return {**found, "markers": [*markers.values()], "begun": begun}

    def _require_life(self) -> None:
        """
        Raise NfsError if the server is dead; calls that wait for it then fail.

        So do those that wait at an address at which it is no more.
        """
        began_s = clock.monotonic_s()
        try:
            address = self._answering_address()
        except NfsError:
            self._interrupt(began_s)
            raise
        if server.has_moved(self.export, self.control_mount, address):
            self._interrupt(began_s)

    def _answering_address(self) -> str:
        with suppress(NfsError):
            return server.ping(self.export)
        return server.ping(self.export)

    def _ids_in_use(self) -> set[str]:
        return self.held | self._mounted_ids()

    def _mounted_ids(self) -> set[str]:
        """Return the volumes mounted here, those of an earlier daemon included."""
        source = self.export.source()
        return {
            name
            for entry in mount_table()
            if entry.filesystem.startswith("nfs")
            and f"{entry.source}/".startswith(f"{source.rstrip('/')}/")
            and VOLUME_ID.fullmatch(name := Path(entry.mount_point).name)
        }

    def _note_failure(self, error: RemoraError) -> None:
        state = _STATES.get(error.code, "error")
        if self.state.state != state:
            log.warning("%s is %s: %s", self.export, state, error)
        self.state = replace(
            self.state,
            state=state,
            error=str(error),
            checked_at=clock.now_rfc3339(),
        )


def _listed(value: Any) -> list[str]:
    """Return a set, or what a function returns at this moment, as JSON takes it."""
    return sorted(value() if callable(value) else value)


def _is_not_ours(answer: dict[str, Any]) -> bool:
    """Return whether the agent met another share, or ESTALE, said by no refusal."""
    return answer.get("code") == "OTHER" or (
        answer.get("code") == "STALE"
        and str(answer["text"]).startswith(os.strerror(errno.ESTALE))
    )


def _with_control_entries(entries: str) -> str:
    """Return mount options for the control mount: the user's, but uncached."""
    kept = [
        entry
        for entry in usable_entries(entries)
        if not entry.startswith(("ac", "noac", "lookupcache", "nocto"))
    ]
    return ",".join([*kept, _CONTROL_ENTRIES])
