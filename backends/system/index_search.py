"""
Reads a large file once, and finds where it differs from what its block index says.

What goes into the index are the tags of exactly those bytes that go into the data: a
piece is read into a buffer, and all else is done with that buffer. Containers write
meanwhile; what they write after a piece was read is for the next time. Two threads
read, or the hashes would come on top of what reading takes.
"""

from __future__ import annotations

import bisect
import errno
import hashlib
import heapq
import itertools
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, Final, cast

from backends.system.block_hashes import BlockHashes
from backends.system.index_file import BLOCKS, CHUNK_BYTES, TAG_BYTES, IndexFile
from backends.system.ranges import (
    BLOCK_BYTES,
    RANGES_MAX,
    Range,
    at_most,
    joined,
    merged,
)

_THREADS: Final = 2
_BUFFER_BYTES: Final = 2**20
_DIGEST_BYTES: Final = 16
# From then on each chunk has one range, so that a terabyte has no more than a million.
_MANY_RANGES: Final = 4 * RANGES_MAX
_NOWHERE: Final = sys.maxsize


class Data:
    """
    The changed bytes, one range after the other, at the end of the *file* *path*.

    What others need of its disk, *left_free_bytes*, stays free.
    """

    def __init__(self, path: Path, file: BinaryIO, left_free_bytes: int) -> None:
        self._path = path
        self._file = file
        self._left_free_bytes = left_free_bytes
        self._looked_at_bytes = 0
        self._begin = os.fstat(file.fileno()).st_size
        self._digest = _new_digest()
        self._size_bytes = 0

    def write(self, content: memoryview | bytes) -> None:
        """Add *content*, of which nothing is needed afterwards."""
        self._digest.update(content)
        self._file.write(content)
        self._size_bytes += len(content)
        if self._size_bytes - self._looked_at_bytes > _BUFFER_BYTES:
            self._require_room()

    def _require_room(self, more_bytes: int = 0) -> None:
        """Raise OSError if *more_bytes* would be taken from what others need."""
        self._looked_at_bytes = self._size_bytes
        usage = os.fstatvfs(self._file.fileno())
        if usage.f_bavail * usage.f_frsize - more_bytes < self._left_free_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def taken_out(self) -> BinaryIO:
        """Begin again; return what has been written, in a file without a name."""
        self._file.flush()
        self._require_room(self._size_bytes)
        old = cast("BinaryIO", TemporaryFile(dir=self._path.parent))  # noqa: SIM115
        with self._path.open("rb") as file:
            file.seek(self._begin)
            while piece := file.read(_BUFFER_BYTES):
                old.write(piece)
        os.ftruncate(self._file.fileno(), self._begin)
        self._digest, self._size_bytes = _new_digest(), 0
        self._looked_at_bytes = 0
        old.seek(0)
        return old

    def finish(self) -> tuple[str, int]:
        """Return digest and size of what was written, which is in the file now."""
        self._file.flush()
        return self._digest.hexdigest(), self._size_bytes


class Search:
    """One file, read once by several threads: whatever is changed, in order."""

    def __init__(
        self,
        file: int,
        index: IndexFile,
        hashes: BlockHashes,
        also: Iterable[Range],
        data: Data | None,
    ) -> None:
        self.size = os.fstat(file).st_size
        self.sent: list[Range] = []
        self.changed: list[Range] = []
        self._file, self._index, self._hashes = file, index, hashes
        self._data = data
        self._also = _whole_blocks(also, self.size)
        self._chunks = self._to_be_read()
        # Where each thread is: what it finds is written when no other is before it.
        self._at = [0] * _THREADS
        self._turn = threading.Condition()
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Look at all of the file; the index is that of what was read."""
        others = [
            threading.Thread(target=self._work, args=(each,), daemon=True)
            for each in range(1, _THREADS)
        ]
        for each in others:
            each.start()
        self._work(0)
        for each in others:
            each.join()
        if self._failure is not None:
            raise self._failure
        self._index.cut(self.size)

    def _to_be_read(self) -> Iterator[int]:
        """Yield the chunks that are not zeros, or were not, in order, each once."""
        wanted = (
            range(offset // CHUNK_BYTES, _chunks(offset + length))
            for offset, length in self._also
        )
        found = heapq.merge(
            _with_data(self._file, self.size),
            self._index.marked(),
            itertools.chain.from_iterable(wanted),
        )
        for chunk, _ in itertools.groupby(found):
            yield chunk

    def _work(self, worker: int) -> None:
        try:
            buffer = memoryview(bytearray(CHUNK_BYTES))
            while (chunk := self._next(worker)) is not None:
                self._look(worker, chunk, buffer)
        except BaseException as error:  # noqa: BLE001 - `run` raises it
            with self._turn:
                self._failure = error
                self._at[worker] = _NOWHERE
                self._turn.notify_all()

    def _next(self, worker: int) -> int | None:
        """Return the next chunk for this thread, None if there is none any more."""
        with self._turn:
            chunk = None if self._failure else next(self._chunks, None)
            self._at[worker] = _NOWHERE if chunk is None else chunk
            self._turn.notify_all()
            return chunk

    def _look(self, worker: int, chunk: int, buffer: memoryview) -> None:
        self._read(chunk * CHUNK_BYTES, buffer)
        tag = self._hashes.of_chunk(buffer)
        wanted = self._wanted_also(chunk) if self._also else set()
        changed: set[int] = set()
        tags = b""
        if tag != self._index.chunk_tag(chunk):
            tags = self._hashes.of_blocks(buffer)
            changed = _differing(self._index.block_tags(chunk), tags)
        if changed or wanted:
            with self._turn:
                self._turn.wait_for(lambda: min(self._at) == self._at[worker])
            self._take(chunk, changed, wanted, buffer)
        if tags:
            self._index.put_block_tags(chunk, tags)
            self._index.put_chunk_tag(chunk, tag)

    def _read(self, begin: int, buffer: memoryview) -> None:
        """Fill *buffer*; what lies beyond the size, or is gone meanwhile, is zeros."""
        length = max(0, min(len(buffer), self.size - begin))
        done = 0
        while done < length:
            count = os.preadv(self._file, [buffer[done:length]], begin + done)
            if not count:
                break
            done += count
        if done < len(buffer):
            buffer[done:] = bytes(len(buffer) - done)

    def _wanted_also(self, chunk: int) -> set[int]:
        """Return the blocks of *chunk* that have to be sent in any case."""
        found: set[int] = set()
        begin = chunk * CHUNK_BYTES
        # The first that may reach into the chunk is the last that begins before it.
        place = max(0, bisect.bisect(self._also, (begin, 0)) - 1)
        for offset, length in itertools.islice(self._also, place, None):
            if offset >= begin + CHUNK_BYTES:
                break
            first = max(0, offset - begin) // BLOCK_BYTES
            end = min(CHUNK_BYTES, offset + length - begin)
            found.update(range(first, -(-end // BLOCK_BYTES)))
        return found

    def _take(
        self, chunk: int, changed: set[int], also: set[int], buffer: memoryview
    ) -> None:
        """Note the blocks *changed*, and send them and those *also*."""
        begin = chunk * CHUNK_BYTES
        room = self.size - begin
        is_coarse = len(self.sent) > _MANY_RANGES
        for offset, end in _runs(changed, room, is_coarse=is_coarse):
            _append(self.changed, begin + offset, end - offset)
        for offset, end in _runs(changed | also, room, is_coarse=is_coarse):
            _append(self.sent, begin + offset, end - offset)
            if self._data is not None:
                self._data.write(buffer[offset:end])

    def join(self, data: Data) -> None:
        """
        Send the bytes between near ranges too, so that there are no more than allowed.

        They are read now. A block among them that has changed meanwhile gets its tag,
        and its chunk one that no bytes have: next time all its blocks are looked at.
        """
        sent = iter(self.sent)
        wanted = at_most(self.sent, RANGES_MAX)
        buffer = memoryview(bytearray(CHUNK_BYTES))
        with data.taken_out() as old:
            for offset, length in wanted:
                at, end = offset, offset + length
                while at < end:
                    begin, known = next(sent)
                    self._send_between(at, begin, buffer, data)
                    at = begin + known
                    for left in range(known, 0, -_BUFFER_BYTES):
                        data.write(old.read(min(left, _BUFFER_BYTES)))
        self.sent, self.changed = wanted, list(wanted)

    def _send_between(self, at: int, end: int, buffer: memoryview, data: Data) -> None:
        """Send *at* to *end*, where blocks begin."""
        while at < end:
            chunk, place = divmod(at, CHUNK_BYTES)
            piece = buffer[: min(CHUNK_BYTES - place, end - at)]
            self._read(at, piece)
            tags, first = self._hashes.of_blocks(piece), place // BLOCK_BYTES
            begin = first * TAG_BYTES
            if tags != self._index.block_tags(chunk)[begin : begin + len(tags)]:
                self._index.put_chunk_tag(chunk, os.urandom(TAG_BYTES))
                self._index.put_block_tags(chunk, tags, first=first)
            data.write(piece)
            at += len(piece)


@contextmanager
def opened_data(path: str | None, left_free_bytes: int = 0) -> Iterator[Data | None]:
    """Yield what adds to the file *path*, made if need be; None without one."""
    if path is None:
        yield None
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb", _BUFFER_BYTES) as file:
        yield Data(Path(path), file, left_free_bytes)


def _with_data(file: int, size: int) -> Iterator[int]:
    """Yield the chunks of *file* that are more than a hole, as they are looked at."""
    end = 0
    while end < size:
        try:
            begin = os.lseek(file, end, os.SEEK_DATA)
            end = os.lseek(file, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # the rest is a hole, or is gone
        end = _chunks(min(end, size)) * CHUNK_BYTES
        yield from range(begin // CHUNK_BYTES, end // CHUNK_BYTES)


def _chunks(size: int) -> int:
    """Return how many chunks hold *size* bytes."""
    return -(-size // CHUNK_BYTES)


def _whole_blocks(ranges: Iterable[Range], size: int) -> list[Range]:
    """Return *ranges* widened to whole blocks, and cut at *size*."""
    found = []
    for offset, length in ranges:
        begin = offset - offset % BLOCK_BYTES
        end = offset + length
        end = min(end + -end % BLOCK_BYTES, size)
        if begin < end:
            found.append((begin, end - begin))
    return merged(found)


def _differing(before: bytes, after: bytes) -> set[int]:
    """Return the blocks whose tags differ."""
    places = ((each, each * TAG_BYTES) for each in range(BLOCKS))
    return {
        each
        for each, at in places
        if before[at : at + TAG_BYTES] != after[at : at + TAG_BYTES]
    }


def _runs(blocks: set[int], room: int, *, is_coarse: bool) -> Iterator[Range]:
    """Yield where runs of *blocks* of a chunk begin and end, up to *room*."""
    found = ((each * BLOCK_BYTES, BLOCK_BYTES) for each in sorted(blocks))
    gap_bytes = CHUNK_BYTES if is_coarse else 0
    for offset, length in joined(found, gap_bytes=gap_bytes):
        if offset < room:
            yield offset, min(offset + length, room)


def _append(ranges: list[Range], offset: int, length: int) -> None:
    """Add a range that is after all *ranges*, or goes on where the last one ends."""
    if ranges and sum(ranges[-1]) == offset:
        begin, before = ranges[-1]
        ranges[-1] = begin, before + length
    else:
        ranges.append((offset, length))


def _new_digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=_DIGEST_BYTES)
