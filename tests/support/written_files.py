"""A file that is written in every way, and frozen copies of it on XFS and btrfs."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from backends.system import btrfs, btrfs_extents, extents, libc
from backends.system.ranges import Range
from tests.support.namespaces import enter_private_mounts, loop_filesystem

# Type, options for mkfs, and for mount.
POOLS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "xfs": ("xfs", ("-m", "reflink=1"), ""),
    "xfs with blocks of 1 KiB": ("xfs", ("-m", "reflink=1", "-b", "size=1024"), ""),
    "btrfs": ("btrfs", (), ""),
    "btrfs with zstd": ("btrfs", (), "compress-force=zstd"),
    "btrfs in place": ("btrfs", (), "nodatacow"),
    "btrfs with items for holes": ("btrfs", ("-O", "^no-holes"), ""),
}
BLOCK = 4096
_FICLONE, _FICLONERANGE = 0x4004_9409, 0x4020_940D
_KEEP_SIZE, _PUNCH_HOLE, _COLLAPSE, _ZERO, _INSERT = 1, 2, 8, 16, 32


@contextmanager
def pool(directory: Path, name: str, *, size: str = "400M") -> Iterator[Path]:
    """Yield the mount point of one of `POOLS`."""
    enter_private_mounts()
    kind, made_with, options = POOLS[name]
    with loop_filesystem(
        directory, kind, options=options, size=size, made_with=made_with
    ) as disk:
        yield disk


@dataclass(frozen=True)
class Frozen:
    """A copy of the file that nobody writes to, and the transaction that made it."""

    descriptor: int
    transaction: int


@dataclass
class WrittenFile:
    """The file ``live`` of a directory, that is a subvolume if it can be one."""

    disk: Path
    is_btrfs: bool
    descriptor: int = -1
    donor: int = -1
    _ends: ExitStack = field(default_factory=ExitStack)

    def freeze(self) -> Frozen:
        """Return a copy of the file as it is, as the outbox makes them."""
        name = f"frozen-{os.urandom(4).hex()}"
        copy = self.disk / name
        if self.is_btrfs:
            btrfs.snapshot(self.disk / "volume", copy)
            self._ends.callback(btrfs.delete, copy)
            found = btrfs.subvolume(copy)
            assert found
            return Frozen(self._open(copy / "live", os.O_RDONLY), found.transaction)
        descriptor = self._open(copy, os.O_RDWR | os.O_CREAT)
        self._ends.callback(copy.unlink)
        fcntl.ioctl(descriptor, _FICLONE, self.descriptor)
        return Frozen(descriptor, 0)

    def changed_ranges(self, old: Frozen, new: Frozen) -> list[Range] | None:
        """Return what this filesystem's way of finding changes finds."""
        between = old.descriptor, new.descriptor
        if self.is_btrfs:
            return btrfs_extents.changed_ranges(*between, since=old.transaction)
        return extents.changed_ranges(*between)

    def _open(self, path: Path, flags: int) -> int:
        descriptor = os.open(path, flags, 0o600)
        self._ends.callback(os.close, descriptor)
        return descriptor


@contextmanager
def written_file(disk: Path) -> Iterator[WrittenFile]:
    """Yield a new, empty file of *disk* that is written; all of it goes afterwards."""
    with ExitStack() as ends:
        root = os.open(disk, os.O_RDONLY)
        ends.callback(os.close, root)
        is_btrfs = libc.filesystem_type(root) == btrfs.FILESYSTEM_TYPE
        made = WrittenFile(disk, is_btrfs, _ends=ends)
        volume = disk / "volume"
        if is_btrfs:
            btrfs.create(volume)
            ends.callback(btrfs.delete, volume)
        else:
            volume.mkdir()
            ends.callback(volume.rmdir)
            ends.callback((volume / "live").unlink)
            ends.callback((volume / "donor").unlink)
        made.descriptor, made.donor = (
            made._open(volume / name, os.O_RDWR | os.O_CREAT)
            for name in ("live", "donor")
        )
        yield made


def differing_blocks(old: Frozen, new: Frozen) -> list[Range]:
    """Return the blocks that differ, by a look at every byte."""
    size = os.fstat(new.descriptor).st_size
    after = os.pread(new.descriptor, size, 0)
    before = os.pread(old.descriptor, size, 0).ljust(size, b"\0")
    return [
        (at, min(BLOCK, size - at))
        for at in range(0, size, BLOCK)
        if before[at : at + BLOCK] != after[at : at + BLOCK]
    ]


@dataclass(frozen=True)
class Write:
    """One way to write, and where; *number* makes its content."""

    way: str
    offset: int
    length: int
    source: int
    number: int

    def content(self) -> bytes:
        """Return bytes that can be compressed, no two blocks alike."""
        source = random.Random(self.number)
        blocks = range(0, self.length, BLOCK)
        content = b"".join(source.randbytes(64).ljust(BLOCK, b".") for _ in blocks)
        return content[: self.length]

    def do(self, file: WrittenFile) -> None:
        """Write; what the filesystem says it cannot do at this place is left out."""
        with suppress_those_that_cannot():
            WAYS[self.way](file, self)


@contextmanager
def suppress_those_that_cannot() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """Source: fallocate(2)."""
    place = ctypes.c_int64(offset), ctypes.c_int64(length)
    libc.call("fallocate", descriptor, mode, *place)


def _buffered(file: WrittenFile, write: Write) -> None:
    os.pwrite(file.descriptor, write.content(), write.offset)


def _flushed(file: WrittenFile, write: Write) -> None:
    _buffered(file, write)
    os.fsync(file.descriptor)


def _stored(file: WrittenFile, write: Write) -> None:
    size = os.fstat(file.descriptor).st_size
    end = min(write.offset + write.length, size)
    if write.offset < end:
        with mmap.mmap(file.descriptor, size) as mapped:
            mapped[write.offset : end] = write.content()[: end - write.offset]


def _direct(file: WrittenFile, write: Write) -> None:
    offset, length, _ = _aligned(write)
    with mmap.mmap(-1, length) as buffer:
        buffer[: write.length] = write.content()[:length]
        flags = fcntl.fcntl(file.descriptor, fcntl.F_GETFL)
        fcntl.fcntl(file.descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        try:
            os.pwritev(file.descriptor, [buffer], offset)
        finally:
            fcntl.fcntl(file.descriptor, fcntl.F_SETFL, flags)


def _cut(file: WrittenFile, write: Write) -> None:
    os.ftruncate(file.descriptor, write.offset)


def _cut_and_grown(file: WrittenFile, write: Write) -> None:
    size = os.fstat(file.descriptor).st_size
    os.ftruncate(file.descriptor, write.offset)
    os.ftruncate(file.descriptor, size)


def _fallocated(mode: int, *, aligned: bool) -> Callable[[WrittenFile, Write], None]:
    def do(file: WrittenFile, write: Write) -> None:
        place = _aligned(write)[:2] if aligned else (write.offset, write.length)
        fallocate(file.descriptor, mode, *place)

    return do


def _cloned(file: WrittenFile, write: Write) -> None:
    clone(file.descriptor, file.descriptor, write)


def _cloned_from_another(file: WrittenFile, write: Write) -> None:
    os.pwrite(file.donor, write.content(), write.source)
    clone(file.donor, file.descriptor, write)


def clone(source: int, target: int, write: Write) -> None:
    """Share what *source* has with *target*, in whole blocks that it has."""
    offset, length, from_offset = _aligned(write)
    end = os.fstat(source).st_size
    length = min(length, end - end % BLOCK - from_offset)
    if length > 0:
        content = struct.pack("=qQQQ", source, from_offset, length, offset)
        fcntl.ioctl(target, _FICLONERANGE, content)


def _copied_in_kernel(file: WrittenFile, write: Write) -> None:
    os.pwrite(file.donor, write.content(), write.source)
    for source in (file.donor, file.descriptor):
        with suppress_those_that_cannot():
            os.copy_file_range(
                *(source, file.descriptor, write.length),
                *(write.source, write.offset),
            )


def _aligned(write: Write) -> tuple[int, int, int]:
    """Return offset, length and source in whole blocks."""
    offset, source = (each - each % BLOCK for each in (write.offset, write.source))
    return offset, write.length + -write.length % BLOCK, source


WAYS: dict[str, Callable[[WrittenFile, Write], None]] = {
    "written": _buffered,
    "written and flushed": _flushed,
    "stored through a mapping": _stored,
    "written directly": _direct,
    "cut or grown": _cut,
    "cut and grown": _cut_and_grown,
    "preallocated": _fallocated(0, aligned=False),
    "preallocated beyond its end": _fallocated(_KEEP_SIZE, aligned=False),
    "punched": _fallocated(_KEEP_SIZE | _PUNCH_HOLE, aligned=False),
    "zeroed": _fallocated(_ZERO, aligned=False),
    "collapsed": _fallocated(_COLLAPSE, aligned=True),
    "inserted into": _fallocated(_INSERT, aligned=True),
    "cloned": _cloned,
    "cloned from another": _cloned_from_another,
    "copied in the kernel": _copied_in_kernel,
}
