"""
Patience with what has not answered yet: a bounded number of callers, a bounded time.

After a power failure the NFS server, etcd or another node may be minutes later than
this machine, and an engine starts its containers once. And while a share was not read
yet, nobody knows what volumes there are. So a call is tried again until there is an
answer, be it no. Between two attempts it holds no lock, and few of those that wait make
an attempt at once, fewer still of those that wait for the same: whoever waits for one
server delays nobody who needs another.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Final, TypeVar

from backends.errors import RemoraError
from backends.system import clock
from backends.system.clock import Deadline
from plugin.limits import ATTEMPTS_FOR_ONE_MAX, ATTEMPTS_MAX, WAITING_MAX

log = logging.getLogger(__name__)
Result = TypeVar("Result")
CallerGone = Callable[[], bool]

# From attempt to attempt it is longer; how often a caller is looked after meanwhile.
_FIRST_PAUSE_S: Final = 0.5
_PAUSE_MAX_S: Final = 3.0
_LOOK_S: Final = 0.5
# An attempt needs that long to tell why it failed; else its caller hears of a deadline.
_ATTEMPT_MIN_S: Final = 8.0


class Patience:
    """
    See the module's text; it lasts until *until_s*, in seconds since the boot.

    Without that, each call has it for as long as its own deadline.
    """

    def __init__(
        self,
        *,
        until_s: float | None = None,
        error: type[RemoraError] = RemoraError,
        waiting_max: int = WAITING_MAX,
        attempt_min_s: float = _ATTEMPT_MIN_S,
    ) -> None:
        """Wait for those who have given no answer with an *error* of this kind."""
        self._until_s = until_s
        self._error = error
        self._attempt_min_s = attempt_min_s
        self._places = threading.BoundedSemaphore(waiting_max)
        # How many make an attempt at this moment, by what they have last heard.
        self._attempts = Counter[str]()
        self._guard = threading.Lock()
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Let all who wait have the last error now, and nobody wait any more."""
        self._stopping.set()

    def run(
        self,
        what: str,
        attempt: Callable[[Deadline], Result],
        deadline: Deadline,
        *,
        caller_gone: CallerGone,
    ) -> Result:
        """
        Return what *attempt* returns; while it is unanswered, try again.

        Raises:
            RemoraError: as the last attempt.

        """
        try:
            return attempt(deadline)
        except RemoraError as error:
            if not self._is_worth(error, deadline):
                raise
            if not self._places.acquire(blocking=False):
                raise
            log.info("%s waits for an answer: %s", what, error)
            last = error
        try:
            return self._again(attempt, deadline, last, caller_gone)
        finally:
            self._places.release()

    def _again(
        self,
        attempt: Callable[[Deadline], Result],
        deadline: Deadline,
        last: RemoraError,
        caller_gone: CallerGone,
    ) -> Result:
        pause_s = _FIRST_PAUSE_S
        while self._paused(pause_s, deadline, caller_gone):
            pause_s = min(pause_s * 2, _PAUSE_MAX_S)
            cause = last.cause
            if not self._may_begin(cause):
                continue
            try:
                return attempt(deadline)
            except RemoraError as error:
                if not self._is_worth(error, deadline):
                    raise
                last = error
            finally:
                self._end(cause)
        raise last

    def _may_begin(self, cause: str) -> bool:
        """Return whether an attempt begins, of those who were told the *cause*."""
        with self._guard:
            for_one, all_of_them = self._attempts[cause], self._attempts.total()
            begins = for_one < ATTEMPTS_FOR_ONE_MAX and all_of_them < ATTEMPTS_MAX
            if begins:
                self._attempts[cause] += 1
        return begins

    def _end(self, cause: str) -> None:
        with self._guard:
            self._attempts[cause] -= 1
            self._attempts += Counter()  # without those that are at none

    def _paused(
        self, pause_s: float, deadline: Deadline, caller_gone: CallerGone
    ) -> bool:
        """Return whether it is worth another attempt, after *pause_s*."""
        pause = Deadline(pause_s)
        while not pause.passed():
            self._stopping.wait(min(_LOOK_S, pause.remaining_s()))
            if caller_gone() or self._is_over(deadline):
                return False
        return True

    def _is_worth(self, error: RemoraError, deadline: Deadline) -> bool:
        waits_for = error.unanswered and isinstance(error, self._error)
        return waits_for and not self._is_over(deadline)

    def _is_over(self, deadline: Deadline) -> bool:
        if self._stopping.is_set() or deadline.remaining_s() <= self._attempt_min_s:
            return True
        return self._until_s is not None and clock.boottime_s() >= self._until_s
