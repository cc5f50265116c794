"""
Slow operations: one at a time for each volume, each with a deadline of its own.

An operation runs in a thread of its own while its caller waits. When the deadline
passes, or the caller is gone, the caller gets an error at once and the operation, when
it ends at last, is undone: nothing is left that the engine does not know of. Whatever
one volume's storage does, other volumes do not wait for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

from backends.errors import DeadlineError, RemoraError, VolumeBusyError
from backends.system.aside import Threads, ended
from backends.system.clock import Deadline
from plugin.limits import CALLS_MAX, OPERATIONS_MAX
from plugin.volumes.patience import CallerGone, Patience

log = logging.getLogger(__name__)
Result = TypeVar("Result")

# How often a waiting caller looks whether the engine is still there.
_CALLER_CHECK_S: Final = 0.5
# The share of its deadline for which an operation waits for its turn, then of the rest
# for its volume. So a caller that had neither hears that, not that the work was late.
_LOCK_SHARE: Final = 0.9


def never() -> bool:
    """Return False: the caller has not gone. For callers that cannot be watched."""
    return False


class VolumeLocks:
    """One lock for each volume that has something under way; idle ones take no room."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def hold(self, name: str, deadline: Deadline) -> Iterator[None]:
        """
        Hold the lock of volume *name*.

        Raises:
            VolumeBusyError: another operation held it until *deadline*.

        """
        with self._guard:
            lock, users = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = (lock, users + 1)
        try:
            if not lock.acquire(timeout=deadline.remaining_s()):
                raise VolumeBusyError(
                    f"another operation on '{name}' is still under way", hint="retry"
                )
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._guard:
                lock, users = self._locks[name]
                if users == 1:
                    del self._locks[name]
                else:
                    self._locks[name] = (lock, users - 1)

    def names(self) -> list[str]:
        """Return the volumes that have something under way."""
        with self._guard:
            return sorted(self._locks)


class Operations:
    """
    Runs operations under their volume's lock; at most `OPERATIONS_MAX` on each storage.

    Others wait for their turn, the first that came first. *storage_of* tells by a
    volume's name where it is: a pool that hangs keeps all places of its own.
    """

    def __init__(
        self,
        storage_of: Callable[[str], str] = lambda _: "",
        *,
        operations_max: int = OPERATIONS_MAX,
        calls_max: int = CALLS_MAX,
    ) -> None:
        self.locks = VolumeLocks()
        self._storage_of = storage_of
        self._rooms: dict[str, threading.BoundedSemaphore] = {}
        self._operations_max = operations_max
        self._calls = threading.BoundedSemaphore(calls_max)
        self._threads = Threads("operation")

    def under_way(self) -> list[str]:
        """Return the names of the volumes that something is done with."""
        return self.locks.names()

    def run(
        self,
        name: str,
        work: Callable[[Deadline], Result],
        *,
        deadline_s: float,
        undo: Callable[[Result], None] | None = None,
        caller_gone: CallerGone = never,
        storage: str = "",
        patience: Patience | None = None,
    ) -> Result:
        """
        Return what *work* returns, or raise what it raises, within *deadline_s*.

        *storage* says where a volume will be that is not there yet. With *patience*
        the work is done again while something needed for it does not answer.
        *undo* gets the result of work that ended too late; it runs under the same lock.
        Without it such work stays done.

        Raises:
            VolumeBusyError: too much is under way, or this volume's last operation.
            DeadlineError: the work goes on; if there is an *undo*, that follows it.

        """
        deadline = Deadline(deadline_s)

        def once(deadline: Deadline) -> Result:
            return self._run_once(
                *(name, work, deadline),
                undo=undo,
                caller_gone=caller_gone,
                storage=storage,
            )

        if not self._calls.acquire(blocking=False):
            raise self._busy()
        try:
            if patience is None:
                return once(deadline)
            return patience.run(f"'{name}'", once, deadline, caller_gone=caller_gone)
        finally:
            self._calls.release()

    def _run_once(
        self,
        name: str,
        work: Callable[[Deadline], Result],
        deadline: Deadline,
        *,
        undo: Callable[[Result], None] | None,
        caller_gone: CallerGone,
        storage: str,
    ) -> Result:
        """Do as `run`, in one attempt, for a caller that is counted."""
        within_s = deadline.remaining_s()
        room = self._room(storage or self._storage_of(name))
        if not room.acquire(timeout=within_s * _LOCK_SHARE):
            raise self._busy()
        # Nobody waits any more for one that is cancelled; it goes on all the same.
        operation = Future[Result]()

        def leave(body: Future[None]) -> None:
            room.release()
            if error := body.exception():
                _told(partial(operation.set_exception, error))

        body = partial(self._work, name, work, operation, deadline, undo)
        self._threads.begun(body).add_done_callback(leave)
        while not ended(
            operation, within_s=min(_CALLER_CHECK_S, deadline.remaining_s())
        ):
            if (deadline.passed() or caller_gone()) and operation.cancel():
                raise _late(name, within_s, goes_on=undo is None)
        return operation.result()

    def _room(self, storage: str) -> threading.BoundedSemaphore:
        room = threading.BoundedSemaphore(self._operations_max)
        return self._rooms.setdefault(storage, room)

    def _busy(self) -> VolumeBusyError:
        return VolumeBusyError(
            f"{self._operations_max} operations are under way already",
            hint="retry; 'remora status' shows what storage is slow",
        )

    def _work(
        self,
        name: str,
        work: Callable[[Deadline], Result],
        operation: Future[Result],
        deadline: Deadline,
        undo: Callable[[Result], None] | None,
    ) -> None:
        try:
            with self.locks.hold(name, Deadline(deadline.remaining_s() * _LOCK_SHARE)):
                result = work(deadline)
                told = _told(partial(operation.set_result, result))
                if not told and undo is not None:
                    undo(result)
        except RemoraError as error:
            if not _told(partial(operation.set_exception, error)):
                log.warning("an abandoned operation on '%s' ended: %s", name, error)
        except BaseException as error:
            if not _told(partial(operation.set_exception, error)):
                log.exception("an abandoned operation on '%s' failed", name)


def _told(tell: Callable[[], None]) -> bool:
    """Return whether the operation's caller still waits for what *tell* tells it."""
    try:
        tell()
    except InvalidStateError:
        return False
    return True


def _late(name: str, deadline_s: float, *, goes_on: bool) -> DeadlineError:
    if goes_on:
        return DeadlineError(
            f"'{name}' was not done in {deadline_s:.0f} s and goes on",
            hint="the same call again waits for it; 'remora status' shows it",
        )
    return DeadlineError(
        f"'{name}' was not done in {deadline_s:.0f} s and is being undone",
        hint="retry; 'remora status' shows whether storage answers",
    )
