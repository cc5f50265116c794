"""
Full deltas: what a member may take for the owner's, and what has to be sent.

Size and times never tell: `cp -p`, tar, rsync and containers of encrypted disks keep
them when they write other content.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from backends.errors import BackendError
from backends.rsync.journal import entries as believed
from backends.rsync.journal.delta import Delta, Header, write_delta
from backends.rsync.journal.entries import Entry
from backends.rsync.journal.journal import EVERYTHING, Journal
from tests.support.journal_trees import (
    VOLUME,
    carry,
    make_everything,
    replicate,
    shape,
)


def make(home: Path) -> Journal:
    (home / "live").mkdir(parents=True)
    return Journal(home, VOLUME)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Journal, Journal]:
    """Return the copies of an owner and of a member."""
    return make(tmp_path / "owner"), make(tmp_path / "member")


def write_unseen(file: Path, content: bytes) -> None:
    """Write *content*, of the same size, and put the times back."""
    status = file.stat()
    with file.open("r+b") as opened:
        opened.write(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def bring_whole(owner: Journal, member: Journal) -> list[bytes]:
    """Bring the owner's next commit by a full delta; return what was missing first."""
    owner.record(owner.look(EVERYTHING), (1, member.commit()[1] + 1))
    first = missing = carry(owner.pack(None), member)
    while missing:
        missing = carry(owner.pack(None, only=missing), member)
    owner.unpack()
    member.apply()
    assert shape(member.live) == shape(owner.live)
    return first


def test_content_that_kept_its_size_and_times_is_sent(
    pair: tuple[Journal, Journal],
) -> None:
    owner, member = pair
    file = owner.live / "container"
    file.write_bytes(b"A" * 4096)
    replicate(owner, member)
    write_unseen(file, b"B" * 4096)
    replicate(owner, member)
    assert (member.live / "container").read_bytes() == file.read_bytes()
    write_unseen(file, b"C" * 4096)
    owner.forget()
    assert b"container" in bring_whole(owner, member)


def test_what_both_have_from_one_commit_is_not_sent(
    pair: tuple[Journal, Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, member = pair
    monkeypatch.setattr(believed, "WRITE_NS", 0)  # nobody writes
    make_everything(owner.live)
    replicate(owner, member)
    replicate(owner, member)  # what was too young to be believed is sent once more
    (owner.live / "program").write_text("changed")
    assert bring_whole(owner, member) == [b"program"]
    # And the member still knows what was written when.
    entries = {row.entry.path: row.entry.commit for row in member.manifest.all()}
    assert entries[b"program"] == owner.commit()
    assert entries[b"sparse"] < owner.commit()


def test_what_a_later_owner_may_have_written_is_not_recorded(
    pair: tuple[Journal, Journal],
) -> None:
    """A volume may be mounted anew while its last commit is packed."""
    owner, member = pair
    for name in ("one", "two"):
        (owner.live / name).write_text(name)
    (owner.live / "link").symlink_to("one")
    replicate(owner, member)
    base = member.commit()
    (owner.live / "two").write_text("of the commit")
    owner.record(owner.look(EVERYTHING), (1, base[1] + 1))

    def later_owner_comes() -> bool:
        (owner.live / "two").write_text("of a later owner")
        (owner.live / "one").unlink()
        (owner.live / "link").unlink()
        (owner.live / "link").symlink_to("two")
        return False

    with pytest.raises(BackendError, match="changed hands"):
        owner.pack(base, valid=later_owner_comes)
    found = owner.look(EVERYTHING)
    assert {row.entry.path for row in found.changed} == {b"", b"two", b"link"}
    assert found.deleted == [b"one"]
    # The journal still knows what the member lacks.
    owner.record(found, (2, 1))
    missing: list[bytes] = []
    while missing := carry(owner.pack(base, only=missing), member):
        pass
    member.apply()
    assert shape(member.live) == shape(owner.live)


class EntryOfBefore(msgspec.Struct, frozen=True, array_like=True):
    """What the version before wrote, and read."""

    path: bytes
    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    device: int = 0
    target: bytes = b""
    links: int = 0
    attributes: str = ""


def test_both_versions_read_each_other() -> None:
    before = EntryOfBefore(b"a", "file", 0o644, 0, 0, 7, size=3)
    now = Entry(b"a", "file", 0o644, 0, 0, 7, size=3, commit=(1, 2))
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(before), type=Entry)
    assert read == msgspec.structs.replace(now, commit=(0, 0))
    encoded = msgspec.msgpack.encode(now)
    assert msgspec.msgpack.decode(encoded, type=EntryOfBefore) == before


@pytest.mark.parametrize("commit", [(1, 3), (2, 0), (-1, 5), (0, -1)])
def test_a_delta_has_nothing_of_another_commit(
    tmp_path: Path, commit: tuple[int, int]
) -> None:
    root = Entry(b"", "directory", 0o755, 0, 0, 7, commit=commit)
    write_delta(tmp_path / "delta", Header(VOLUME, None, (1, 2)), [root], [])
    with pytest.raises(BackendError, match="a commit that is not in it"):
        Delta.open(tmp_path / "delta")
