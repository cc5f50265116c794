"""The file that tells what a commit changes: what it keeps, and what it refuses."""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.errors import BackendError
from backends.rsync.journal.delta import Delta, Header, write_delta
from backends.rsync.journal.entries import Entry, is_path

VOLUME = "4f6f2c1e-0000-4000-8000-000000000001"
HEADER = Header(VOLUME, (1, 1), (1, 2))
ROOT = Entry(b"", "directory", 0o755, 0, 0, 1)


def file(path: bytes, **fields: object) -> Entry:
    entry = Entry(path, "file", 0o644, 0, 0, 1)
    return msgspec.structs.replace(entry, **fields)


def raw(*records: object, counts: tuple[int, int] | None = None) -> bytes:
    """Return a delta of *records*, the header first, with a right checksum."""
    content = b"remora delta 1\n\0"
    for record in records:
        encoded = (
            record if isinstance(record, bytes) else msgspec.msgpack.encode(record)
        )
        content += struct.pack(">I", len(encoded)) + encoded
    numbers = counts or (len(records) - 1, 0)
    return content + struct.pack(">QQI", *numbers, zlib.crc32(content))


def read(content: bytes) -> list[Entry]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "delta"
        path.write_bytes(content)
        with Delta.open(path) as delta:
            return list(delta.entries())


paths = st.lists(
    st.binary(min_size=1, max_size=6).filter(is_path), min_size=1, max_size=4
).map(b"/".join)


@settings(max_examples=50)
@given(
    st.sets(paths.filter(is_path), max_size=20),
    st.sets(paths.filter(is_path), max_size=5).map(sorted),
)
def test_what_is_written_is_read(found: set[bytes], deletions: list[bytes]) -> None:
    entries = [
        Entry(path, "directory", 0o1777, 1, 2, -5, attributes="0" * 32)
        for path in sorted(found)
    ]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "delta"
        write_delta(path, HEADER, iter(entries), iter(deletions))
        assert list(Path(directory).iterdir()) == [path]
        with Delta.open(path) as delta:
            counts = {"entries": len(entries), "deletions": len(deletions)}
            assert delta.header == msgspec.structs.replace(HEADER, **counts)
            for _ in range(2):
                assert list(delta.deletions()) == deletions
                assert list(delta.entries()) == entries


def test_a_large_one_is_streamed(tmp_path: Path) -> None:
    entries = [file(b"%06d-%s" % (n, b"x" * 100), size=n) for n in range(20_000)]
    write_delta(tmp_path / "delta", HEADER, entries, [])
    with Delta.open(tmp_path / "delta") as delta:
        first, second = delta.entries(), delta.entries()
        assert next(first) == next(second) == entries[0]
        assert list(first) == list(second) == entries[1:]


def test_a_failed_write_leaves_the_old_one(tmp_path: Path) -> None:
    write_delta(tmp_path / "delta", HEADER, [], [])

    def broken() -> object:
        yield file(b"a")
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        write_delta(tmp_path / "delta", HEADER, broken(), [])
    assert list(tmp_path.iterdir()) == [tmp_path / "delta"]
    Delta.open(tmp_path / "delta").close()


def test_every_cut_and_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    write_delta(tmp_path / "delta", HEADER, [ROOT, file(b"a", size=3)], [b"gone"])
    content = (tmp_path / "delta").read_bytes()
    assert read(content) == [ROOT, file(b"a", size=3)]
    for end in range(len(content)):
        with pytest.raises(BackendError):
            read(content[:end])
        changed = bytearray(content)
        changed[end] ^= 0x10
        with pytest.raises(BackendError):
            read(bytes(changed))
    with pytest.raises(BackendError):
        read(content + b"\0")


@pytest.mark.parametrize(
    "entry",
    [
        file(b"../up"),
        file(b"/absolute"),
        file(b"a//b"),
        file(b"a\0b"),
        file(b"x" * 256),
        file(b""),
        file(b"a", mode=0o10000),
        file(b"a", mode=-1),
        file(b"a", uid=2**32 - 1),
        file(b"a", gid=-1),
        file(b"a", mtime_ns=2**63),
        file(b"a", size=-1),
        file(b"a", device=1),
        file(b"a", target=b"t"),
        file(b"a", kind="link"),
        file(b"a", kind="link", target=b"t" * 4096),
        file(b"a", kind="link", target=b"a\0"),
        file(b"a", kind="pipe", size=1),
        file(b"a", kind="directory", links=1),
        file(b"a", attributes="changing"),
        file(b"a", content=b"short"),
        file(b"a", kind="directory", content=b"1" * 16),
        file(b"a", kind="door"),
        file(b"a", uid="0"),
        ["a"],
        b"\xc1",
        b"",
        b"\x91" * 60_000,
    ],
)
def test_an_entry_that_cannot_be_is_refused(entry: object) -> None:
    with pytest.raises(BackendError, match="nothing was changed"):
        read(raw(HEADER, entry))


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([file(b"b"), file(b"a")], "not in order"),
        ([file(b"a"), file(b"a")], "not in order"),
        ([file(b"a"), file(b"a-b"), file(b"a/c")], "below what is no directory"),
        ([file(b"a", kind="link", target=b"/"), file(b"a/c")], "no directory"),
        ([b"x" * 70_000], "too long"),
    ],
)
def test_entries_that_do_not_fit_together_are_refused(
    entries: list[object], why: str
) -> None:
    with pytest.raises(BackendError, match=why):
        read(raw(HEADER, *entries))


@pytest.mark.parametrize(
    "header",
    [
        Header(VOLUME, (1, 2), (1, 2)),
        Header(VOLUME, (2, 0), (1, 2)),
        Header(VOLUME, None, (-1, 2)),
        Header(VOLUME, None, (1, 2**63)),
        Header("../x", None, (1, 2)),
        Header("", None, (1, 2)),
        {"volume": VOLUME},
    ],
)
def test_a_header_that_cannot_be_is_refused(header: object) -> None:
    with pytest.raises(BackendError):
        read(raw(header))


def test_deletions_that_cannot_be_are_refused() -> None:
    for path in (b"", b"../up", b"a/", b"/"):
        record = msgspec.msgpack.encode(path)
        with pytest.raises(BackendError, match="deletes what cannot be"):
            read(raw(HEADER, record, counts=(0, 1)))
    full = Header(VOLUME, None, (1, 2))
    with pytest.raises(BackendError, match="full and has deletions"):
        read(raw(full, msgspec.msgpack.encode(b"a"), counts=(0, 1)))


def test_counts_that_are_wrong_are_refused() -> None:
    for counts in ((0, 0), (2, 0), (2**64 - 1, 0), (1, 1)):
        with pytest.raises(BackendError):
            read(raw(HEADER, file(b"a"), counts=counts))


def test_only_a_file_is_read(tmp_path: Path) -> None:
    write_delta(tmp_path / "real", HEADER, [], [])
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", ".", "none"):
        with pytest.raises(BackendError):
            Delta.open(tmp_path / name)
