"""Medians, percentiles and ratios of samples taken in turns."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Resamplings for an interval; a fixed seed, so that one file gives one interval.
RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Ratio:
    """A quotient of two medians and the interval that 95 % of resamplings fall in."""

    value: float
    low: float
    high: float


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the smallest sample that *share* of all samples do not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """
    Return median(*above*) / median(*below*).

    Samples of one index were taken in one round; a resampling draws whole rounds.
    """
    value = statistics.median(above) / statistics.median(below)
    pairs = list(zip(above, below, strict=True))
    draw = random.Random(0)
    resampled = []
    for _ in range(RESAMPLES):
        drawn = draw.choices(pairs, k=len(pairs))
        resampled.append(
            statistics.median(a for a, _ in drawn)
            / statistics.median(b for _, b in drawn)
        )
    tail = (1 - CONFIDENCE) / 2
    return Ratio(value, percentile(resampled, tail), percentile(resampled, 1 - tail))


def turns(subjects: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """Yield *rounds* orders of *subjects*, each beginning with another one."""
    for number in range(rounds):
        start = number % len(subjects)
        yield [*subjects[start:], *subjects[:start]]
