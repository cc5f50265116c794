"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Sizes:
    """
    Bytes of the large file and of the database's rows; files of the trees.

    ``seconds`` is how long the database works in each part, with ``rate`` transactions
    in a second. ``rounds`` changes are followed, or trees copied.
    """

    file_bytes: int = 10 << 30
    database_bytes: int = 5 << 30
    files: int = 100_000
    seconds: float = 600.0
    rate: float = 500.0
    rounds: int = 5
    first_rounds: int = 3
    moves: int = 4
    drbd_bytes: int = 256 << 20
    drbd_seconds: float = 20.0


QUICK: Final = Sizes(
    file_bytes=32 << 20,
    database_bytes=16 << 20,
    files=40,
    seconds=4.0,
    rate=50.0,
    rounds=1,
    first_rounds=1,
    moves=2,
    drbd_bytes=16 << 20,
    drbd_seconds=3.0,
)
