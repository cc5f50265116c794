"""One umount2(2); prints the kernel's word if it refused."""

import ctypes
import os
import sys


def main() -> None:
    """Unmount the first argument with the flags of the second."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(sys.argv[1]), int(sys.argv[2])):
        sys.stdout.write(os.strerror(ctypes.get_errno()))
