"""A program that holds a lease on a file, as Samba does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# It gives the lease back when it is told to.
_HOLDER = """
import fcntl, os, signal, sys
file = open(sys.argv[1], "r+b")
give = lambda *_: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
signal.signal(signal.SIGIO, give)
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print(flush=True)
sys.stdin.read()
"""
_KEEPER = _HOLDER.replace("give = lambda *_: ", "give = lambda *_: None and ")


@contextmanager
def leased(path: Path, *, kept: bool = False) -> Iterator[None]:
    """Have a lease on *path* held inside the block, or *kept*: not given back."""
    with subprocess.Popen(
        [sys.executable, "-c", _KEEPER if kept else _HOLDER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"\n"
            yield
        finally:
            holder.kill()
