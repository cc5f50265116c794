"""
The volumes that are to be committed at one moment, each in the round of its thread.

They meet three times: when each has been looked at, then ready to be paused, and when
what each was has been set aside. Who does not come in time, or cannot, is gone on
without. A volume that is not in a group meets nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

from backends.errors import BackendError, RemoraError
from backends.system.clock import Deadline, now_rfc3339_ms
from plugin.fencing.held import PAUSE_MAX_S
from plugin.fencing.pausing import NotStillError, Paused, Pausing
from plugin.replication.landing import Landing

# A look at all names of a large volume takes longer; then the others go on without it.
_WAIT_S: Final = 15.0
# From when they are told to stand still: the guard lets all go on not long after, and
# then nobody has a moment.
_TAKE_MAX_S: Final = PAUSE_MAX_S / 2
# As long as a guard may take that has to be started anew.
_ACT_MAX_S: Final = 60.0


@dataclass(slots=True)
class _Gate:
    """All that are there come to it; one of them acts before they go on."""

    arrived: set[str] = field(default_factory=set)
    is_open: bool = False
    is_done: threading.Event = field(default_factory=threading.Event)
    # Until it is done, and for good if whoever acts dies of a fault of ours.
    error: Exception | None = field(
        default_factory=lambda: BackendError("a fault in the daemon; see its log")
    )


class Meeting:
    """See the module's text; the threads of *volume_ids* share it."""

    def __init__(
        self, pausing: Pausing, volume_ids: Collection[str], *, wait_s: float = _WAIT_S
    ) -> None:
        self.is_of_several = len(volume_ids) > 1
        # What all that is made of it is told by; "" while there is nothing.
        self.moment = ""
        # The volumes that are of it.
        self.together: set[str] = set()
        # Those that the others did not wait for.
        self.late: set[str] = set()
        self.landing = Landing(volume_ids)
        self._pausing = pausing
        self._wait_s = wait_s
        self._changed = threading.Condition()
        self._there = {*volume_ids}
        self._looked, self._ready, self._taken = _Gate(), _Gate(), _Gate()
        self._is_due = False
        self._found: dict[str, Paused] = {}
        self._paused = Paused((), frozenset())
        # Those that were found not to stand still, with who was stopped for that.
        self._restless, self._vain = dict[str, RemoraError](), self._paused
        self._inodes: set[int] | None = None
        self._still = ExitStack()
        self._take_until = Deadline(_TAKE_MAX_S)

    @property
    def was_due(self) -> bool:
        """Whether any of the volumes has changed."""
        return self._is_due

    def stood_s(self, volume_id: str) -> float:
        """Return how long the volume stood still, or others in vain because of it."""
        if volume_id in self._restless:
            return self._vain.took_s
        is_of_it = any(each.id == volume_id for each in self._paused.volumes)
        return self._paused.took_s if is_of_it else 0.0

    def awaits(self, volume_id: str) -> bool:
        """Return whether the others do not go on without the volume."""
        with self._changed:
            return volume_id in self._there

    def is_first(self, volume_id: str) -> bool:
        """Return whether the volume has not come yet."""
        with self._changed:
            return volume_id not in self._looked.arrived

    def is_due(self, volume_id: str, *, is_changed: bool) -> bool:
        """
        Return whether there is to be a moment: one of the volumes *is_changed*.

        Who is late has only itself to think of, and is not awaited any more.
        """
        with self._changed:
            self._is_due |= is_changed
        try:
            self._come(volume_id, self._looked)
        except BackendError:
            return is_changed
        return self._is_due

    @contextmanager
    def paused(self, volume_id: str, found: Paused) -> Iterator[None]:
        """
        Have all writers of all volumes stand still; *found* are those of this one.

        Raises:
            RemoraError: as `Pausing.paused`; or the others have not waited.

        """
        with self._changed:
            self._found[volume_id] = found
        self._come(volume_id, self._ready, self._stop)
        try:
            yield
        finally:
            # Whatever has become of this one, the others are not to wait for it.
            wait_s = self._take_until.remaining_s()
            self._come(volume_id, self._taken, self._go_on, wait_s=wait_s)

    def inodes(self) -> set[int]:
        """Return the files that those who stand still have open; see `Paused`."""
        with self._changed:
            if self._inodes is None:
                self._inodes = self._paused.inodes()
            return self._inodes

    def leave(self, volume_id: str) -> None:
        """
        Let the others go on without the volume, and it without them.

        It is no error to do so twice.
        """
        with self._changed:
            self._there.discard(volume_id)
            self._changed.notify_all()

    def _come(
        self,
        volume_id: str,
        gate: _Gate,
        act: Callable[[], None] | None = None,
        *,
        wait_s: float | None = None,
    ) -> None:
        """Return when all have come to *gate*, or are gone, and one has done *act*."""
        deadline = Deadline(self._wait_s if wait_s is None else wait_s)
        with self._changed:
            gate.arrived.add(volume_id)
            self._changed.notify_all()
            while volume_id in self._there and not (
                gate.is_open or self._there <= gate.arrived
            ):
                if not self._changed.wait(deadline.remaining_s()) and deadline.passed():
                    self.late |= self._there - gate.arrived
                    self._there &= gate.arrived
            # If all have left meanwhile, somebody still ends the pause.
            if volume_id not in self._there and (self._there or gate.is_open):
                late = BackendError(
                    "the other volumes of its group did not wait for it"
                )
                raise self._restless.get(volume_id, late).with_traceback(None)
            acts, gate.is_open = not gate.is_open, True
        if acts:
            self._do(gate, act)
        else:
            gate.is_done.wait(_ACT_MAX_S)
        if gate.error is not None:
            raise gate.error.with_traceback(None)
        if volume_id in self._restless:
            raise self._restless[volume_id].with_traceback(None)

    def _do(self, gate: _Gate, act: Callable[[], None] | None) -> None:
        try:
            if act is not None:
                act()
            gate.error = None
        except (RemoraError, OSError) as error:
            gate.error = error
        finally:
            gate.is_done.set()

    def _stop(self) -> None:
        try:
            self._pause()
        except NotStillError as error:
            # Once more, without them: a container may be stuck at another disk.
            self._vain = self._paused
            with self._changed:
                for each in self._there:
                    if not self._found[each].targets.isdisjoint(error.targets):
                        self._restless[each] = error
                self._there -= self._restless.keys()
            if not self._there:
                raise
            self._pause()
        if len(self._paused.volumes) > 1:
            self.moment = now_rfc3339_ms()

    def _pause(self) -> None:
        with self._changed:
            self._paused = Paused.of(self._found[each] for each in self._there)
        self._take_until = Deadline(_TAKE_MAX_S)
        self._still.enter_context(self._pausing.paused(self._paused))

    def _go_on(self) -> None:
        self._still.close()
