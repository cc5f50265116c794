"""Changes that fail because others came first: they are tried again on new reads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from plugin.errors import ChangedError

# Nodes change a record only now and then; so many lost tries in a row mean a fault.
_ATTEMPTS_MAX: Final = 4
Result = TypeVar("Result")


def attempted(attempt: Callable[[], Result]) -> Result:
    """
    Return what *attempt* returns, which reads, decides, and changes by compare-and-set.

    It is called again if another change came in between. A store that refuses a change
    first shows what others have written, so the next attempt reads that.

    Raises:
        ChangedError: others' changes came in between too often; and what it raises.

    """
    for _ in range(_ATTEMPTS_MAX - 1):
        with suppress(ChangedError):
            return attempt()
    return attempt()
