"""
Background work, each piece in a thread of its own: one that hangs holds up no other.

A piece has a name, and is at work once at a time. It is waited for a little; one that
takes longer goes on alone, and is passed over until it has ended. What fails or hangs
is told once for each reason.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import wait
from functools import partial
from typing import Final, TypeVar

from backends.errors import RemoraError, VolumeBusyError
from backends.system.aside import begun
from plugin.logs import fields

log = logging.getLogger(__name__)
Result = TypeVar("Result")
# Beyond that many reasons they are forgotten, and told again.
_TOLD_MAX: Final = 1000


class Chores:
    """See the module's text; at most *threads_max* pieces are at work at once."""

    def __init__(self, *, threads_max: int) -> None:
        self._threads_max = threads_max
        self._guard = threading.Lock()
        self._under_way: set[str] = set()
        self._told: dict[str, str] = {}

    def run(
        self, name: str, work: Callable[[], Result], *, patience_s: float
    ) -> Result | None:
        """
        Return what *work* returns; None if it fails, is passed over, or takes longer.

        It has failed silently if the volume was busy.
        """
        if not self._begin(name):
            return None
        chore = begun(partial(self._do, name, work), name=f"chore:{name}")
        if not wait([chore], patience_s).done:
            return None
        if error := chore.exception():  # the machine has no thread left
            self._end(name)
            self._tell(name, error)
            return None
        return chore.result()

    def _begin(self, name: str) -> bool:
        with self._guard:
            if name in self._under_way:
                why = "its last turn has not ended yet"
            elif len(self._under_way) >= self._threads_max:
                why = f"{self._threads_max} others have not ended yet"
            else:
                self._under_way.add(name)
                return True
        self._tell(name, RemoraError(why))
        return False

    def _end(self, name: str) -> None:
        with self._guard:
            self._under_way.discard(name)

    def _do(self, name: str, work: Callable[[], Result]) -> Result | None:
        try:
            result = work()
        except VolumeBusyError:
            return None
        except Exception as error:  # noqa: BLE001 - whatever it is, others go on
            self._tell(name, error)
            return None
        else:
            self._told.pop(name, None)
            return result
        finally:
            self._end(name)

    def _tell(self, name: str, error: BaseException) -> None:
        with self._guard:
            if self._told.get(name) == str(error):
                return
            if len(self._told) >= _TOLD_MAX:
                self._told.clear()
            self._told[name] = str(error)
        expected = isinstance(error, RemoraError | OSError | RuntimeError)
        log.warning(
            "%s will be repeated: %s",
            name,
            error,
            exc_info=None if expected else error,
            extra=fields(code=getattr(error, "code", "internal")),
        )
