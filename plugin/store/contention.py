"""Changes that others' changes come in between of: made again on what is true then."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from plugin.errors import ChangedError

# A node changes a record now and then; who loses so often meets a fault.
_ATTEMPTS_MAX: Final = 4
Result = TypeVar("Result")


def attempted(attempt: Callable[[], Result]) -> Result:
    """
    Return what *attempt* returns, which reads, decides, and changes by compare-and-set.

    It is called again while somebody else's change came in between. A store that has
    refused a change shows why before it says so, so the next attempt reads that.

    Raises:
        ChangedError: others' changes came in between too often; and what it raises.

    """
    for _ in range(_ATTEMPTS_MAX - 1):
        with suppress(ChangedError):
            return attempt()
    return attempt()
