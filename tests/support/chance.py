"""What is drawn at random in a test, and can be drawn again."""

from __future__ import annotations

import os
import random

VARIABLE = "REMORA_SEED"


def seed() -> int:
    """Return the seed to repeat, or a new one; pytest shows it with a failure."""
    chosen = int(os.environ.get(VARIABLE) or random.randrange(2**32))
    print(f"{VARIABLE}={chosen}")
    return chosen
