"""One bind mount of a directory on a share; prints the kernel's word if it refused."""

import os
import sys

from backends.system import libc


def main() -> None:
    """Make the directory of the first argument appear at the second."""
    source, target = map(os.fsencode, sys.argv[1:3])
    try:
        libc.mount(source, target, None, libc.MS_BIND)
    except OSError as error:
        sys.stdout.write(str(error.strerror))
