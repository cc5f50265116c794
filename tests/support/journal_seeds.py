"""What a node sends beside the files of a commit, and what it keeps: right ones."""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Final

import msgspec

from backends.rsync.journal.delta import Header
from backends.rsync.journal.entries import Entry
from backends.rsync.journal.redo import Table, packed
from tests.support.decoder_seeds import ID

_TRAILER: Final = struct.Struct(">QQI")
_DELTA_HEADER: Final = Header(ID, (1, 1), (1, 2))
_ENTRIES: Final = (
    Entry(b"", "directory", 0o755, 0, 0, 1),
    Entry(b"a", "file", 0o644, 1, 2, 3, size=4, links=9, commit=(1, 2)),
    Entry(b"a!", "file", 0o644, 1, 2, 3, size=4, commit=(1, 2), content=b"1" * 16),
    Entry(b"b", "link", 0o777, 0, 0, 1, target=b"../x"),
)


def delta_of(*records: object, counts: tuple[int, int]) -> bytes:
    """Return a delta of *records*, the header first, with a right sum."""
    content = b"remora delta 1\n\0"
    for each in records:
        encoded = msgspec.msgpack.encode(each)
        content += struct.pack(">I", len(encoded)) + encoded
    return content + struct.pack(">QQI", *counts, zlib.crc32(content))


def with_right_sum(delta: bytes) -> bytes:
    """Return *delta* with the sum that its content has."""
    body, trailer = delta[: -_TRAILER.size], delta[-_TRAILER.size :]
    return body + trailer[:-4] + struct.pack(">I", zlib.crc32(body))


DELTA: Final = delta_of(_DELTA_HEADER, *_ENTRIES, b"gone", counts=(4, 1))
FULL: Final = delta_of(
    msgspec.structs.replace(_DELTA_HEADER, base=None), *_ENTRIES, counts=(4, 0)
)


def with_right_end(table: bytes) -> bytes:
    """Return a redo file with *table*, right but for what that says."""
    digest = hashlib.blake2b(table, digest_size=16).digest()
    return table + struct.pack(">I16s16s", len(table), digest, b"remora redo 1\n\0\0")


REDO: Final = msgspec.msgpack.encode(
    Table(
        *(b"db", (1, 1), (1, 2), 8 * 2**20),
        packed([]),
        packed([(4096, 8192), (2**20, 1)]),
        hashlib.blake2b(digest_size=16).digest(),
    )
)
RANGES: Final = msgspec.msgpack.encode(
    {
        "path": b"db",
        "steps": [((1, 0), (1, 1), b""), ((1, 1), (1, 2), packed([(4096, 8192)]))],
        "unsearched": ((1, 2), (1, 3)),
    }
)
