"""
How long a volume waits for its turn among many, of which some take long.

    python -m tests.bench.fairness [VOLUMES [SLOW]]

The daemon's own schedule, with rounds that only wait; ten times as fast as life. What
is printed is in the time of life: the longest time between two beginnings of a round of
one volume that is not slow, in intervals. To reach: 1.5.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict
from functools import partial
from typing import Final

from plugin.replication.schedule import Schedule

SPEED: Final = 10.0
INTERVAL_S: Final = 10.0
QUICK_S: Final = 0.15
SLOW_S: Final = 30.0
LONG_AFTER_S: Final = 5.0
LIFE_S: Final = 120.0


def measure(volumes: int, slow: int, *, life_s: float = LIFE_S) -> tuple[float, float]:
    """Return the longest and the median gap between quick rounds, in intervals."""
    began: dict[str, list[float]] = defaultdict(list)
    ending = threading.Event()

    def work(key: str, takes_s: float) -> None:
        began[key].append(time.monotonic())
        ending.wait(takes_s / SPEED)

    schedule = Schedule(long_after_s=LONG_AFTER_S / SPEED)
    schedule.start()
    for number in range(volumes):
        takes_s = SLOW_S if number < slow else QUICK_S
        key = f"{'slow' if number < slow else 'quick'}-{number}"
        schedule.want(key, INTERVAL_S / SPEED, partial(work, key, takes_s))
    time.sleep(life_s / SPEED)
    end = time.monotonic()
    ending.set()
    schedule.stop()
    quick = [times for key, times in began.items() if key.startswith("quick")]
    gaps = sorted(
        (b - a) * SPEED / INTERVAL_S
        for times in quick
        for a, b in zip(times, [*times[1:], end], strict=True)
    )
    assert len(quick) == volumes - slow, "some had no turn at all"
    return gaps[-1], gaps[len(gaps) // 2]


def main() -> None:
    asked = [int(each) for each in sys.argv[1:3]]
    cases = (
        [tuple([*asked, 0][:2])] if asked else [(60, 0), (10, 4), (200, 0), (200, 4)]
    )
    print("| volumes | of them 30 s a round | longest wait | median |")
    print("|---|---|---|---|")
    for volumes, slow in cases:
        longest, median = measure(volumes, slow)
        print(f"| {volumes} | {slow} | {longest:.2f} x | {median:.2f} x |", flush=True)


if __name__ == "__main__":
    main()
