"""
Commits that are applied after their sender was answered.

From its marker on a commit is this node's, through any crash. Applying one of many
files takes seconds, for which its sender would wait in vain. Who uses the copy here
waits for the end of it; who would send to it is told that it goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

from backends.system.aside import begun, log_fault

Answer = TypeVar("Answer")
# More wait before they are answered: a sender is not to be faster than this disk.
_AFTERWARDS_MAX: Final = 4


class Redoing:
    """See the module's text; threads share it."""

    def __init__(self) -> None:
        self._slots = threading.BoundedSemaphore(_AFTERWARDS_MAX)
        self._under_way: set[str] = set()

    def answered(self, work: Callable[[Callable[[Answer], None]], Answer]) -> Answer:
        """
        Return what *work* returns, or what it calls its argument with before.

        Raises:
            RemoraError: *work* has raised it before it had an answer.

        """
        early: Future[Answer] = Future()
        whole = begun(partial(work, early.set_result), name="receiving")
        wait([early, whole], return_when=FIRST_COMPLETED)
        if not early.done():
            return whole.result()
        # Whoever uses the copy next tries again.
        whole.add_done_callback(log_fault)
        return early.result()

    @contextmanager
    def afterwards(
        self, volume_id: str, answer: Callable[[], None] | None
    ) -> Iterator[None]:
        """Call *answer*, if there is a place for one more, before the block."""
        if answer is None or not self._slots.acquire(blocking=False):
            yield
            return
        self._under_way.add(volume_id)
        try:
            answer()
            yield
        finally:
            self._under_way.discard(volume_id)
            self._slots.release()

    def is_under_way(self, volume_id: str) -> bool:
        """Return whether a commit whose sender was answered is being applied."""
        return volume_id in self._under_way
