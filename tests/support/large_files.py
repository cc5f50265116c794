"""Copies on filesystems of their own, for tests of large files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from backends.rsync.journal.journal import Journal
from backends.system import btrfs
from tests.support.journal_trees import replicate
from tests.support.namespaces import enter_private_mounts, loop_filesystem

_MADE_WITH = {"xfs": ("-m", "reflink=1")}
_numbers = itertools.count()


@contextmanager
def mounted(
    tmp_path_factory: pytest.TempPathFactory, *kinds: str
) -> Iterator[dict[str, Path]]:
    """Yield where a new filesystem of each of *kinds* is mounted."""
    enter_private_mounts()
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(
                loop_filesystem(
                    tmp_path_factory.mktemp(kind),
                    kind,
                    size="600M",
                    made_with=_MADE_WITH.get(kind, ()),
                )
            )
            for kind in kinds
        }


def make_home(disk: Path, kind: str) -> Path:
    """Return the directory of a new copy on *disk*; a subvolume holds one on btrfs."""
    home = disk / f"copy{next(_numbers)}"
    home.mkdir()
    if kind == "btrfs":
        btrfs.create(home / "live")
    else:
        (home / "live").mkdir()
    return home


def write_at(path: Path, offset: int, content: bytes) -> None:
    """Write *content* into the file *path*."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def settle(owner: Journal, member: Journal) -> None:
    """Have a commit after the one that came whole: from it on, ranges are known."""
    write_at(owner.live / "db", 0, b"settled")
    replicate(owner, member)
