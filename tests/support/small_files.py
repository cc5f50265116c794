"""Two copies of a volume of small files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.system import btrfs
from tests.support.journal_trees import VOLUME, carry, replicate, shape
from tests.support.large_files import make_home

KINDS = ("ext4", "xfs", "btrfs")
FILES = 30
SIZE = 10_000


@contextmanager
def copies(disk: Path, kind: str) -> Iterator[tuple[Journal, Journal]]:
    """Yield an owner's copy and a member's, which have the same small files."""
    homes = [make_home(disk, kind) for _ in range(2)]
    owner, member = (Journal(home, VOLUME) for home in homes)
    for number in range(FILES):
        (owner.live / f"{number % 3}").mkdir(exist_ok=True)
        path(owner, number).write_bytes(os.urandom(SIZE))
    replicate(owner, member)
    yield owner, member
    for each in (owner, member):
        each.close()
    for home in homes:
        btrfs.delete(home / "live")
        for snapshot in (home / "commits").glob("*"):
            btrfs.delete(snapshot)
        subprocess.run(["rm", "-rf", home], check=True, timeout=60)


def path(journal: Journal, number: int) -> Path:
    """Return one of the files."""
    return journal.live / f"{number % 3}/{number}"


def record(owner: Journal) -> None:
    """Make what has changed the next commit."""
    owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))


def sent(owner: Journal, *bases: tuple[int, int]) -> tuple[list[bytes], int]:
    """Return the names in the next commit's package for the first base; its size."""
    record(owner)
    package = owner.pack(*bases)
    return package.names.rstrip(b"\0").split(b"\0"), package.size_bytes


def take(owner: Journal, member: Journal) -> None:
    """Have *member* take what is packed for it, which is all that it needs."""
    assert carry(owner.repack(member.commit()), member) == []
    member.apply()
    assert shape(member.live) == shape(owner.live)


def rewrite(file: Path) -> None:
    """Write other content of the same size, and put the time back."""
    status = file.stat()
    with file.open("r+b") as opened:
        opened.write(os.urandom(status.st_size))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
