"""Empties a share's trash; a process of its own, since that can take long."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress

from backends.system.jail import as_user


def main() -> None:
    """Delete what is in the directory of the first argument; print how many things."""
    count = 0
    with suppress(FileNotFoundError):
        # An owner that we become may not pass the way here.
        os.chdir(sys.argv[1])
        for name in os.listdir():
            _delete(name)
            count += not os.path.lexists(name)
    sys.stdout.write(str(count))


def _delete(path: str) -> None:
    """Delete a tree, as its owner where the server squashes root; others may, too."""
    try:
        owner = os.lstat(path)
    except FileNotFoundError:
        return
    shutil.rmtree(path, ignore_errors=True)
    if owner.st_uid and os.path.lexists(path):
        with as_user(owner.st_uid, owner.st_gid):
            shutil.rmtree(path, ignore_errors=True)
