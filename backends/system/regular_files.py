"""
Opens files that others have made: regular ones, and nothing else.

To open a device can do harm by itself (a watchdog restarts the machine), a pipe waits
for whoever writes to it, and a link leads elsewhere. What a name is, is known before it
is opened, and it is that which is opened: no other file can come between. Standard
library alone, as `beneath.py`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from backends.system.clock import monotonic_s, pause

_LEASE_PATIENCE_S: Final = 1.0
_LEASE_POLL_S: Final = 0.02
_LEASED: Final = "a program holds a lease on it (F_SETLEASE)"


class NotRegularError(OSError):
    """There is something at the name, and it is no regular file."""


def open_regular(
    name: str | bytes,
    flags: int = os.O_RDONLY,
    *,
    dir_fd: int | None = None,
    open_file: Callable[[str, int], int] = os.open,
) -> int:
    """
    Return the regular file *name*, opened by *open_file*; the caller closes it.

    Who holds a lease on it (F_SETLEASE) is told, and has a second to give it back. The
    kernel takes it after 45, and would have each open(2) wait for that. Source:
    fcntl(2), open(2), /proc/sys/fs/lease-break-time.

    Raises:
        NotRegularError: it is something else, a symbolic link for instance.
        BlockingIOError: the lease was not given back.

    """
    found = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise NotRegularError(errno.EINVAL, "no regular file", name)
        until_s = monotonic_s() + _LEASE_PATIENCE_S
        while True:
            with suppress(BlockingIOError):
                return open_file(f"/proc/self/fd/{found}", flags | os.O_NONBLOCK)
            if monotonic_s() > until_s:
                raise BlockingIOError(errno.EAGAIN, _LEASED, name)
            pause(_LEASE_POLL_S)
    finally:
        os.close(found)
