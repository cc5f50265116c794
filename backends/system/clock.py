"""The only readers of clocks and of the boot's identity."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path


def now_rfc3339() -> str:
    """Return wall time as RFC 3339 in UTC, for people; never compare two of them."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def rfc3339(since_epoch_s: float) -> str:
    """Return a file's time as `now_rfc3339` does the present."""
    told = datetime.fromtimestamp(since_epoch_s, UTC).isoformat(timespec="seconds")
    return told.replace("+00:00", "Z")


def now_rfc3339_ms() -> str:
    """Return what `now_rfc3339` does, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now_as_name() -> str:
    """Return wall time as a name that sorts by it: 20261123T230501Z."""
    return now_rfc3339().replace("-", "").replace(":", "")


def wall_s() -> float:
    """Return wall time in seconds, to tell how far two machines' clocks are apart."""
    return time.time()


def wall_ns() -> int:
    """Return wall time in nanoseconds, to compare with what filesystems note."""
    return time.time_ns()


def monotonic_s() -> float:
    """Return seconds that only go forward, for deadlines within this process."""
    return time.monotonic()


def boottime_s() -> float:
    """Return seconds since boot, counted in suspend too (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boottime_ns() -> int:
    """Return what `boottime_s` does, in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_at_boot_ns() -> int:
    """Return what the wall clock said at boot, as it is set now."""
    return wall_ns() - boottime_ns()


def thread_cpu_ns(thread: int) -> int:
    """Return what a thread of this process, which must live, has had of processors."""
    return time.clock_gettime_ns(time.pthread_getcpuclockid(thread))


def process_cpu_s() -> float:
    """Return what all threads of this process have had of processors."""
    return time.process_time()


def boot_id() -> str:
    """
    Return the identity of this boot of the kernel.

    Source: proc_sys_kernel(5), /proc/sys/kernel/random/boot_id.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def pause(duration_s: float) -> None:
    """Return after *duration_s*."""
    time.sleep(duration_s)


class Deadline:
    """A moment on the monotonic clock by which something must have ended."""

    __slots__ = ("_at_s",)

    def __init__(self, within_s: float) -> None:
        self._at_s = monotonic_s() + within_s

    def remaining_s(self) -> float:
        """Return the seconds left, zero when it has passed."""
        return max(0.0, self._at_s - monotonic_s())

    def passed(self) -> bool:
        """Return whether no time is left."""
        return monotonic_s() >= self._at_s
