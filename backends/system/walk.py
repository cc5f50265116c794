"""
Walks a tree: without following a link, on one filesystem, however deep the tree is.

Others may write to the tree meanwhile. What vanishes is left out, and a directory that
has become a link is not gone into. Standard library alone, as `beneath.py`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Final

from backends.system.beneath import Way

# A name takes some 60 bytes and its own length.
NAMES_MAX: Final = 20_000_000
# Names and paths have up to 4,095 bytes, and most are short: this is of all together.
_BYTES_EACH: Final = 128
_BYTES_LEAST: Final = 16 * 2**20
_SLASH: Final = ord("/")
# Path, name, the open directory that the name is in, and what stat(2) says of it.
Found = tuple[bytes, bytes, int, os.stat_result]


def name_bytes_max(names_max: int) -> int:
    """Return how many bytes *names_max* names may have together."""
    return _BYTES_EACH * names_max + _BYTES_LEAST


def walk(
    top: int,
    *,
    path: bytes = b"",
    enter: Callable[[bytes], bool] = lambda _: True,
    names_max: int = NAMES_MAX,
) -> Iterator[Found]:
    """
    Yield all that is below the open directory *top*, whose own path is *path*.

    In the order of the paths' bytes: "a", "a!", "a/b". Directories are open until the
    next step alone. Those of another filesystem are yielded and not gone into, nor are
    those whose path *enter* returns False for; it is asked after they were yielded.

    Raises:
        OSError: something is there and cannot be read, or one directory has more than
            *names_max* names, which are kept while it is gone through, or they are too
            long together: E2BIG, ENAMETOOLONG.

    """
    device = os.fstat(top).st_dev
    way = Way(top)
    above = [path] if path else []
    # Of each directory on the way, the names still to come. The paths of all of them
    # would take gigabytes in a tree that somebody has made for that.
    levels = [_names(top, names_max)]
    try:
        while levels:
            names = levels[-1]
            directory = _last(way, device) if names else None
            before = b"/".join([*above, *way.names, b""])
            while directory is not None and names:
                name = names.pop()
                if name[-1] == _SLASH:
                    name = name[:-1]
                    if enter(before + name) and _go_down(way, name, device):
                        levels.append(_names(way.last(), names_max))
                        break
                    continue
                try:
                    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                yield before + name, name, directory, status
            else:
                levels.pop()
                if levels:
                    way.up()
    finally:
        way.close()


def _names(directory: int, names_max: int) -> list[bytes]:
    """
    Return the names in an open directory, the last one first.

    Those of directories come once more, with a slash: in the place that what is below
    them has in the order of the paths' bytes.
    """
    names, left_bytes = [], name_bytes_max(names_max)
    with os.scandir(directory) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            names.append(name)
            if entry.is_dir(follow_symlinks=False):
                names.append(name + b"/")
            if len(names) > 2 * names_max:
                raise OSError(errno.E2BIG, "a directory has too many names", name)
            left_bytes -= len(name)
            if left_bytes < 0:
                raise OSError(errno.ENAMETOOLONG, "a directory has long names", name)
    names.sort(reverse=True)
    return names


def _last(way: Way, device: int) -> int | None:
    """Return where *way* leads, None if that has gone, or lies elsewhere, meanwhile."""
    try:
        last = way.last()
    except (FileNotFoundError, NotADirectoryError):
        return None
    # A deep way is opened again from its top, and may lead over a new mount by then.
    return last if os.fstat(last).st_dev == device else None


def _go_down(way: Way, name: bytes, device: int) -> bool:
    """Return whether *way* now leads to *name*, a directory of that filesystem."""
    try:
        below = way.down(name)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if os.fstat(below).st_dev == device:
        return True
    way.up()
    return False
