"""Work in a thread of its own, for whose outcome somebody waits, or not any more."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from backends.errors import RemoraError, VolumeBusyError

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Work = Callable[[], object]
_LOOK_WAIT_S: Final = 1.0
# A thread that has had nothing to do for so long ends.
_IDLE_S: Final = 30.0


def begun(work: Callable[[], Result], *, name: str) -> Future[Result]:
    """
    Return the outcome of *work*, which has begun.

    There always is one: if the machine has no thread left, that is the outcome. So what
    is to be given back after *work* is given back in a callback of the outcome.

    The end of the process does not wait for it, whatever it hangs at: an executor's
    threads would be waited for.
    """
    return _begun(
        work, lambda run: threading.Thread(target=run, name=name, daemon=True).start()
    )


def _begun(work: Callable[[], Result], start: Callable[[Work], None]) -> Future[Result]:
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is the outcome
            outcome.set_exception(error)

    try:
        start(run)
    except RuntimeError as error:
        busy = VolumeBusyError(
            f"no thread can be started: {error}",
            hint="retry; something on this machine has too many processes or threads",
        )
        outcome.set_exception(busy)
    return outcome


class Threads:
    """
    Threads for work that comes often: the one that was free last, or else a new one.

    With *threads_max*, work beyond that waits for a thread; *kept* of them never end.
    Each idle thread costs every removal a look at it.
    """

    def __init__(
        self, name: str, *, threads_max: int | None = None, kept: int = 0
    ) -> None:
        self._name = name
        self._threads_max = threads_max
        self._kept = kept
        self._guard = threading.Lock()
        self._count = kept
        self._free: list[SimpleQueue[Work]] = []
        self._waiting: deque[Work] = deque()
        for _ in range(kept):
            self._start(None)

    def begun(self, work: Callable[[], Result]) -> Future[Result]:
        """Return the outcome of *work*, as the function `begun` does."""
        return _begun(work, self.run)

    def run(self, work: Work) -> None:
        """
        Have *work* done; what it raises is logged.

        Raises:
            RuntimeError: the machine has no thread left, and *work* may not wait.

        """
        with self._guard:
            if self._handed(work):
                return
            self._count += 1
        try:
            self._start(work)
        except RuntimeError:
            with self._guard:
                self._count -= 1
                if self._threads_max is None or not self._count:
                    raise
                if not self._handed(work):
                    self._waiting.append(work)

    def _handed(self, work: Work) -> bool:
        """Return whether *work* has a thread, or waits for one; the guard is held."""
        if self._free:
            self._free.pop().put(work)
            return True
        if self._threads_max is not None and self._count >= self._threads_max:
            self._waiting.append(work)
            return True
        return False

    def _start(self, work: Work | None) -> None:
        """Start a thread, which is counted already."""
        serve = partial(self._serve, work)
        threading.Thread(target=serve, name=self._name, daemon=True).start()

    def _serve(self, work: Work | None) -> None:
        inbox: SimpleQueue[Work] = SimpleQueue()
        while True:
            try:
                if work is not None:
                    work()
            except BaseException:
                log.exception("a fault of ours")
            work = None  # what it holds is not kept while nothing comes
            work = self._next(inbox)
            if work is None:
                return

    def _next(self, inbox: SimpleQueue[Work]) -> Work | None:
        """Return what is to be done next, None if this thread is one too many."""
        with self._guard:
            if self._waiting:
                return self._waiting.popleft()
            self._free.append(inbox)
        while True:
            try:
                return inbox.get(timeout=_IDLE_S)
            except Empty:
                with self._guard:
                    # Without it there, work is on its way.
                    if inbox in self._free and self._count > self._kept:
                        self._free.remove(inbox)
                        self._count -= 1
                        return None


def ended(outcome: Future[Any], *, within_s: float) -> bool:
    """Return whether there is an *outcome* by then; `wait` would make more of it."""
    try:
        outcome.exception(within_s)
    except CancelledError:
        return True
    except TimeoutError:
        return outcome.done()
    return True


def log_fault(outcome: Future[Any]) -> None:
    """Log why work has failed, as a callback of what nobody waits for."""
    error = outcome.exception()
    if isinstance(error, RemoraError):
        log.warning("%s", error)
    elif error is not None:
        log.error("a fault of ours", exc_info=error)


class Looks:
    """Looks at one disk, for those who must answer at once, whether it does or not."""

    def __init__(self) -> None:
        self._late: Future[Any] | None = None
        self._threads = Threads("look")

    def at(self, look: Callable[[], Result], otherwise: Result) -> Result:
        """
        Return what *look* returns; *otherwise* if it fails, or takes long.

        While one takes long no other begins: each would keep a thread.
        """
        late = self._late
        if late is not None and not late.done():
            return otherwise
        looking = self._threads.begun(look)
        if not ended(looking, within_s=_LOOK_WAIT_S):
            self._late = looking
            return otherwise
        if error := looking.exception():
            # That a disk fails is told elsewhere, and often.
            if not isinstance(error, RemoraError | OSError):
                log_fault(looking)
            return otherwise
        return looking.result()
