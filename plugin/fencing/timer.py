"""A moment to wait for, as a descriptor."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from backends.system import libc

_CLOCK_BOOTTIME: Final = 7
_TIMER_ABSOLUTE: Final = 1


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
        self.descriptor = libc.call("timerfd_create", _CLOCK_BOOTTIME, flags)

    def set(self, at_s: float | None) -> None:
        """Become readable at *at_s*, never for None."""
        setting = _TimerSetting()
        if at_s is not None:
            # All zeros would mean never.
            nanoseconds = max(1, int(at_s * 1e9))
            setting.value.seconds, setting.value.nanoseconds = divmod(
                nanoseconds, 1_000_000_000
            )
        pointer = ctypes.byref(setting)
        libc.call("timerfd_settime", self.descriptor, _TIMER_ABSOLUTE, pointer, None)
