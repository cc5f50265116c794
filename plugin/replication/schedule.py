"""
Whose turn it is: the volume whose round is due longest, in slots that never all block.

A round that takes long goes on in a slot of another kind, so a few large or slow
volumes keep no other from its turn. As soon as a round ends the next one begins.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from backends.system.clock import monotonic_s

log = logging.getLogger(__name__)
# Rounds are mostly waiting: for the disk, for rsync, for the members.
_SHORT_MAX: Final = 4
# Rounds that are known to take long begin only while there are fewer than these.
_LONG_MAX: Final = 4
# So many may have turned out to take long; then short slots are held as well.
_LONG_ALL_MAX: Final = 16
_LONG_AFTER_S: Final = 5.0
_LOOK_S: Final = 1.0
_STOP_WAIT_S: Final = 5.0


@dataclass(slots=True)
class _Entry:
    """What is repeated for one volume; ``began_s`` is None between rounds."""

    work: Callable[[], object]
    interval_s: float
    due_s: float
    began_s: float | None = None
    is_long: bool = False
    is_wanted: bool = True


class Schedule:
    """Repeats the rounds of many volumes, each in its interval; threads share it."""

    def __init__(self, *, long_after_s: float = _LONG_AFTER_S) -> None:
        self._long_after_s = long_after_s
        self._changed = threading.Condition()
        self._entries: dict[str, _Entry] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="schedule", daemon=True)

    def start(self) -> None:
        """Begin rounds as they become due."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no round any more; one that is under way ends with the process."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(_STOP_WAIT_S)

    def want(
        self,
        key: str,
        interval_s: float,
        work: Callable[[], object],
        *,
        at_once: bool = False,
    ) -> None:
        """Have *work* done for *key* every *interval_s*, the first time at once."""
        with self._changed:
            now_s = monotonic_s()
            entry = self._entries.get(key)
            if entry is None:
                self._entries[key] = _Entry(work, interval_s, now_s)
                self._changed.notify_all()
                return
            if entry.began_s is None:
                entry.due_s += max(0.0, interval_s - entry.interval_s)
            entry.work, entry.interval_s = work, interval_s
            entry.is_wanted = True
            latest_s = now_s if at_once else now_s + interval_s
            # All volumes are wanted each second: who waits is not woken for each.
            if latest_s < entry.due_s:
                entry.due_s = latest_s
                self._changed.notify_all()

    def keep_only(self, keys: Collection[str]) -> None:
        """Forget all but *keys*; a round that is under way ends by itself."""
        with self._changed:
            for key, entry in [*self._entries.items()]:
                if key not in keys:
                    entry.is_wanted = False
                    if entry.began_s is None:
                        del self._entries[key]

    def _run(self) -> None:
        with self._changed:
            while not self._stopping:
                now_s = monotonic_s()
                entry = self._next(now_s)
                if entry is None:
                    self._changed.wait(self._pause_s(now_s))
                    continue
                entry.began_s = now_s
                entry.due_s = now_s + entry.interval_s
                self._begin(entry)

    def _begin(self, entry: _Entry) -> None:
        thread = threading.Thread(
            target=self._round, args=(entry,), name="round", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # no thread left: its turn comes again
            log.warning("no round can begin: %s", error)
            entry.began_s = None

    def _next(self, now_s: float) -> _Entry | None:
        """Return what is due longest of what has a free slot, None if nothing is."""
        running = [each for each in self._entries.values() if each.began_s is not None]
        long = sum(each.is_long for each in running)
        for each in running:
            late = now_s - (each.began_s or now_s) >= self._long_after_s
            if late and not each.is_long and long < _LONG_ALL_MAX:
                each.is_long = True
                long += 1
        free = {True: _LONG_MAX - long, False: _SHORT_MAX - (len(running) - long)}
        due = [
            each
            for each in self._entries.values()
            if each.began_s is None
            and each.is_wanted
            and each.due_s <= now_s
            and free[each.is_long] > 0
        ]
        return min(due, key=lambda each: each.due_s, default=None)

    def _pause_s(self, now_s: float) -> float:
        """Return the time until something may be due, or take long."""
        times_s = [
            each.due_s if each.began_s is None else each.began_s + self._long_after_s
            for each in self._entries.values()
        ]
        ahead_s = [each - now_s for each in times_s if each > now_s]
        return min([_LOOK_S, *ahead_s])

    def _round(self, entry: _Entry) -> None:
        began_s = monotonic_s()
        try:
            entry.work()
        except Exception:
            log.exception("a round failed")
        finally:
            with self._changed:
                entry.is_long = monotonic_s() - began_s >= self._long_after_s
                entry.began_s = None
                self._changed.notify_all()
