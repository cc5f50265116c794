"""
What leads one large file from a base to a commit: the bytes that changed, and where.

    data      the bytes of each range, one after the other
    table     MessagePack: `Table`
    trailer   how long the table is, a digest of it, magic and version

Owner, mode, times and extended attributes are those of the file, so that rsync brings
them with it. Another node has written it, so nothing in it is believed: it is checked
from end to end before the commit is marked. Then it is written into the file, as often
as a crash makes necessary: the same bytes at the same places.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import msgspec

from backends.errors import BackendError
from backends.rsync.journal.entries import Commit
from backends.system import extents, libc
from backends.system.copy_file import is_range_cloned
from backends.system.decoding import NOT_DECODED, msgpack_decoder
from backends.system.ranges import BLOCK_BYTES, Range, read_ahead

TREE_NAME: Final = "redo"
# A smaller file is sent as rsync does it: what looking for its ranges costs is saved
# nowhere.
LARGE_BYTES: Final = 4 * 2**20
_RANGES_MAX: Final = 50_000
# Each may be cut in two by each hole.
SENT_MAX: Final = _RANGES_MAX // 2
_MAGIC: Final = b"remora redo 1\n\0\0"
_DIGEST_BYTES: Final = 16
_TRAILER: Final = struct.Struct(f">I{_DIGEST_BYTES}s{len(_MAGIC)}s")
_PAIR: Final = struct.Struct(">QQ")
# All ranges and holes of a file, and its path.
_TABLE_BYTES_MAX: Final = 2 * _RANGES_MAX * _PAIR.size + 16 * 1024
_CHUNK_BYTES: Final = 2**20
_OFFSET_MAX: Final = 2**63 - 1
_ZEROS: Final = bytes(BLOCK_BYTES)


class Table(msgspec.Struct, frozen=True):
    """
    What the data is about: it leads *path* to ``commit``.

    It does so from ``base``, and from each commit between them. The file has ``size``
    bytes then; ``ranges`` are where the data goes, ``holes`` where zeros are: pairs of
    offset and length. ``digest`` is of the data.
    """

    path: bytes
    base: Commit
    commit: Commit
    size: int
    ranges: bytes
    holes: bytes
    digest: bytes


class DataWriter:
    """Appends the data of a redo file to the open *target*, and what it is about."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._digest = _hash()
        self._ranges: list[Range] = []
        self._holes: list[Range] = []

    def copy(self, source: int, ranges: Iterable[Range]) -> None:
        """
        Add what the open *source*, which nobody writes to, has at *ranges*.

        They are `SENT_MAX` at most. Beyond as many holes, zeros are data.
        """
        for offset, length in read_ahead(ranges, source):
            at, end = offset, offset + length
            while (at := self._after_hole(source, at, end)) < end:
                wanted_bytes = min(_CHUNK_BYTES, end - at)
                data = os.pread(source, wanted_bytes, at).ljust(wanted_bytes, b"\0")
                for begin, until, are_zeros in _runs(data):
                    if are_zeros:
                        self._add_zeros(source, at + begin, at + until)
                    else:
                        self._write(at + begin, data[begin:until])
                at += wanted_bytes

    def _after_hole(self, source: int, at: int, end: int) -> int:
        """
        Add the hole at *at*, if there is one; return where it ends, at *end* at last.

        Where data ends is never asked: the kernel would go through all extents up to
        the next hole, and of a database's file through all.
        """
        if len(self._holes) >= SENT_MAX or at >= end:
            return at
        after = min(_data_after(source, at), end)
        if after > at:
            _append(self._holes, (at, after - at))
        return after

    def _add_zeros(self, source: int, begin: int, end: int) -> None:
        """Add zeros, or the holes that they are."""
        while (begin := self._after_hole(source, begin, end)) < end:
            at = min(begin + BLOCK_BYTES, end)
            while at < end and _data_after(source, at) == at:
                at = min(at + BLOCK_BYTES, end)
            self._write(begin, bytes(at - begin))
            begin = at

    def _write(self, at: int, data: bytes) -> None:
        _write(self._target, data)
        self._digest.update(data)
        _append(self._ranges, (at, len(data)))

    def finish(self, path: bytes, base: Commit, commit: Commit, size: int) -> None:
        """Add the table and the end; see `Table`."""
        finish(
            self._target,
            Table(
                *(path, base, commit, size),
                packed(self._ranges),
                packed(self._holes),
                self._digest.digest(),
            ),
        )


def finish(target: int, table: Table) -> None:
    """Add *table* and the end to the open *target*, which has the data."""
    content = msgspec.msgpack.encode(table)
    digest = _hash(content).digest()
    _write(target, content + _TRAILER.pack(len(content), digest, _MAGIC))


class Redo:
    """An open redo file that another node has written; its table has been checked."""

    def __init__(self, descriptor: int) -> None:
        """
        Read the table of what is open as *descriptor*, which stays the caller's.

        Raises:
            BackendError: it is not whole, or says what cannot be.

        """
        self._descriptor = descriptor
        self.table, self._data_end = _table(descriptor)
        self.ranges = unpacked(self.table.ranges, self.table.size)
        self.holes = unpacked(self.table.holes, self.table.size)
        if sum(length for _, length in self.ranges) != self._data_end:
            raise _refused("has more or less data than it says")

    def require_data(self) -> None:
        """Raise BackendError if the data is damaged."""
        digest = _hash()
        for data in self._chunks(0, self._data_end):
            digest.update(data)
        if digest.digest() != self.table.digest:
            raise _refused("is damaged: its digest is wrong")

    def write_to(self, target: int) -> None:
        """
        Write it into the open *target*, which is at its base, or between the two.

        On XFS the two share the blocks: they are on the disk already. Elsewhere all of
        the redo file would be kept as long as anything of it is in use (btrfs).
        """
        # XFS writes a file out at its close that was cut to the size that it has.
        if os.fstat(target).st_size != self.table.size:
            os.ftruncate(target, self.table.size)
        for offset, length in self.holes:
            _punch(target, offset, length)
        at, shares = 0, extents.is_xfs(target)
        for offset, length in self.ranges:
            shared = shares and not (at | offset | length) % BLOCK_BYTES
            if shared:
                file = self._descriptor
                shared = shares = is_range_cloned(file, target, at, length, offset)
            if not shared:
                self._copy(target, at, length, offset)
            at += length

    def _copy(self, target: int, at: int, length: int, to: int) -> None:
        for data in self._chunks(at, at + length):
            _write(target, data, to)
            to += len(data)

    def _chunks(self, begin: int, end: int) -> Iterator[bytes]:
        for at in range(begin, end, _CHUNK_BYTES):
            data = os.pread(self._descriptor, min(_CHUNK_BYTES, end - at), at)
            if len(data) != min(_CHUNK_BYTES, end - at):
                raise _refused("has been cut while it was read")
            yield data


def packed(ranges: Iterable[Range]) -> bytes:
    """Return *ranges* as a table has them."""
    return b"".join(_PAIR.pack(*each) for each in ranges)


def unpacked(content: bytes, size: int) -> Sequence[Range]:
    """
    Return the ranges that *content* has, of a file of *size* bytes.

    Raises:
        BackendError: they are not in order, overlap, or lie beyond the end.

    """
    if len(content) % _PAIR.size or len(content) > _RANGES_MAX * _PAIR.size:
        raise _refused("has ranges that are none")
    ranges = [(offset, length) for offset, length in _PAIR.iter_unpack(content)]
    end = 0
    for offset, length in ranges:
        if offset < end or not length or offset + length > size:
            raise _refused(f"has a range that cannot be, at {offset}")
        end = offset + length
    return ranges


def _table(descriptor: int) -> tuple[Table, int]:
    """Return the table, and where the data ends."""
    end = os.fstat(descriptor).st_size - _TRAILER.size
    if end < 0:
        raise _refused("is cut short")
    trailer = os.pread(descriptor, _TRAILER.size, end)
    if len(trailer) != _TRAILER.size or not trailer.endswith(_MAGIC):
        raise _refused("is cut short, or of another version")
    length, digest, _ = _TRAILER.unpack(trailer)
    if length > min(end, _TABLE_BYTES_MAX):
        raise _refused("has a table that is too long")
    content = os.pread(descriptor, length, end - length)
    if _hash(content).digest() != digest:
        raise _refused("has a damaged table")
    try:
        table = msgpack_decoder(Table).decode(content)
    except NOT_DECODED as error:
        raise _refused(f"has a table that is none: {error}") from error
    if not 0 <= table.size <= _OFFSET_MAX:
        raise _refused("is of a file with a size that cannot be")
    return table, end - length


def _append(ranges: list[Range], following: Range) -> None:
    """Add a range that is behind all *ranges*; what it follows at once, it extends."""
    if ranges and sum(ranges[-1]) == following[0]:
        following = (ranges[-1][0], ranges.pop()[1] + following[1])
    ranges.append(following)


def _runs(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """Yield begin and end of the blocks in *data* that are zeros, and are not."""

    def are_zeros(at: int) -> bool:
        return data[at : at + BLOCK_BYTES] == _ZEROS[: len(data) - at]

    places = range(0, len(data), BLOCK_BYTES)
    for zeros, blocks in itertools.groupby(places, key=are_zeros):
        found = list(blocks)
        yield found[0], min(found[-1] + BLOCK_BYTES, len(data)), zeros


def _data_after(source: int, at: int) -> int:
    """Return where the first data at or after *at* is, or more than any file has."""
    try:
        return os.lseek(source, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return _OFFSET_MAX


def _punch(target: int, offset: int, length: int) -> None:
    """Make a hole; write zeros where the filesystem has none."""
    try:
        libc.punch_hole(target, offset, length)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        for at in range(offset, offset + length, _CHUNK_BYTES):
            _write(target, bytes(min(_CHUNK_BYTES, offset + length - at)), at)


def _write(target: int, data: bytes, at: int | None = None) -> None:
    """Write all of *data* at *at*, or where the last write has ended."""
    view = memoryview(data)
    while view:
        if at is None:
            done = os.write(target, view)
        else:
            done = os.pwrite(target, view, at)
            at += done
        view = view[done:]


def _hash(content: bytes = b"") -> hashlib.blake2b:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES)


def _refused(cause: str) -> BackendError:
    return BackendError(f"the redo file {cause}", hint="the sender has to make it anew")
