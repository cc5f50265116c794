"""Calls of the kernel that Python 3.11 does not have."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_CLOCK_BOOTTIME: Final = 7
_TIMER_ABSOLUTE: Final = 1
_LOCK_CURRENT: Final = 1
_LOCK_FUTURE: Final = 2
_LOCK_ON_FAULT: Final = 4
_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSetting(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer:
    """
    A descriptor that is readable from a moment on, by CLOCK_BOOTTIME.

    poll(2)'s timeout would sleep on after the machine was suspended.
    Source: timerfd_create(2).
    """

    def __init__(self) -> None:
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self.descriptor: int = _libc.timerfd_create(_CLOCK_BOOTTIME, flags)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, at_s: float | None) -> None:
        """Become readable at *at_s*, never for None."""
        setting = _TimerSetting()
        if at_s is not None:
            # All zeros would mean never.
            nanoseconds = max(1, int(at_s * 1e9))
            setting.value.seconds, setting.value.nanoseconds = divmod(
                nanoseconds, 1_000_000_000
            )
        if _libc.timerfd_settime(
            self.descriptor, _TIMER_ABSOLUTE, ctypes.byref(setting), None
        ):
            raise OSError(ctypes.get_errno(), "timerfd_settime")


def lock_memory() -> bool:
    """
    Return whether what this process has used so far, and will use, stays in memory.

    Without the pages that it never touches, which are a third of Python.
    Source: mlockall(2).
    """
    flags = _LOCK_CURRENT | _LOCK_FUTURE | _LOCK_ON_FAULT
    return int(_libc.mlockall(flags)) == 0
