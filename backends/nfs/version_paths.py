"""
Why version 4 does not find a path that version 3 has.

Version 4 begins at the server's root, which may be an export itself (`fsid=0`): what
version 3 mounts as /srv/nfs/rows is /rows then. The built-in driver asks for version 3
unless it is told otherwise, so old Compose files have such paths. Source: exports(5).
"""

from __future__ import annotations

from typing import Final

from backends.errors import RemoraError
from backends.nfs.options import Export
from backends.system.clock import Deadline
from backends.system.run import run

_DEADLINE_S: Final = 3.0


def hint_for(export: Export, subdir: str, deadline: Deadline) -> str:
    """Return what to write instead if version 3 has the path, otherwise ""."""
    if export.version == "3":
        return ""
    path = f"{export.share.rstrip('/')}/{subdir}".rstrip("/") or "/"
    above = [each for each in _exported(export, deadline) if _is_below(path, each)]
    if not above:
        return ""
    root = min(above, key=len).rstrip("/")
    shorter = path[len(root) :] or "/"
    return (
        f"version 3 has this path: set nfsvers=3; for version 4, if {root or '/'} is "
        f"exported with fsid=0, the path is {shorter}"
    )


def _is_below(path: str, directory: str) -> bool:
    return f"{path}/".startswith(f"{directory.rstrip('/')}/")


def _exported(export: Export, deadline: Deadline) -> list[str]:
    """Return the paths that the server exports to version 3, [] if it does not say."""
    command = ["showmount", "--no-headers", "--exports", export.server]
    try:
        shown = run(command, deadline_s=min(_DEADLINE_S, deadline.remaining_s())).output
    except RemoraError:
        return []
    # The clients follow, with no space in them.
    paths = (line.rstrip().rpartition(" ")[0].strip() for line in shown.splitlines())
    return [path for path in paths if path.startswith("/") and path.isprintable()]
