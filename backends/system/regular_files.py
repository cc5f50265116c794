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

    Who holds a lease on it (F_SETLEASE) is told, and has 45 seconds to give it back;
    then the kernel takes it. Source: fcntl(2), /proc/sys/fs/lease-break-time.

    Raises:
        NotRegularError: it is something else, a symbolic link for instance.

    """
    found = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise NotRegularError(errno.EINVAL, "no regular file", name)
        return open_file(f"/proc/self/fd/{found}", flags)
    finally:
        os.close(found)
