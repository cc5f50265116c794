"""
The file that a block index is: a header, then tags of a large file's pieces.

A tag is a keyed hash of 16 bytes, or zeros for what is all zeros (`block_hashes.py`):
the index of a sparse file is sparse. Tags lie in groups: a page of the tags of 256
chunks of 1 MiB, then 256 pages with the tags of each chunk's 256 blocks of 4 KiB.

An index is believed if its header says that it is of the commit that is asked for, and
was written in this boot of the kernel: what a killed process has written is in the page
cache, what a power failure leaves is not known. `seal` makes one that is believed after
it as well. While tags are written the index is of no commit.

Standard library alone: `index_blocks.py` is a program of its own.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from backends.system.clock import boot_id
from backends.system.ranges import BLOCK_BYTES

CHUNK_BYTES: Final = 2**20
BLOCKS: Final = CHUNK_BYTES // BLOCK_BYTES
TAG_BYTES: Final = 16
KEY_BYTES: Final = 32
ZEROS_TAG: Final = bytes(TAG_BYTES)

# What an index is: being written; whole, but of no commit yet; of its commit.
BROKEN, WHOLE, KEPT = range(3)
# Instead of a boot's identity: believed in every boot.
_SEALED: Final = bytes(16)
_MAGIC: Final = b"remora index 1\0\0"
_HEADER: Final = struct.Struct(f"<16s I I q q 16s Q Q {KEY_BYTES}s")
_DIGEST_BYTES: Final = 16
_PAGE: Final = 4096
# Of a group: as many chunks as a page has tags.
_GROUP: Final = _PAGE // TAG_BYTES
_GROUP_BYTES: Final = _PAGE + _GROUP * BLOCKS * TAG_BYTES
_PRIVATE: Final = 0o600

Commit = tuple[int, int]
NO_COMMIT: Final = (-1, -1)


class Header(NamedTuple):
    """
    What an index is of: a file of ``size`` bytes, with number ``inode``, at ``commit``.

    ``hashing`` tells how its tags were made, with ``key``.
    """

    hashing: int
    key: bytes
    inode: int
    size: int = 0
    state: int = BROKEN
    commit: Commit = NO_COMMIT
    boot: bytes = _SEALED

    def is_of(self, commit: Commit, inode: int) -> bool:
        """Return whether the index can be believed to be of *inode* at *commit*."""
        about = self.state, self.commit, self.inode
        return about == (KEPT, commit, inode) and self._is_of_this_boot()

    def _is_of_this_boot(self) -> bool:
        return self.boot in (_SEALED, _this_boot())


class IndexFile:
    """An index that is open as *descriptor*, which remains the caller's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def header(self) -> Header | None:
        """Return the header, None if there is none that is whole."""
        content = os.pread(self._descriptor, _HEADER.size + _DIGEST_BYTES, 0)
        packed = content[: _HEADER.size]
        if len(packed) < _HEADER.size or _digest(packed) != content[_HEADER.size :]:
            return None
        magic, hashing, state, epoch, seq, boot, size, inode, key = _HEADER.unpack(
            packed
        )
        if magic != _MAGIC:
            return None
        return Header(hashing, key, inode, size, state, (epoch, seq), boot)

    def put(self, header: Header) -> None:
        """Write *header*, as of this boot."""
        self._put(header._replace(boot=_this_boot()))

    def _put(self, header: Header) -> None:
        hashing, key, inode, size, state, commit, boot = header
        packed = _HEADER.pack(
            *(_MAGIC, hashing, state, *commit, boot, size, inode, key)
        )
        _write(self._descriptor, packed + _digest(packed), 0)

    def begin(self, header: Header) -> None:
        """
        Make the index one of no commit, before tags of it are written.

        One that is believed after a power failure has to be so no longer first: else
        what then is left of the new tags would be.
        """
        self.put(header._replace(state=BROKEN, commit=NO_COMMIT))
        if header.boot == _SEALED:
            os.fdatasync(self._descriptor)

    def keep(self, commit: Commit) -> bool:
        """Make a whole index one of *commit*; return whether it now is."""
        header = self.header()
        if header is None:
            return False
        if header.state == WHOLE and header.boot == _this_boot():
            self.put(header._replace(state=KEPT, commit=commit))
            return True
        return header.is_of(commit, header.inode)

    def seal(self) -> None:
        """Have an index of a commit believed after a power failure as well."""
        header = self.header()
        if header is None or header.state != KEPT or header.boot != _this_boot():
            return
        os.fdatasync(self._descriptor)
        self._put(header._replace(boot=_SEALED))
        os.fdatasync(self._descriptor)

    def chunk_tag(self, chunk: int) -> bytes:
        """Return the tag of *chunk*."""
        return self._read(_chunk_at(chunk), TAG_BYTES)

    def block_tags(self, chunk: int) -> bytes:
        """Return the tags of all blocks of *chunk*, one after the other."""
        return self._read(_blocks_at(chunk), BLOCKS * TAG_BYTES)

    def put_chunk_tag(self, chunk: int, tag: bytes) -> None:
        """Write the tag of *chunk*."""
        _write(self._descriptor, tag, _chunk_at(chunk))

    def put_block_tags(self, chunk: int, tags: bytes, *, first: int = 0) -> None:
        """Write tags of the blocks of *chunk* from the *first* on."""
        _write(self._descriptor, tags, _blocks_at(chunk) + first * TAG_BYTES)

    def marked(self) -> Iterator[int]:
        """Yield the chunks that are not all zeros, in order, as they are looked at."""
        group = 0
        while (at := self._data_from(_chunk_at(group * _GROUP))) is not None:
            group = max(group, (at - _PAGE) // _GROUP_BYTES)
            page = self._read(_chunk_at(group * _GROUP), _PAGE)
            for each in range(_GROUP):
                if page[each * TAG_BYTES : (each + 1) * TAG_BYTES] != ZEROS_TAG:
                    yield group * _GROUP + each
            group += 1

    def cut(self, size: int) -> None:
        """Give the room of tags back that are beyond a file of *size* bytes."""
        chunks = -(-size // CHUNK_BYTES)
        end = _chunk_at(-(-chunks // _GROUP) * _GROUP)
        if os.fstat(self._descriptor).st_size > end:
            os.ftruncate(self._descriptor, end)

    def _data_from(self, at: int) -> int | None:
        try:
            return os.lseek(self._descriptor, at, os.SEEK_DATA)
        except OSError:  # ENXIO: there is none
            return None

    def _read(self, at: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, at).ljust(length, b"\0")


@contextmanager
def opened_index(path: str | os.PathLike[str]) -> Iterator[IndexFile | None]:
    """Yield the index at *path*, None if there is none."""
    descriptor = None
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield None if descriptor is None else IndexFile(descriptor)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def make_index(path: str | os.PathLike[str], header: Header) -> None:
    """Make an index of zeros at *path*; one that is there, and may be sealed, goes."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108 - quick to load
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, _PRIVATE)
    try:
        IndexFile(descriptor).put(header._replace(state=BROKEN, commit=NO_COMMIT))
    finally:
        os.close(descriptor)


def _chunk_at(chunk: int) -> int:
    group, place = divmod(chunk, _GROUP)
    return _PAGE + group * _GROUP_BYTES + place * TAG_BYTES


def _blocks_at(chunk: int) -> int:
    group, place = divmod(chunk, _GROUP)
    return _PAGE + group * _GROUP_BYTES + _PAGE + place * BLOCKS * TAG_BYTES


def _this_boot() -> bytes:
    return bytes.fromhex(boot_id().replace("-", ""))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _write(descriptor: int, content: bytes, at: int) -> None:
    while content:
        done = os.pwrite(descriptor, content, at)
        content, at = content[done:], at + done
