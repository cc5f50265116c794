"""Work in a thread of its own, for whose outcome somebody waits, or not any more."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Final, TypeVar

from backends.errors import RemoraError, VolumeBusyError

log = logging.getLogger(__name__)
Result = TypeVar("Result")
_LOOK_WAIT_S: Final = 1.0


def begun(work: Callable[[], Result], *, name: str) -> Future[Result]:
    """
    Return the outcome of *work*, which has begun.

    There always is one: if the machine has no thread left, that is the outcome. So what
    is to be given back after *work* is given back in a callback of the outcome.

    The end of the process does not wait for it, whatever it hangs at: an executor's
    threads would be waited for.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is the outcome
            outcome.set_exception(error)

    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError as error:
        busy = VolumeBusyError(
            f"no thread can be started: {error}",
            hint="retry; something on this machine has too many processes or threads",
        )
        outcome.set_exception(busy)
    return outcome


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

    def at(self, look: Callable[[], Result], otherwise: Result) -> Result:
        """
        Return what *look* returns; *otherwise* if it fails, or takes long.

        While one takes long no other begins: each would keep a thread.
        """
        late = self._late
        if late is not None and not late.done():
            return otherwise
        looking = begun(look, name="look")
        if not wait([looking], _LOOK_WAIT_S).done:
            self._late = looking
            return otherwise
        if error := looking.exception():
            # That a disk fails is told elsewhere, and often.
            if not isinstance(error, RemoraError | OSError):
                log_fault(looking)
            return otherwise
        return looking.result()
