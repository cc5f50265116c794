"""What no commit can have: the errors that tell of it, with the path and what to do."""

from __future__ import annotations

import os
import stat
from typing import Final

from backends.errors import BackendError
from backends.system.walk import name_bytes_max

# In one file. rsync reads holes, and sends zeros.
HOLES_MAX_BYTES: Final = 256 * 2**30
_BLOCK_BYTES: Final = 512
_SHOWN_MAX: Final = 200


def too_many_names(max_names: int) -> BackendError:
    """Return why no commit is made of a volume with more than *max_names* names."""
    return BackendError(
        f"the volume has more than {max_names} names",
        hint="remove some of them, or create it with a larger max_names",
    )


def too_long_names(path: bytes, max_names: int) -> BackendError:
    """Return why no commit is made of a volume whose names are long together."""
    return BackendError(
        f"the names in the volume have more than {name_bytes_max(max_names) >> 20} MiB "
        f"together; the last one was {_shown(path)}",
        hint="rename directories that many long paths lead through, or create it with "
        "a larger max_names",
    )


def nested(path: bytes) -> BackendError:
    """Return why no commit is made with the subvolume *path*."""
    return BackendError(
        f"{_shown(path)} is a subvolume that a container has made: no copy can have "
        "what is in it",
        hint="move what is in it to a plain directory, and delete it",
    )


def too_long(path: bytes) -> BackendError:
    """Return why no commit is made with *path*."""
    return BackendError(
        f"a path is too long to be sent: {_shown(path)}...",
        hint="rename or remove directories below it",
    )


def require_few_holes(path: bytes, status: os.stat_result) -> None:
    """Raise BackendError if *path* is a file with holes that would be sent for days."""
    holes_bytes = status.st_size - _BLOCK_BYTES * status.st_blocks
    if stat.S_ISREG(status.st_mode) and holes_bytes > HOLES_MAX_BYTES:
        raise BackendError(
            f"{_shown(path)} has holes of {holes_bytes >> 30} GiB, which would be sent "
            f"as zeros: {HOLES_MAX_BYTES >> 30} GiB are the most",
            hint="make it smaller, or keep it on another volume",
        )


def _shown(path: bytes) -> str:
    return repr(os.fsdecode(path[:_SHOWN_MAX]))
