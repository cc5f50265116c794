"""The daemon's own intervals, which tests shorten; see the section [tuning]."""

from __future__ import annotations


def tuned(**intervals_s: float) -> dict[str, str]:
    """Return the environment of a daemon with these keys of [tuning]."""
    keys = {f"REMORA_TUNING_{key.upper()}": str(s) for key, s in intervals_s.items()}
    return {"REMORA_TESTS": "1", **keys}


# For tests that wait until a daemon does by itself what it does every so often.
SHORT = tuned(
    reconcile_interval_s=1.0, follow_interval_s=1.0, look_interval_s=6.0, hold_s=4.0
)
