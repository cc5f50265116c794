"""Names by the thousand, holes by the exabyte, trees without a bottom: in a volume."""

from __future__ import annotations

import os
import subprocess
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.rsync.journal import outbox, parents, refusals
from backends.rsync.journal.delta import Delta, Header, write_delta
from backends.rsync.journal.entries import Entry
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.manifest import Manifest
from backends.system.copying import CopyError, Destination, copy_tree
from tests.support.journal_trees import VOLUME, carry, replicate

GIB = 2**30
DEEP = 300
NAMES = 2000


def peak_bytes(work: Callable[[], object]) -> int:
    """Return how much more memory of Python's there was at a time than before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture
def owner(tmp_path: Path) -> Journal:
    (tmp_path / "owner/live").mkdir(parents=True)
    return Journal(tmp_path / "owner", VOLUME)


def committed(journal: Journal, seq: int) -> None:
    journal.record(journal.look(EVERYTHING), (1, seq))


@pytest.mark.parametrize("kind", ["single", "linked"])
def test_a_delta_is_packed_with_little_memory(owner: Journal, kind: str) -> None:
    """It was 2 KB for each path; and of hard links each asked for all others."""
    committed(owner, 1)
    for number in range(NAMES):
        path = owner.live / f"{number}"
        if kind == "linked" and number:
            os.link(owner.live / "0", path)
        else:
            path.touch()
    committed(owner, 2)
    assert peak_bytes(lambda: owner.pack((1, 1))) < 1000 * NAMES
    owner.unpack()


def test_a_sparse_file_needs_the_room_of_what_it_holds(
    owner: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = owner.live / "data.mdb"
    file.write_bytes(b"x" * 4096)
    os.truncate(file, 200 * GIB)  # as LMDB makes its map
    committed(owner, 1)
    needed = []
    monkeypatch.setattr(outbox, "lacking_space", lambda _, size: needed.append(size))
    package = owner.pack(None, only=[b"data.mdb"])
    assert needed[0] < 1_500_000
    assert package.size_bytes < 1_500_000
    copy = package.directory / "tree/data.mdb"
    assert (copy.stat().st_size, copy.stat().st_blocks < 100) == (200 * GIB, True)
    owner.unpack()


def test_holes_that_rsync_would_send_for_days_are_refused(owner: Journal) -> None:
    committed(owner, 1)
    file = owner.live / "dir/giant"
    file.parent.mkdir()
    file.touch()
    os.truncate(file, refusals.HOLES_MAX_BYTES + GIB)
    with pytest.raises(BackendError, match="'dir/giant' has holes of 257 GiB"):
        owner.look(EVERYTHING)
    os.truncate(file, 0)
    committed(owner, 2)
    assert owner.manifest.get(b"dir/giant") is not None


def test_holes_that_come_after_the_look_are_not_packed(owner: Journal) -> None:
    committed(owner, 1)
    (file := owner.live / "giant").write_text("x")
    committed(owner, 2)
    before = owner.manifest.get(b"giant")
    os.truncate(file, refusals.HOLES_MAX_BYTES + GIB)
    with pytest.raises(BackendError, match="'giant' has holes of"):
        owner.pack((1, 1))
    assert owner.manifest.get(b"giant") == before
    with pytest.raises(BackendError, match="'giant' has holes of"):
        owner.look(EVERYTHING)


def test_an_image_with_holes_arrives_with_them(owner: Journal, tmp_path: Path) -> None:
    file = owner.live / "image"
    with file.open("wb") as image:
        image.seek(64 * 2**20)
        image.write(b"end")
    (tmp_path / "member/live").mkdir(parents=True)
    member = Journal(tmp_path / "member", VOLUME)
    replicate(owner, member)
    copied = member.live / "image"
    assert copied.stat().st_blocks < 1000
    assert copied.read_bytes() == file.read_bytes()
    member.close()


def test_deletions_of_a_stranger_take_no_memory(tmp_path: Path) -> None:
    """10 MiB of them took 83 MiB of the daemon's."""
    gone = (b"%05x" % each for each in range(20_000))
    write_delta(tmp_path / "delta", Header(VOLUME, (1, 1), (1, 2)), [], gone)
    with (
        Delta.open(tmp_path / "delta") as delta,
        closing(Manifest(tmp_path / "m")) as m,
    ):
        assert peak_bytes(lambda: parents.require_parents(delta, m)) < 1_500_000


@pytest.mark.parametrize("deleted", [b"a/b/c", b"a/b", b"a", None])
def test_what_is_deleted_is_no_directory_to_be_in(
    tmp_path: Path, owner: Journal, deleted: bytes | None
) -> None:
    (owner.live / "a/b/c").mkdir(parents=True)
    (owner.live / "ab").mkdir()
    committed(owner, 1)
    entry = Entry(b"a/b/c/new", "file", 0o644, 0, 0, 1)
    gone = sorted([b"a/b!", b"ab", *([deleted] if deleted else [])])
    write_delta(tmp_path / "delta", Header(VOLUME, (1, 1), (1, 2)), [entry], gone)
    with Delta.open(tmp_path / "delta") as delta:
        if deleted is None:
            parents.require_parents(delta, owner.manifest)
            return
        with pytest.raises(BackendError, match="which is not there"):
            parents.require_parents(delta, owner.manifest)


def deepen(top: Path) -> None:
    """Make a way of directories in *top* that is longer than any path may be."""
    at = os.open(top, os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir("d" * 200, dir_fd=at)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


def test_a_tree_deeper_than_paths_is_refused(owner: Journal, tmp_path: Path) -> None:
    committed(owner, 1)
    deepen(owner.live)
    with pytest.raises(BackendError, match="a path is too long to be sent: 'ddd"):
        owner.look(EVERYTHING)
    target = tmp_path / "copy"
    target.mkdir()
    with pytest.raises(CopyError, match="a path is too long"):
        copy_tree(owner.live, Destination(target), progress=lambda _: None)
    for each in (owner.live, target):
        subprocess.run(["rm", "-rf", each], check=True)


def test_what_is_sent_again_is_in_what_was_packed(
    owner: Journal, tmp_path: Path
) -> None:
    """Names of one file go together, to each base what it lacks."""
    (tmp_path / "member/live").mkdir(parents=True)
    member = Journal(tmp_path / "member", VOLUME)
    (owner.live / "one").write_text("one")
    replicate(owner, member)
    for name in ("two", "three"):
        os.link(owner.live / "one", owner.live / name)
    (owner.live / "gone").write_text("x")
    committed(owner, 2)
    (owner.live / "gone").unlink()
    package = owner.pack((1, 1))
    assert package.names == b"delta\0tree/one\0tree/three\0tree/two\0"
    assert package.size_bytes == 3
    assert carry(package, member) == []
    owner.unpack()
    member.apply()
    assert (member.live / "three").stat().st_nlink == 3
    assert isinstance(member.manifest, Manifest)
    member.close()
