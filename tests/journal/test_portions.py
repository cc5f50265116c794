"""What a commit needs of the disk: blocks, each file once, clones nothing, in parts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backends.rsync.journal import entries, portions
from backends.rsync.journal.arrivals import Arrivals
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.system.copy_file import can_share
from backends.system.copying import CopyError
from backends.system.files import free_bytes
from tests.support.journal_trees import VOLUME, carry, replicate, shape
from tests.support.namespaces import enter_private_mounts, loop_filesystem

MIB = 2**20


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def pool(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    enter_private_mounts()
    with loop_filesystem(tmp_path, request.param, size="320M") as disk:
        yield disk


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Yield a pool on ext4 that can share no blocks."""
    enter_private_mounts()
    with loop_filesystem(tmp_path, "ext4", size="128M") as disk:
        yield disk


def journal(home: Path) -> Journal:
    (home / "live").mkdir(parents=True)
    return Journal(home, VOLUME)


def write(path: Path, size_bytes: int) -> None:
    path.write_bytes(os.urandom(size_bytes))


def write_unseen(path: Path, content: bytes) -> None:
    """Write *content*, and put the times back."""
    status = path.stat()
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_commit_of_more_than_there_is_room_for(pool: Path, tmp_path: Path) -> None:
    """Copies that share blocks take no room; elsewhere it is sent in portions."""
    with (
        closing(journal(pool / "owner")) as owner,
        closing(journal(tmp_path / "member")) as member,
    ):
        for number in range(8):
            write(owner.live / f"{number}", 20 * MIB)
        os.sync()
        free = free_bytes(pool)[1]
        assert free < 160 * MIB
        replicate(owner, member)
        assert shape(member.live) == shape(owner.live)
        for number in range(8):
            with (owner.live / f"{number}").open("r+b") as file:
                file.write(b"changed")
        replicate(owner, member)
        assert shape(member.live) == shape(owner.live)


def test_a_portion_is_followed_by_what_is_lacked_and_what_is_after(
    small: Path, tmp_path: Path
) -> None:
    """What has come is not copied again."""
    with (
        closing(journal(small / "owner")) as owner,
        closing(journal(tmp_path / "member")) as member,
    ):
        for name in "abcde":
            write(owner.live / name, 12 * MIB)
        owner.record(owner.look(EVERYTHING), (1, 1))
        write(small / "filler", free_bytes(small)[1] - 36 * MIB)
        copied, missing = [], list[bytes]()
        for _ in range(5):
            package = owner.pack(
                None, only=missing or [each.encode() for each in "abcde"]
            )
            tree = package.directory / "tree"
            copied.append(sorted(each.name for each in tree.iterdir()))
            missing = carry(package, member)
            if not missing:
                break
        assert copied == [["a", "b"], ["c", "d"], ["e"]]
        owner.unpack()
        member.apply()
        assert shape(member.live) == shape(owner.live)


def test_a_file_that_came_in_a_portion_before_it_was_written_again(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not fit beside what has grown, and its size and times tell nothing."""
    monkeypatch.setattr(entries, "WRITE_NS", 0)  # each would be sent again for seconds
    with (
        closing(journal(small / "owner")) as owner,
        closing(journal(tmp_path / "member")) as member,
    ):
        for name in "abcd":
            write(owner.live / name, 3 * MIB)
        time.sleep(0.15)  # or `a` would be sent again as well
        replicate(owner, member)
        base = member.commit()
        os.sync()
        write(small / "filler", free_bytes(small)[1] - 13 * MIB)
        for name in "bcd":
            write_unseen(owner.live / name, b"old")
        arrivals, missing = Arrivals.begun(base), set[bytes]()
        for number in range(4):
            before = owner.commit()
            owner.record(owner.look(EVERYTHING), (1, before[1] + 1))
            missing |= owner.changed_since(before)
            package = owner.pack(base, only=missing)
            missing = set(carry(package, member, arrivals=arrivals))
            owner.unpack()
            if number and not missing:
                break
            if not number:
                assert missing == {b"d"}
                for name in "abc":
                    write_unseen(owner.live / name, b"new")
                time.sleep(0.15)  # their ctimes are believed
        member.apply()
        assert shape(member.live) == shape(owner.live)


@pytest.mark.parametrize("pool", ["ext4", "xfs"], indirect=True)
def test_what_changes_in_a_large_file_leaves_room_for_others(
    pool: Path, tmp_path: Path
) -> None:
    """It is sent whole where copies cost nothing, and nothing of it stays."""
    with (
        closing(journal(pool / "owner")) as owner,
        closing(journal(tmp_path / "member")) as member,
    ):
        write(owner.live / "db", 24 * MIB)
        for number in range(2):
            write_unseen(owner.live / "db", b"settled%d" % number)
            replicate(owner, member)
        write_unseen(owner.live / "db", os.urandom(22 * MIB))
        os.sync()
        # On XFS the kept clone gives back what it had in other places.
        given_back = 22 * MIB if [*owner.home.glob("bases/*")] else 0
        write(pool / "filler", free_bytes(pool)[1] - 32 * MIB + given_back)
        owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))
        if can_share(pool):
            package = owner.pack(member.commit())
            assert package.names == b"delta\0tree/db\0"
            assert carry(package, member) == []
        else:
            with pytest.raises(CopyError, match="24 MiB and"):
                owner.pack(member.commit())
        assert not [*owner.home.glob("outbox/*/redo/db")]
        owner.unpack()
        if member.staging.marked():
            member.apply()
            assert shape(member.live) == shape(owner.live)
            # What is a small part of what is left may be taken.
            write(pool / "more", free_bytes(pool)[1] - 8 * MIB)
            write_unseen(owner.live / "db", b"small")
            owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))
            assert owner.pack(member.commit()).names == b"delta\0redo/db\0"


def test_one_file_that_never_fits_is_an_error(small: Path) -> None:
    with closing(journal(small / "owner")) as owner:
        write(owner.live / "large", 70 * MIB)
        owner.record(owner.look(EVERYTHING), (1, 1))
        with pytest.raises(CopyError, match="70 MiB and") as caught:
            owner.pack(None, only=[b"large"])
        assert caught.value.no_space


def test_names_of_one_file_need_its_room_once(small: Path, tmp_path: Path) -> None:
    with (
        closing(journal(small / "owner")) as owner,
        closing(journal(tmp_path / "member")) as member,
    ):
        write(owner.live / "first", 30 * MIB)
        for number in range(8):
            os.link(owner.live / "first", owner.live / f"name{number}")
        owner.record(owner.look(EVERYTHING), (1, 1))
        names = [each.entry.path for each in owner.manifest.all()]
        assert carry(owner.pack(None, only=names), member) == []
        owner.unpack()
        member.apply()
        assert shape(member.live) == shape(owner.live)


def test_what_a_volume_takes(small: Path) -> None:
    """A member that is to be filled is asked for it: no holes, and each file once."""
    with closing(journal(small / "owner")) as owner:
        write(owner.live / "file", 3 * MIB)
        os.link(owner.live / "file", owner.live / "second")
        with (owner.live / "map").open("wb") as file:
            file.truncate(100 * 2**30)
            file.write(b"x" * MIB)
        os.link(owner.live / "map", owner.live / "other")
        owner.record(owner.look(EVERYTHING), (1, 1))
        assert 4 * MIB <= portions.used_bytes(owner.manifest, owner.live) < 5 * MIB
