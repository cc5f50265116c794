"""What happens to a large file between two commits; large is less than it is said."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.support.written_files import WAYS, Write, WrittenFile

# A file is large much earlier here, so that all ways can be tried.
LARGE = 4 * 2**16
PART = LARGE // 4
SIZE = 6 * PART


def written(path: Path, chance: random.Random) -> None:
    """Write in one of the ways of `written_files`, a few times."""
    with path.open("r+b") as file, path.with_name("donor").open("w+b") as donor:
        one = WrittenFile(path.parent, is_btrfs=False)
        one.descriptor, one.donor = file.fileno(), donor.fileno()
        for _ in range(chance.randrange(1, 6)):
            places = chance.randrange(SIZE), chance.randrange(1, PART // 4)
            number, way = chance.randrange(2**32), chance.choice(sorted(WAYS))
            Write(way, *places, chance.randrange(SIZE), number).do(one)
    if path.stat().st_size < SIZE // 2:
        os.truncate(path, SIZE)


def renamed(path: Path, chance: random.Random) -> None:
    other = path.with_name(f"db{chance.randrange(100)}")
    path.rename(other)
    other.rename(path) if chance.random() < 0.5 else path.write_bytes(bytes(SIZE))


def linked(path: Path, chance: random.Random) -> None:
    name = path.with_name("linked")
    name.unlink() if name.exists() else name.hardlink_to(path)
    written(path, chance)


def replaced(path: Path, _: random.Random) -> None:
    other = path.with_name("new")
    other.write_bytes(os.urandom(SIZE))
    other.rename(path)


def moded(path: Path, chance: random.Random) -> None:
    path.chmod(chance.randrange(0o1000))


def owned(path: Path, chance: random.Random) -> None:
    os.chown(path, chance.randrange(9), chance.randrange(9))


def marked(path: Path, chance: random.Random) -> None:
    os.setxattr(path, f"user.{chance.choice('xy')}", chance.randbytes(9))


FATES = [*[written] * 6, renamed, linked, replaced, moded, owned, marked]
