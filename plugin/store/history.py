"""The last changes of a store in this process, for any number of watches."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Final

from backends.system import clock
from plugin.limits import WATCH_HISTORY_MAX
from plugin.store.base import CompactedError, Event

# History is trimmed when it is this much too long, not at every change.
_TRIM_SLACK: Final = 1_000


class History:
    """
    Changes in the order of their revisions, the newest `WATCH_HISTORY_MAX` at least.

    All is done under `changed`, the lock of the store whose history it is. Nothing is
    known of changes up to `floor`; none is missing between `floor` and `last`.
    """

    def __init__(self, *, floor: int = 0) -> None:
        self.changed = threading.Condition()
        self.floor = self.last = floor
        self.restarts = 0
        self._events: list[Event] = []

    def add(self, events: Iterable[Event], *, last: int) -> None:
        """Append *events*: all that happened up to the revision *last*."""
        self._events += events
        self.last = last
        surplus = len(self._events) - WATCH_HISTORY_MAX
        if surplus > _TRIM_SLACK:
            self.floor = self._events[surplus - 1].revision
            del self._events[:surplus]
        self.changed.notify_all()

    def restart(self, floor: int) -> None:
        """Forget everything: what happened up to *floor* is not known in full."""
        self._events = []
        self.restarts += 1
        self.floor = self.last = floor
        self.changed.notify_all()

    def since(self, revision: int, prefix: str) -> list[Event]:
        """Return the changes below *prefix* after *revision*."""
        if revision < self.floor:
            raise CompactedError(f"revisions up to {self.floor} are no longer kept")
        first = bisect_right(self._events, revision, key=lambda each: each.revision)
        return [each for each in self._events[first:] if each.key.startswith(prefix)]


class HistoryWatch:
    """
    A `Watch` that remembers how far it has read.

    *prepare* runs under the lock before each look. It raises `StoreError` if the store
    is closed, and returns after how many seconds at most to look again.
    """

    def __init__(
        self,
        history: History,
        prefix: str,
        after_revision: int,
        prepare: Callable[[], float],
    ) -> None:
        self._history = history
        self._prefix = prefix
        self._revision = after_revision
        self._restarts = history.restarts
        self._prepare = prepare

    def next(self, timeout_s: float) -> list[Event]:
        """Return new changes; see `Watch.next`."""
        deadline = clock.Deadline(timeout_s)
        with self._history.changed:
            while True:
                again_s = self._prepare()
                # Revisions of a new history may be smaller than those of the old one.
                if self._history.restarts != self._restarts:
                    raise CompactedError("the records were read anew")
                events = self._history.since(self._revision, self._prefix)
                self._revision = max(self._revision, self._history.last)
                if events or deadline.passed():
                    return events
                self._history.changed.wait(min(again_s, deadline.remaining_s()))
