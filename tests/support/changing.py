"""A directory in which everything happens that can happen to a name."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from backends.system.attributes import is_copied
from tests.support.journal_trees import acl


class Changing:
    """Changes a directory at random, in every way that a name can change."""

    def __init__(self, root: Path, seed: int) -> None:
        self._root = root
        self._random = random.Random(seed)

    def change(self) -> None:
        """Do one thing."""
        acts = [self.write, self.write, self.make, self.link, self.move, self.remove]
        self._random.choice([*acts, *[self.give] * 3, self.write_back])()

    def place(self) -> Path:
        """Return a path that may be taken."""
        way = (self._random.choice("abc") for _ in range(self._random.randint(1, 4)))
        return self._root.joinpath(*way)

    def found(self) -> Path | None:
        """Return something that there is."""
        there = sorted(self._root.rglob("*"))
        return self._random.choice(there) if there else None

    def write(self) -> None:
        path = self.place()
        if path.parent.is_dir() and not path.is_dir():
            path.write_bytes(self._random.randbytes(self._random.randint(0, 9000)))

    def make(self) -> None:
        path = self.place()
        if path.parent.is_dir() and not path.exists():
            path.mkdir(mode=0o700)
            os.setxattr(path, "user.remark", self._random.randbytes(3))

    def link(self) -> None:
        one, other = self.found(), self.place()
        if one and one.is_file() and other.parent.is_dir() and not other.exists():
            os.link(one, other)

    def give(self) -> None:
        """Change attributes alone."""
        path = self.found()
        if path is None:
            return
        which = self._random.randrange(5)
        if which == 0:
            os.chown(path, self._random.randrange(9), self._random.randrange(9))
        elif which == 1:
            path.chmod(self._random.randrange(0o10000))
        elif which == 2:
            key, size = self._random.choice("xyz"), self._random.randrange(900)
            os.setxattr(path, f"user.{key}", self._random.randbytes(size))
        elif which == 3:
            user = self._random.randrange(9)
            os.setxattr(path, "system.posix_acl_access", acl(user=user))
        else:
            for key in filter(is_copied, os.listxattr(path)):
                os.removexattr(path, key)

    def write_back(self) -> None:
        """Write other content, and put the time back."""
        path = self.found()
        if path and path.is_file():
            status = path.stat()
            path.write_bytes(self._random.randbytes(status.st_size))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def move(self) -> None:
        one, other = self.found(), self.place()
        if one is None or not other.parent.is_dir() or other.is_relative_to(one):
            return
        if other.is_dir() and not one.is_relative_to(other):
            shutil.rmtree(other)
        if not other.exists() or (one.is_file() and other.is_file()):
            one.rename(other)

    def remove(self) -> None:
        path = self.found()
        if path and path.is_dir():
            shutil.rmtree(path)
        elif path:
            path.unlink()
