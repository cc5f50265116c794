"""
Empties a share's trash; a process of its own, since that can take long.

Each thing is deleted by itself, by rm(1), which follows no link and goes as deep as
somebody has made it. One that cannot be deleted does not keep the others.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from backends.nfs.agent.below import Below
from backends.system import jail

_RM = ("rm", "-rf", "--one-file-system", "--")


def main() -> None:
    """Delete what is in `.dvol/trash` of the share at argument 1; print how many."""
    try:
        jail.enter(
            jail.Shown("share", sys.argv[1], writable=True),
            capabilities=jail.WRITING_AS_OWNER,
            programs=True,
        )
        count = _empty(Below("/share"))
    except OSError as error:
        sys.stderr.write(f"{error.strerror} ({error.filename})\n")
        sys.exit(1)
    sys.stdout.write(str(count))


def _empty(share: Below) -> int:
    count = 0
    with suppress(FileNotFoundError), share.directory(".dvol/trash") as trash:
        # An owner that we become may not pass the way here.
        os.fchdir(trash)
        for name in os.listdir("."):
            _delete(name)
            count += not os.path.lexists(name)
    return count


def _delete(name: str) -> None:
    """Delete a tree, as its owner where the server squashes root; others may, too."""
    try:
        owner = os.lstat(name)
    except FileNotFoundError:
        return
    os.spawnvp(os.P_WAIT, _RM[0], [*_RM, name])
    if owner.st_uid and os.path.lexists(name):
        with jail.as_user(owner.st_uid, owner.st_gid):
            os.spawnvp(os.P_WAIT, _RM[0], [*_RM, name])
