"""
What a broken transfer has left of a file, from where the next one goes on.

    <home>/staging/unfinished/NAME.XXXXXX  what rsync writes until it is whole
    <home>/staging/tree/.remora.unfinished/NAME.XXXXXX   the same, of files sent ahead
    <home>/staging/partial/NAME            what one has left that was broken off

rsync compares such a part with what it sends, in place of what the volume has under
that path. It may be of a redo file, which the volume has nothing like. It is never
taken for a file, whoever wrote it, and goes with what has come.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from backends.errors import BackendError, DeadlineError
from backends.rsync.journal.outbox import TREE_NAME
from backends.rsync.journal.redo import TREE_NAME as REDO_NAME
from backends.rsync.journal.staging import Staging
from backends.system.beneath import opened
from backends.system.clock import Deadline
from backends.system.run import run

UNFINISHED_NAME: Final = "unfinished"
_UNFINISHED_OF_TREE: Final = ".remora.unfinished"  # in the tree
PARTIAL_NAME: Final = "partial"
# Less is sent again as fast as it is looked for.
_WORTH_BYTES: Final = 2**20
_SEARCH_WITHIN_S: Final = 10.0
_END_WITHIN_S: Final = 1.0
# Source: rsync, receiver.c, get_tmpname.
_SUFFIX_LENGTH: Final = len(".XXXXXX")
_PATTERN_SIGNS: Final = re.compile(r"([*?\[\]\\])")


def keep(staging: Staging, basis: Path, *, is_tree: bool) -> bool | None:
    """
    Make ready for the next rsync; return whether no files have come before.

    None if an earlier one does not end soon. *is_tree*: it brings files ahead.
    """
    tree, clean = staging.tree(), None
    with suppress(BackendError, OSError), staging.still(Deadline(_END_WITHIN_S)):
        clean = not any(tree.iterdir())
        make_ready(staging.directory(), basis, is_tree=is_tree)
    return clean


def make_ready(staging: Path, basis: Path, *, is_tree: bool = False) -> None:
    """
    Make the directories for rsync's unfinished files, and keep what is worth keeping.

    Nobody may write to *staging* meanwhile. *basis* is where rsync finds what files
    were; a part is no help where there is a whole file that is as large, unless it is
    of a redo file. None of that name has come then. In the tree itself, where the
    volume may have the name, is only looked if *is_tree*: all of it comes once more.
    """
    with opened(staging) as top, _directory(PARTIAL_NAME, top) as parts:
        sizes = _sizes(parts)
        _collect(UNFINISHED_NAME, top, parts, sizes)
        if is_tree:
            with opened(staging / TREE_NAME) as tree:
                _collect(_UNFINISHED_OF_TREE, tree, parts, sizes)
        redo, trees = staging / REDO_NAME, (staging / TREE_NAME, basis)
        for name, size_bytes in sizes.items():
            if size_bytes < _WORTH_BYTES or (
                _has_larger(name, size_bytes, *trees)
                and (not redo.is_dir() or _has_larger(name, 1, redo))
            ):
                os.unlink(name, dir_fd=parts)


def _collect(name: str, top: int, parts: int, sizes: dict[bytes, int]) -> None:
    """Move what is in directory *name* to the open *parts*, whose *sizes* are known."""
    with _directory(name, top) as unfinished:
        for each, size_bytes in _sizes(unfinished).items():
            known = each[:-_SUFFIX_LENGTH]
            if known and size_bytes > sizes.get(known, 0):
                os.rename(each, known, src_dir_fd=unfinished, dst_dir_fd=parts)
                sizes[known] = size_bytes
            else:
                os.unlink(each, dir_fd=unfinished)


@contextmanager
def _directory(name: str, top: int) -> Iterator[int]:
    """Yield the open directory *name*; what another node has put there instead goes."""
    with suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=top, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=top)
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=top)
    with opened(name, dir_fd=top) as directory:
        yield directory


def _sizes(directory: int) -> dict[bytes, int]:
    """Return the files of the open *directory*; links and the like are removed."""
    found = {}
    for name in map(os.fsencode, os.listdir(directory)):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            found[name] = status.st_size
        elif not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=directory)
    return found


def _has_larger(name: bytes, size_bytes: int, *trees: Path) -> bool:
    """Return whether a file *name* in *trees* is as large, or that cannot be told."""
    pattern = _PATTERN_SIGNS.sub(r"\\\1", os.fsdecode(name))
    places = [str(tree) for tree in trees if tree.is_dir()]
    wanted = ("-name", pattern, "-type", "f", "-size", f"+{size_bytes - 1}c")
    command = ["find", *places, "-xdev", *wanted, "-print", "-quit"]
    try:
        return bool(places and run(command, deadline_s=_SEARCH_WITHIN_S).output)
    except (BackendError, DeadlineError):
        return True
