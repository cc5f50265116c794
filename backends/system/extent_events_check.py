"""
Whether the kernel tells of each way in which the extents of a file on XFS change.

Its trace points are no promise to programs: another kernel may have moved one. What is
not told would be missing in a commit. So each change is made to a file of our own
first, and what was told of it is compared with where that file was before and after.
"""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from backends.system import libc
from backends.system.copy_file import clone_range
from backends.system.extent_events import followed
from backends.system.extents import Places, UntoldError
from backends.system.ranges import merged, split

log = logging.getLogger(__name__)

_FLAGS: Final = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
# In blocks: after what has been written and is shared, and after a block that is
# preallocated, comes a hole each.
_WRITTEN, _ALLOCATED, _SIZE = 4, 5, 8
# Of an open file, by another one; the last is how many bytes a block has.
_Change = Callable[[int, int, int], object]
# By device.
_told: dict[int, bool] = {}


def all_is_told(directory: Path) -> bool:
    """Return whether it is so in *directory*; each disk is asked once."""
    device = directory.stat().st_dev
    if device not in _told:
        try:
            lacks = _untold(directory)
        except (OSError, UntoldError) as error:
            lacks = f"it cannot be tried: {error}"
        if lacks:
            log.warning(
                "the kernel does not tell where files change (%s): "
                "large files of many extents are paused for longer",
                lacks,
            )
        _told[device] = not lacks
    return _told[device]


def _untold(directory: Path) -> str:
    """Return a change that the kernel does not tell of, "" if there is none."""
    with ExitStack() as stack:

        def opened() -> int:
            made = os.open(directory, _FLAGS, 0o600)
            stack.callback(os.close, made)
            return made

        origin, files = opened(), {name: opened() for name in _CHANGES}
        block = os.fstatvfs(origin).f_bsize
        os.pwrite(origin, os.urandom((_WRITTEN + 1) * block), 0)
        for file in files.values():
            clone_range(origin, file, 0, _WRITTEN * block)
            libc.fallocate(file, 0, _ALLOCATED * block, block)
            os.ftruncate(file, _SIZE * block)
        inodes = {os.fstat(file).st_ino for file in files.values()}
        events = stack.enter_context(followed(inodes, on=origin))
        if events is None:
            return "it has no such events here"
        for name, file in files.items():
            places = Places.of(file, 2 * _SIZE * block)
            _CHANGES[name](file, origin, block)
            moved = merged(places.look_again(file))
            told = events.changed(os.fstat(file).st_ino)
            is_told = told is None or all(known for known, _ in split(moved, told))
            if not moved or not is_told:
                return f"nothing of {name}"
    return ""


def _direct(file: int, _: int, block: int) -> None:
    direct = os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, block) as content:
            os.pwritev(direct, [content], block)
    finally:
        os.close(direct)


def _store(file: int, _: int, block: int) -> None:
    with mmap.mmap(file, _SIZE * block) as mapped:
        mapped[block] ^= 1


def _written(at: int) -> _Change:
    return lambda file, _, block: os.pwrite(file, bytes(block), at * block)


def _allocated(mode: int) -> _Change:
    return lambda file, _, block: libc.fallocate(file, mode, block, block)


def _cloned(to: int) -> _Change:
    return lambda file, origin, block: clone_range(
        origin, file, _WRITTEN * block, block, to=to * block
    )


_CHANGES: Final[Mapping[str, _Change]] = {
    "a write": _written(1),
    "a direct write": _direct,
    "a store through a mapping": _store,
    "a write where blocks are allocated": _written(_ALLOCATED),
    "a write into a hole": _written(_SIZE - 1),
    "a write beyond the end": _written(_SIZE),
    "a cut": lambda file, _, block: os.ftruncate(file, block),
    "a cut to nothing": lambda file, *_: os.ftruncate(file, 0),
    "a hole": _allocated(libc.FALLOCATE_KEEP_SIZE | libc.FALLOCATE_PUNCH),
    "zeros": _allocated(libc.FALLOCATE_ZERO),
    "a block that is taken out": _allocated(libc.FALLOCATE_COLLAPSE),
    "a block that is put in": _allocated(libc.FALLOCATE_INSERT),
    "a clone": _cloned(to=1),
    "a clone into a hole": _cloned(to=_SIZE - 1),
    "a clone of what comes next on the disk": _cloned(to=_WRITTEN),
}
