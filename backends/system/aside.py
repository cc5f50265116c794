"""Work in a thread of its own, for whose outcome somebody waits, or not any more."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def begun(work: Callable[[], Result], *, name: str) -> Future[Result]:
    """
    Return the outcome of *work*, which has begun.

    The end of the process does not wait for it, whatever it hangs at: an executor's
    threads would be waited for.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is the outcome
            outcome.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return outcome
