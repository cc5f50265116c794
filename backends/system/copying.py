"""Copies of directory trees by a child process, with progress; see `tree.py`."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backends.errors import BackendError
from backends.system import tree
from backends.system.mounts import entry_covering
from backends.system.programs import own_program
from backends.system.run import run_with_progress

# A copy that stands still for this long is given up: its storage is away.
_STALL_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Destination:
    """
    An empty directory to copy into.

    ``fsync`` flushes each file by itself, ``uid`` and ``gid`` are who does it: for
    servers, which may refuse late, and root.
    """

    path: Path
    fsync: bool = False
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class Copied:
    """How far a copy is; at its end, what it did."""

    files: int = 0
    size_bytes: int = 0
    attributes_lost: int = 0


# Called every second or so; what it raises breaks the copy off.
Progress = Callable[[Copied], None]


class CopyError(BackendError):
    """The copy failed; ``no_space`` tells the most frequent reason."""

    def __init__(self, cause: str, *, no_space: bool = False) -> None:
        super().__init__(cause, hint="free space, then repeat" if no_space else "")
        self.no_space = no_space


def copy_tree(
    source: Path,
    destination: Destination,
    *,
    progress: Progress,
    flush: Sequence[Path] = (),
) -> Copied:
    """
    Copy what is in *source* to *destination*; durable on return.

    First what was written to the mounts in *flush* is brought to their storage.

    Raises:
        CopyError: what failed; the destination holds a part.
        DeadlineError: the copy stood still.

    """
    request = {
        "source": _shown(source),
        "target": _shown(destination.path),
        "flush": [str(path) for path in flush],
        "fsync": destination.fsync,
        "uid": destination.uid,
        "gid": destination.gid,
    }
    last: dict[str, Any] = {}

    def on_line(line: str) -> None:
        nonlocal last
        try:
            last = json.loads(line)
        except ValueError:
            raise CopyError(f"the copy of {source} failed: {line}") from None
        progress(_copied(last))

    run_with_progress(
        own_program(tree, json.dumps(request)), stall_s=_STALL_S, on_line=on_line
    )
    if not last.get("done"):
        raise CopyError(
            f"{source} was not copied: {last.get('error', 'it ended early')}",
            no_space=last.get("errno") in (errno.ENOSPC, errno.EDQUOT),
        )
    return _copied(last)


def _shown(path: Path) -> tuple[str, str]:
    """
    Return a directory that can be trusted, and the rest of *path*; touches neither.

    Of a path on our own disks only the last name may have been made by others. On a
    share nothing is trusted below its mount point.
    """
    covering = entry_covering(path)
    if covering.filesystem.startswith("nfs"):
        point = covering.mount_point
        return point, str(path.relative_to(point))
    return str(path.parent), path.name


def _copied(line: dict[str, Any]) -> Copied:
    return Copied(
        int(line.get("files", 0)),
        int(line.get("bytes", 0)),
        int(line.get("attributes_lost", 0)),
    )
