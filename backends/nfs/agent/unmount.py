"""
One umount2(2), or one rmdir(2); prints the kernel's word if it refused.

rmdir also drops the mounts that other namespaces have on the directory, and whoever
drops the last one waits for its server.
"""

import os
import sys

from backends.system import libc


def main() -> None:
    """
    Unmount the first argument with the flags of the second, and remove it.

    Without flags only remove it.
    """
    target, *flags = sys.argv[1:]
    try:
        if flags:
            libc.umount(os.fsencode(target), int(flags[0]))
    except OSError as error:
        sys.stdout.write(str(error.strerror))
        return
    try:
        os.rmdir(target)
    except FileNotFoundError:
        pass
    except OSError as error:
        sys.stdout.write(str(error.strerror))
