"""A volume with one large file, whose changes are brought to a copy."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backends.rsync.journal.block_index import BlockIndexes, Found, Searching

NAME = b"file"


class Volume:
    """A directory with one large file, an index of it, and its copy as of a commit."""

    def __init__(self, directory: Path) -> None:
        self.live = directory / "live"
        self.live.mkdir()
        self.file = self.live / os.fsdecode(NAME)
        self.indexes = BlockIndexes(directory / "indexes")
        self.data = directory / "data"
        self.copy = b""
        self.commit = (1, 0)
        self.searching: Searching

    @property
    def inode(self) -> int:
        return self.file.stat().st_ino

    def index(self) -> None:
        """Make the first index, and the copy."""
        self.copy = self.file.read_bytes()
        assert self.searching.index(NAME, inode=self.inode) is None
        self.indexes.keep(NAME, self.commit)

    def find(self, also: list[tuple[int, int]] | None = None) -> Found:
        """Bring the copy to the next commit, and check that nothing was missed."""
        found = self.ask(also or [])
        assert found is not None
        self.apply(found)
        assert self.copy == self.file.read_bytes()
        self.commit = (1, self.commit[1] + 1)
        self.indexes.keep(NAME, self.commit)
        return found

    def ask(self, also: list[tuple[int, int]]) -> Found | None:
        self.data.unlink(missing_ok=True)
        return self.searching.find(
            NAME, inode=self.inode, base=self.commit, also=also, data=self.data
        )

    def apply(self, found: Found) -> None:
        """Write what was sent into the copy, as a member does."""
        content = self.data.read_bytes()
        assert len(content) == found.data_bytes
        assert hashlib.blake2b(content, digest_size=16).digest() == found.digest
        size = found.size_bytes
        copy = bytearray(self.copy[:size].ljust(size, b"\0"))
        at, last = 0, 0
        for offset, length in found.sent:
            assert offset >= last
            last = offset + length
            assert last <= size
            copy[offset:last] = content[at : at + length]
            at += length
        assert at == len(content)
        self.copy = bytes(copy)

    def write(self, offset: int, content: bytes) -> None:
        with self.file.open("r+b") as file:
            file.seek(offset)
            file.write(content)


@contextmanager
def volume_in(directory: Path, content: bytes = b"") -> Iterator[Volume]:
    volume = Volume(directory)
    volume.file.write_bytes(content)
    with volume.indexes.searching(volume.live) as volume.searching:
        volume.index()
        yield volume
