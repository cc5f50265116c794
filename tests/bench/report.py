"""Rows of the result, judged by their targets; as tables and as JSON."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .figures import Ratio, percentile, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OURS = "remora"
BASELINE = "local"
CONTROL = "local again"
NO_OP = "no-op"
SUBJECTS = (OURS, BASELINE, CONTROL, NO_OP, "rclone")
# A ratio's bound is missed for certain only if the whole interval is beyond it.
REACHED, UNCLEAR, MISSED = "reached", "within noise", "MISSED"
NO_FIGURE = "-"


@dataclass(frozen=True, slots=True)
class Target:
    """What a row has to reach; every bound that is set counts."""

    p50_max: float | None = None
    p99_max: float | None = None
    ratio_max: float | None = None
    ratio_min: float | None = None

    def text(self) -> str:
        """Return the target in words."""
        bounds = (
            ("p50 < {:g}", self.p50_max),
            ("p99 < {:g}", self.p99_max),
            ("≤ {:g} x", self.ratio_max),
            ("≥ {:g} x", self.ratio_min),
        )
        return ", ".join(form.format(bound) for form, bound in bounds if bound)

    def verdict(self, ours: Spread, against: Ratio | None) -> str:
        """Return whether *ours* reaches the target, "" if there is none."""
        verdicts = []
        if self.p50_max is not None:
            verdicts.append(REACHED if ours.p50 < self.p50_max else MISSED)
        if self.p99_max is not None:
            verdicts.append(REACHED if ours.p99 < self.p99_max else MISSED)
        if against is not None and self.ratio_max is not None:
            bound = self.ratio_max
            verdicts.append(_judged(against.value <= bound, against.low <= bound))
        if against is not None and self.ratio_min is not None:
            bound = self.ratio_min
            verdicts.append(_judged(against.value >= bound, against.high >= bound))
        for verdict in (MISSED, UNCLEAR, REACHED):
            if verdict in verdicts:
                return verdict
        return ""


def _judged(holds: bool, may_hold: bool) -> str:
    return REACHED if holds else UNCLEAR if may_hold else MISSED


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle and the slow end of one subject's samples."""

    p50: float
    p99: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Return the spread of *samples*."""
        return cls(statistics.median(samples), percentile(samples, 0.99), len(samples))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result; *ratios* are by "one : other"."""

    section: str
    key: str
    what: str
    unit: str
    spreads: Mapping[str, Spread]
    ratios: Mapping[str, Ratio]
    target: Target = field(default_factory=Target)

    @property
    def verdict(self) -> str:
        """Whether the target is reached, in words; "" without one."""
        against = self.ratios.get(f"{OURS} : {BASELINE}")
        return self.target.verdict(self.spreads[OURS], against)

    def json(self) -> dict[str, Any]:
        """Return the row as JSON takes it."""
        return {
            **dataclasses.asdict(self),
            "to_reach": self.target.text(),
            "verdict": self.verdict,
        }


def row(
    section: str,
    key: str,
    what: str,
    samples: Mapping[str, Sequence[float]],
    *,
    unit: str = "ms",
    target: Target | None = None,
    of_speeds: bool = False,
) -> Row:
    """
    Return a row of *samples* by subject; those of one round have one index.

    With *of_speeds* the samples are durations and the ratios those of speeds: above 1
    is faster.
    """
    pairs = [
        (OURS, BASELINE),
        (CONTROL, BASELINE),
        (NO_OP, BASELINE),
        ("rclone", BASELINE),
    ]
    if BASELINE not in samples:
        pairs = [(OURS, "rclone")]
    ratios = {}
    for one, other in pairs:
        if one in samples and other in samples:
            above, below = (other, one) if of_speeds else (one, other)
            ratios[f"{one} : {other}"] = ratio(samples[above], samples[below])
    spreads = {subject: Spread.of(each) for subject, each in samples.items()}
    return Row(section, key, what, unit, spreads, ratios, target or Target())


def tables(rows: Sequence[Row]) -> str:
    """Return *rows* as Markdown, a table with aligned columns for each section."""
    parts = []
    for section, group in itertools.groupby(rows, key=lambda each: each.section):
        parts += [f"### {section}", _table(list(group))]
    return "\n\n".join(parts)


def _table(rows: Sequence[Row]) -> str:
    subjects = [name for name in SUBJECTS if any(name in each.spreads for each in rows)]
    ratios = list(dict.fromkeys(name for each in rows for name in each.ratios))
    lines = [("", *subjects, *ratios, "to reach", "")]
    for each in rows:
        spreads = (_spread(each, name) for name in subjects)
        quotients = (_ratio(each.ratios.get(name)) for name in ratios)
        reach = each.target.text() or NO_FIGURE
        lines.append((each.what, *spreads, *quotients, reach, each.verdict))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [_line(line, widths) for line in lines]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "| " + " | ".join(padded) + " |"


def _ratio(found: Ratio | None) -> str:
    if found is None:
        return NO_FIGURE
    return f"{found.value:.2f} ({found.low:.2f}-{found.high:.2f})"


def _spread(each: Row, subject: str) -> str:
    spread = each.spreads.get(subject)
    if spread is None:
        return NO_FIGURE
    if spread.count == 1:
        return f"{_figure(spread.p50)} {each.unit}"
    return f"{_figure(spread.p50)} / {_figure(spread.p99)} {each.unit}"


def _figure(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
