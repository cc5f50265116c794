"""
How long volumes stood still for commits, and why some commits are not of one moment.

A pause that takes long is not tried again for a while: a volume's containers must not
stand still for a good part of their time.
"""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from math import inf
from typing import Final

import msgspec

from backends.system.clock import monotonic_s

_KEPT_MAX: Final = 100
# So many pauses that last say whether the next one would take long.
_LAST: Final = 5
_LEAST: Final = 3
REST_S: Final = 600.0


class PauseFacts(msgspec.Struct, frozen=True):
    """
    The last pauses of a volume's writers, as people are shown them.

    ``missed`` says why the last commit was made without one, "" if it was made with one
    or none is wanted.
    """

    count: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    missed: str = ""


@dataclass(slots=True)
class _Volume:
    done_s: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_MAX))
    # What came to nothing has taken for ever.
    last_s: deque[float] = field(default_factory=lambda: deque(maxlen=_LAST))
    rests_until_s: float = 0.0
    missed: str = ""


class Pauses:
    """Those of this node's volumes; threads share it."""

    def __init__(self, *, rest_s: float = REST_S) -> None:
        self._lock = threading.Lock()
        self._rest_s = rest_s
        self._volumes: dict[str, _Volume] = {}

    def note(
        self, volume_id: str, took_s: float, *, limit_s: float, missed: str = ""
    ) -> None:
        """
        Take note of a pause; *missed* says why it came to nothing.

        If most of the last ones have taken longer than *limit_s*, or have stopped
        somebody for nothing, there is a rest.
        """
        with self._lock:
            volume = self._volumes.setdefault(volume_id, _Volume())
            volume.missed = missed
            if not took_s:
                return
            if not missed:
                volume.done_s.append(took_s)
            volume.last_s.append(inf if missed else took_s)
            long = statistics.median(volume.last_s) > limit_s
            if long and len(volume.last_s) >= _LEAST:
                volume.last_s.clear()
                volume.rests_until_s = monotonic_s() + self._rest_s

    def rest_s(self, volume_id: str) -> float:
        """Return how long there is to be no pause, 0.0 if there may be one."""
        with self._lock:
            volume = self._volumes.get(volume_id)
            return max(0.0, volume.rests_until_s - monotonic_s()) if volume else 0.0

    def facts(self, volume_id: str) -> PauseFacts:
        """Return what is known of a volume's pauses, for people."""
        with self._lock:
            volume = self._volumes.get(volume_id, _Volume())
            done_ms = sorted(round(1000 * each, 1) for each in volume.done_s)
            missed = volume.missed
        if not done_ms:
            return PauseFacts(missed=missed)
        count = len(done_ms)
        at = (count // 2, min(count - 1, count * 99 // 100))
        return PauseFacts(count, done_ms[at[0]], done_ms[at[1]], missed)

    def keep_only(self, volume_ids: Collection[str]) -> None:
        """Forget other volumes than these."""
        with self._lock:
            kept = {k: v for k, v in self._volumes.items() if k in volume_ids}
            self._volumes = kept
