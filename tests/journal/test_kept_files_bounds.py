"""Attributes alone, within bounds: of what is read, for how long, and of room."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from backends.errors import BackendError
from backends.rsync.journal import kept_files
from backends.rsync.journal.journal import Journal
from backends.system.files import free_bytes
from tests.support.journal_trees import VOLUME, carry, replicate, shape
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.small_files import FILES, copies, path, record, sent, take

REMARKED = 400


@pytest.fixture(params=["ext4", "xfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    enter_private_mounts()
    with loop_filesystem(tmp_path, request.param, size="600M") as mounted:
        yield mounted


@pytest.fixture
def pair(disk: Path) -> Iterator[tuple[Journal, Journal]]:
    with copies(disk, "plain") as both:
        yield both


def fill_disk(disk: Path, left_bytes: int) -> None:
    """Leave *left_bytes* of the *disk* free."""
    with (disk / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free_bytes(disk)[1] - left_bytes)


def made(home: Path) -> Path:
    """Return *home*, made for a copy."""
    (home / "live").mkdir(parents=True)
    return home


def remark(journal: Journal) -> None:
    """Give all files attributes that take a block each."""
    for number in range(REMARKED):
        os.setxattr(journal.live / f"{number}", "user.remark", os.urandom(3000))


def remarked(home: Path) -> Journal:
    """Return a copy of small files, all of which have such attributes."""
    journal = Journal(made(home), VOLUME)
    for number in range(REMARKED):
        (journal.live / f"{number}").write_bytes(os.urandom(5000))
    return journal


def test_a_file_that_grows_while_it_is_read_is_not_read_to_its_end(
    pair: tuple[Journal, Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container can make it as large as no disk is."""
    owner, member = pair
    file, read, pread = path(owner, 4), 0, os.pread
    os.chown(file, 7, 8)
    record(owner)
    size = file.stat().st_size

    def grown(opened: int) -> None:
        if os.fstat(opened).st_ino == file.stat().st_ino:
            os.truncate(file, 2**26)

    def counted(*asked: int) -> bytes:
        nonlocal read
        found = pread(*asked)
        read += len(found)
        return found

    monkeypatch.setattr(kept_files, "write_out", grown)
    monkeypatch.setattr(os, "pread", counted)
    package = owner.pack(member.commit())
    monkeypatch.undo()
    assert read <= FILES * size
    assert carry(package, member) == [b"1/4"]
    os.truncate(file, size)
    replicate(owner, member)
    assert shape(member.live) == shape(owner.live)


def test_a_member_that_would_read_for_long_gets_the_files(
    pair: tuple[Journal, Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner does not wait for ever, and would tell of the same ones again."""
    owner, member = pair
    for number in range(FILES):
        os.chown(path(owner, number), 7, 8)
    names, _ = sent(owner, member.commit())
    assert names == [b"delta"]
    monkeypatch.setattr(kept_files, "_READ_WITHIN_S", -1.0)
    missing = carry(owner.repack(member.commit()), member)
    assert len(missing) == FILES
    assert carry(owner.pack(member.commit(), only=missing), member) == []
    take(owner, member)


def test_a_member_without_room_for_attributes_does_not_begin(
    disk: Path, tmp_path: Path
) -> None:
    """What is marked has to be applied, and the volume would be between two commits."""
    with (
        closing(remarked(tmp_path / "owner")) as owner,
        closing(remarked(disk / "member")) as member,
    ):
        replicate(owner, member)
        before = shape(member.live)
        remark(owner)
        record(owner)
        package = owner.pack(member.commit())
        assert package.names.count(b"\0attributes/") == REMARKED
        assert package.size_bytes >= REMARKED * 4096
        fill_disk(disk, 6 * REMARKED * 1024)
        with pytest.raises(BackendError, match="MiB free"):
            carry(package, member)
        assert member.staging.marked() is None
        assert shape(member.live) == before
        (disk / "filler").unlink()
        assert carry(package, member) == []
        member.apply()
        assert shape(member.live) == shape(owner.live)


@pytest.mark.parametrize("disk", ["xfs"], indirect=True)
def test_an_owner_keeps_room_for_others(disk: Path, tmp_path: Path) -> None:
    """Attributes of many files may be more than its disk has; ext4 shares them."""
    with (
        closing(remarked(disk / "owner")) as owner,
        closing(remarked(tmp_path / "member")) as member,
    ):
        replicate(owner, member)
        remark(owner)
        os.sync()
        fill_disk(disk, 8 * REMARKED * 1024)
        record(owner)
        free = free_bytes(disk)[1]
        package = owner.pack(member.commit())
        assert 0 < package.names.count(b"\0attributes/") < REMARKED // 2
        assert free_bytes(disk)[1] > free // 2


@pytest.mark.parametrize("size", [10, 100, 150])
def test_attributes_that_fit_beside_no_content(size: int, tmp_path: Path) -> None:
    """Not into an inode that holds content as well: the copy goes on without one."""
    enter_private_mounts()
    inline = ("-O", "inline_data", "-I", "256")
    with (
        loop_filesystem(tmp_path, "ext4", size="600M", made_with=inline) as disk,
        closing(Journal(made(tmp_path / "owner"), VOLUME)) as owner,
        closing(Journal(made(disk / "member"), VOLUME)) as member,
    ):
        file = owner.live / "file"
        file.write_bytes(os.urandom(size))
        replicate(owner, member)
        for content in (b"1", b"2"):
            os.setxattr(file, "user.large", content * 4000)
            os.setxattr(file, "user.small", content * 30)
            os.chown(file, 7, 8)
            replicate(owner, member)
        taken = member.live / "file"
        assert (taken.stat().st_uid, taken.read_bytes()) == (7, file.read_bytes())
        assert os.listxattr(taken)


@pytest.mark.parametrize("kind", ["ext4", "btrfs"])
def test_a_file_of_many_names_is_read_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some that backups make have hundreds."""
    enter_private_mounts()
    with (
        loop_filesystem(tmp_path, kind, size="600M") as disk,
        copies(disk, kind) as (owner, member),
    ):
        for name in range(20):
            os.link(path(owner, 4), owner.live / f"name{name}")
        replicate(owner, member)
        os.chown(path(owner, 4), 7, 8)
        read, digest = list[int](), kept_files._digest

        def counted(file: int, *bounds: Any) -> bytes:
            read.append(os.fstat(file).st_ino)
            return digest(file, *bounds)

        monkeypatch.setattr(kept_files, "_digest", counted)
        names, _ = sent(owner, member.commit())
        monkeypatch.undo()
        assert names == [b"delta"]
        assert read.count(path(owner, 4).stat().st_ino) == 1
        take(owner, member)
