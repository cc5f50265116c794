"""One bind mount of a directory on a share; prints the kernel's word if it refused."""

import os
import sys

from backends.system import libc
from backends.system.beneath import open_beneath


def main() -> None:
    """Make a directory (argument 2) of the share at argument 1 appear at argument 3."""
    share, directory, target = sys.argv[1:]
    try:
        top = os.open(share, os.O_PATH | os.O_DIRECTORY)
        found = open_beneath(directory, os.O_PATH | os.O_DIRECTORY, top=top)
        source = b"/proc/self/fd/%d" % found
        libc.mount(source, os.fsencode(target), None, libc.MS_BIND)
    except OSError as error:
        sys.stdout.write(str(error.strerror))
