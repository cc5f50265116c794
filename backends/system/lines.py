"""Lines out of what a program prints piece by piece."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from backends.errors import BackendError

_LINE_SIZE_MAX: Final = 64 * 1024


def lines_of(pieces: Iterator[bytes], ends: re.Pattern[bytes]) -> Iterator[bytes]:
    """
    Yield the lines of *pieces*, as *ends* separates them, and b"" for an empty piece.

    What follows the last end is left out, and so are lines without anything in them.

    Raises:
        BackendError: one is longer than any line should be.

    """
    pending = b""
    for piece in pieces:
        if not piece:
            yield b""
            continue
        *lines, pending = ends.split(pending + piece)
        yield from filter(None, lines)
        if len(pending) > _LINE_SIZE_MAX:
            raise BackendError("a program prints what is no line")
