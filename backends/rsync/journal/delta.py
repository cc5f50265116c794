"""
What one commit changes, as a file: a header, entries, deletions, a trailer.

    magic and version       16 bytes
    records                 4 bytes of length, then msgpack: the header first, then each
                            entry in order of its path, then each deleted path
    trailer                 how many entries, how many deletions, and a CRC-32 of all
                            that is before it

Another node has written it. Nothing in it is believed: what is out of range, out of
order or cut short is an error before anything has been changed. It is checked once,
when it is opened: a delta that comes later replaces the file and does not change it.
That ends at the first record that cannot be: a file of holes is not read to its end.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Self, TypeVar

import msgspec

from backends.errors import BackendError
from backends.rsync.journal.entries import (
    DIGEST_BYTES,
    UNWRITTEN,
    Commit,
    Entry,
    is_path,
)
from backends.system.decoding import NOT_DECODED, msgpack_decoder
from backends.system.files import replacing
from backends.system.regular_files import open_regular

_Record = TypeVar("_Record")

_MAGIC: Final = b"remora delta 1\n\0"
_LENGTH: Final = struct.Struct(">I")
_TRAILER: Final = struct.Struct(">QQI")
_RECORD_SIZE_MAX: Final = 16 * 1024  # a path and a target have 4095 bytes each
_READ_SIZE: Final = 2**20
_WRITE_SIZE: Final = 2**18
_NUMBER_MAX: Final = 2**63 - 1
# chown(2) takes 2**32-1 for "leave it".
_OWNER_MAX: Final = 2**32 - 2
_VOLUME: Final = re.compile("[0-9a-zA-Z][0-9a-zA-Z_.-]{0,254}")
_ATTRIBUTES: Final = re.compile("(?:[0-9a-f]{32})?")


class Header(msgspec.Struct, frozen=True):
    """
    What a delta is about: it leads *volume* from commit ``base`` to ``commit``.

    Without a base it is full: what it does not name is not in the volume.
    """

    volume: str
    base: Commit | None
    commit: Commit
    entries: int = 0
    deletions: int = 0


def write_delta(
    path: Path, header: Header, entries: Iterable[Entry], deletions: Iterable[bytes]
) -> None:
    """
    Write a delta to *path*, durably.

    *entries* come in order of their paths. Of a file with several names all are in, or
    none: ``links`` are this node's numbers, and another node has none to compare.
    """
    encoder = msgspec.msgpack.Encoder()
    pending = bytearray(_MAGIC)
    checksum = 0
    counts = [0, 0]
    with replacing(path) as file:

        def write() -> None:
            nonlocal checksum
            checksum = zlib.crc32(pending, checksum)
            file.write(pending)
            pending.clear()

        def add(record: object) -> None:
            content = encoder.encode(record)
            pending.extend(_LENGTH.pack(len(content)) + content)
            if len(pending) >= _WRITE_SIZE:
                write()

        add(header)
        for index, records in enumerate((entries, deletions)):
            for record in records:
                add(record)
                counts[index] += 1
        write()
        file.write(_TRAILER.pack(*counts, checksum))


class Delta:
    """A delta that another node has written, checked from end to end."""

    def __init__(self, descriptor: int, size: int, records_max: int) -> None:
        """Take over *descriptor*; use `open`."""
        self._descriptor = descriptor
        self._records_max = records_max
        self._size = size
        self._header_end = 0
        self._entries_end = 0
        self.header = self._check()

    @classmethod
    def open(cls, path: Path, *, records_max: int = _NUMBER_MAX) -> Self:
        """
        Return the delta at *path*; it is read from what is open now, until `close`.

        Raises:
            BackendError: it is not whole, or has in it what no delta may have, or more
                than *records_max* entries or deletions.

        """
        try:
            descriptor = open_regular(os.fspath(path))
        except OSError as error:
            raise _refused(f"cannot be read: {error.strerror}") from error
        try:
            return cls(descriptor, os.fstat(descriptor).st_size, records_max)
        except BaseException:
            os.close(descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def entries(self) -> Iterator[Entry]:
        """Return the entries in order of their paths, parents before their children."""
        return self._read(Entry, self._header_end, self.header.entries)

    def deletions(self) -> Iterator[bytes]:
        """Return the paths to remove before all else, with all below; in order."""
        return self._read(bytes, self._entries_end, self.header.deletions)

    def _read(self, kind: type[_Record], offset: int, count: int) -> Iterator[_Record]:
        records = _Records(self._descriptor, offset, self._size)
        decoder = msgpack_decoder(kind)
        for _ in range(count):
            yield _decoded(decoder, records.next())

    def _check(self) -> Header:
        """Return the header after reading all of the file once."""
        end = self._size - _TRAILER.size
        if end < len(_MAGIC):
            raise _refused("is cut short")
        trailer = os.pread(self._descriptor, _TRAILER.size, end)
        if os.pread(self._descriptor, len(_MAGIC), 0) != _MAGIC:
            raise _refused("has not been written by this version")
        if len(trailer) != _TRAILER.size:
            raise _refused("is cut short")
        entries, deletions, checksum = _TRAILER.unpack(trailer)
        if max(entries, deletions) > self._records_max:
            raise _refused(f"has more than {self._records_max} names")
        records = _Records(self._descriptor, len(_MAGIC), self._size)
        header = _checked_header(records)
        self._header_end = records.offset
        _exhaust(_checked_entries(records, entries, header.commit))
        self._entries_end = records.offset
        if header.base is None and deletions:
            raise _refused("is full and has deletions")
        _exhaust(_checked_deletions(records, deletions))
        if records.offset != end:
            raise _refused("has more in it than it says")
        if records.checksum() != checksum:
            raise _refused("is damaged: its checksum is wrong")
        return msgspec.structs.replace(header, entries=entries, deletions=deletions)


class _Records:
    """Reads the records of an open file; ``offset`` is where the next one begins."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self.offset = offset
        self._descriptor = descriptor
        self._end = size - _TRAILER.size
        self._buffer = b""
        self._buffer_at = offset
        self._checksum = zlib.crc32(_MAGIC)

    def checksum(self) -> int:
        """Return the CRC-32 of the magic and of what has been read."""
        return zlib.crc32(self._buffer[: self.offset - self._buffer_at], self._checksum)

    def next(self) -> bytes:
        # Nearly all records are in the buffer, as a whole: each is read many times.
        begin = self.offset - self._buffer_at + _LENGTH.size
        if begin <= len(self._buffer):
            (length,) = _LENGTH.unpack_from(self._buffer, begin - _LENGTH.size)
            end = begin + length
            if length <= _RECORD_SIZE_MAX and end <= len(self._buffer):
                self.offset = self._buffer_at + end
                return self._buffer[begin:end]
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if length > _RECORD_SIZE_MAX:
            raise _refused("has a record that is too long")
        return self._read(length)

    def _read(self, count: int) -> bytes:
        begin = self.offset - self._buffer_at
        taken = self._buffer[begin : begin + count]
        if len(taken) < count:
            if self.offset + count > self._end:
                raise _refused("ends too early")
            self._checksum = self.checksum()
            left = min(_READ_SIZE, self._end - self.offset)
            self._buffer = os.pread(self._descriptor, left, self.offset)
            self._buffer_at = self.offset
            taken = self._buffer[:count]
            if len(taken) < count:
                raise _refused("has been cut while it was read")
        self.offset += count
        return taken


def _checked_header(records: _Records) -> Header:
    header = _decoded(msgpack_decoder(Header), records.next())
    commits = [header.commit, *([header.base] if header.base else [])]
    if not all(0 <= number <= _NUMBER_MAX for commit in commits for number in commit):
        raise _refused("has a commit that is out of range")
    if header.base is not None and header.base >= header.commit:
        raise _refused("leads to a commit that is not newer than its base")
    if not _VOLUME.fullmatch(header.volume):
        raise _refused("names no volume")
    return header


def _checked_entries(records: _Records, count: int, commit: Commit) -> Iterator[Entry]:
    decoder = msgpack_decoder(Entry)
    last: bytes | None = None
    # Those entries that are no directories and below which a path could still come: in
    # order, "a-b" is between "a" and "a/c".
    leaves: list[bytes] = []
    for _ in range(count):
        entry = _decoded(decoder, records.next())
        path = entry.path
        _check_entry(entry)
        if not UNWRITTEN <= entry.commit <= commit or min(entry.commit) < 0:
            raise _refused(f"has {path[:200]!r} from a commit that is not in it")
        if last is not None and path <= last:
            raise _refused(f"is not in order at {path!r}")
        while leaves and path >= leaves[-1] + b"0":  # the byte after "/"
            leaves.pop()
        if any(path.startswith(each + b"/") for each in leaves):
            raise _refused(f"has {path!r} below what is no directory")
        if entry.kind != "directory":
            leaves.append(path)
        last = path
        yield entry


def _check_entry(entry: Entry) -> None:
    device = entry.kind in ("character", "block")
    right = (
        is_path(entry.path)
        and (entry.path or entry.kind == "directory")
        and 0 <= entry.mode <= 0o7777
        and 0 <= entry.uid <= _OWNER_MAX
        and 0 <= entry.gid <= _OWNER_MAX
        and -_NUMBER_MAX <= entry.mtime_ns <= _NUMBER_MAX
        and 0 <= entry.size <= (_NUMBER_MAX if entry.kind == "file" else 0)
        and 0 <= entry.device <= (_NUMBER_MAX if device else 0)
        and 0 <= entry.links <= (0 if entry.kind == "directory" else 2**64 - 1)
        and bool(entry.target) == (entry.kind == "link")
        and len(entry.target) <= 4095
        and b"\0" not in entry.target
        and _ATTRIBUTES.fullmatch(entry.attributes)
        and len(entry.content) in (0, DIGEST_BYTES if entry.kind == "file" else 0)
    )
    if not right:
        raise _refused(f"has an entry that cannot be: {entry.path[:200]!r}")


def _checked_deletions(records: _Records, count: int) -> Iterator[bytes]:
    decoder = msgpack_decoder(bytes)
    last = b""
    for _ in range(count):
        path = _decoded(decoder, records.next())
        if not path or not is_path(path):
            raise _refused(f"deletes what cannot be: {path[:200]!r}")
        if path <= last:
            raise _refused(f"deletes out of order at {path[:200]!r}")
        last = path
        yield path


def _decoded(decoder: msgspec.msgpack.Decoder[_Record], record: bytes) -> _Record:
    try:
        return decoder.decode(record)
    except NOT_DECODED as error:
        raise _refused(f"has a record that is none: {error}") from error


def _exhaust(records: Iterator[object]) -> None:
    for _ in records:
        pass


def _refused(cause: str) -> BackendError:
    return BackendError(
        f"the delta {cause}", hint="the sender has to make it anew; nothing was changed"
    )
