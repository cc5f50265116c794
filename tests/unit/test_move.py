"""When a move has gone through enough rounds."""

from __future__ import annotations

import pytest

from plugin.model import VolumeRecord
from plugin.replication.move import Round, VolumeMove

MIB = 2**20


def move(*rounds: tuple[float, float], mounted: bool = True) -> VolumeMove:
    """Return a move after *rounds*, each of MiB and seconds."""
    record = VolumeRecord(
        id="0",
        name="db",
        backend="rsync",
        options={},
        requested={},
        phase="ready",
        created_at="",
    )
    done = [Round("1.1", int(size * MIB), took_s) for size, took_s in rounds]
    return VolumeMove(record, "beta", mounted=mounted, rounds=done)


@pytest.mark.parametrize(
    ("rounds", "small", "over"),
    [
        ((), False, False),
        (((64, 10),), False, False),
        (((64, 10), (0.5, 5)), True, True),
        (((64, 10), (20, 0.4)), True, True),
        (((64, 10), (32, 5), (16, 4)), False, False),
        # Written to faster than it is carried.
        (((64, 10), (64, 10)), False, False),
        (((64, 10), (64, 10), (70, 10)), False, True),
        (((64, 10), (70, 10), (60, 10)), False, False),
        (tuple((100 - each, 10) for each in range(10)), False, True),
    ],
)
def test_it_goes_on_until_little_is_left_or_no_less(
    rounds: tuple[tuple[float, float], ...], small: bool, over: bool
) -> None:
    found = move(*rounds)
    assert (found.is_small(), found.is_over()) == (small, over)


def test_what_nobody_writes_to_is_brought_once() -> None:
    assert move((64, 10), mounted=False).is_over()
    assert not move(mounted=False).is_over()
