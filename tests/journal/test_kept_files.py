"""Files that keep their content cost attributes alone; members have the same bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from backends.errors import BackendError
from backends.rsync.journal import kept_files
from backends.rsync.journal.entries import DOUBTED
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.scan import NOTHING
from backends.system.copy_file import FileCopier
from tests.support.journal_trees import VOLUME, acl, carry, replicate, shape
from tests.support.large_files import make_home, mounted
from tests.support.small_files import (
    FILES,
    KINDS,
    SIZE,
    copies,
    path,
    record,
    rewrite,
    sent,
    take,
)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with mounted(tmp_path_factory, *KINDS) as made:
        yield made


@pytest.fixture(params=KINDS)
def pair(
    request: pytest.FixtureRequest, disks: dict[str, Path]
) -> Iterator[tuple[Journal, Journal]]:
    with copies(disks[request.param], request.param) as made:
        yield made


def test_another_owner_and_mode_cost_no_bytes(
    pair: tuple[Journal, Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, member = pair
    for number in range(FILES):
        os.chown(path(owner, number), 7, 8)
        path(owner, number).chmod(0o4711)
    copied = list[str]()
    copy = FileCopier._copy_content

    def counted(copier: FileCopier, *files: object) -> None:
        copied.append(str(files))
        copy(copier, *files)

    monkeypatch.setattr(FileCopier, "_copy_content", counted)
    names, size_bytes = sent(owner, member.commit())
    assert names == [b"delta"]
    assert size_bytes == 0
    inodes = {number: path(member, number).stat().st_ino for number in range(FILES)}
    take(owner, member)
    assert copied == []
    assert all(path(member, n).stat().st_ino == inodes[n] for n in inodes)
    assert not owner.look(EVERYTHING).deleted


def test_acls_and_attributes_cost_themselves(pair: tuple[Journal, Journal]) -> None:
    owner, member = pair
    for number in range(FILES):
        os.setxattr(path(owner, number), "system.posix_acl_access", acl(user=number))
    os.setxattr(path(owner, 1), "user.remark", b"x" * 2000)
    names, size_bytes = sent(owner, member.commit())
    assert len(names) == 1 + FILES
    assert {name.split(b"/")[0] for name in names} == {b"delta", b"attributes"}
    assert size_bytes <= 4096
    take(owner, member)
    for number in range(FILES):
        os.removexattr(path(owner, number), "system.posix_acl_access")
    names, _ = sent(owner, member.commit())
    assert names == [b"delta", b"attributes/1/1"]
    take(owner, member)


def test_attributes_that_did_not_come_are_missed(pair: tuple[Journal, Journal]) -> None:
    owner, member = pair
    os.setxattr(path(owner, 4), "user.remark", b"lost on the way")
    sent(owner, member.commit())
    package = owner.repack(member.commit())
    assert carry(replace(package, names=b"delta\0"), member) == [b"1/4"]
    take(owner, member)


def test_what_did_not_fit_beside_the_old_ones_is_set(
    pair: tuple[Journal, Journal],
) -> None:
    """In an inode and one block of ext4; and `chown` takes capabilities away."""
    owner, member = pair
    file = path(owner, 0)
    sizes = [("user.a", 3000), ("user.z", 300)]
    for _ in range(3):
        for key in os.listxattr(file):
            os.removexattr(file, key)
        for key, size in sizes:
            os.setxattr(file, key, os.urandom(size))
        os.chown(file, os.getpid() % 1000, 5)
        sizes = [(key, 3300 - size) for key, size in sizes]
        sent(owner, member.commit())
        take(owner, member)


@pytest.mark.parametrize("when", ["before the look", "after it"])
def test_content_that_looks_as_before_is_sent(
    when: str, pair: tuple[Journal, Journal]
) -> None:
    owner, member = pair
    for number in range(FILES):
        os.chown(path(owner, number), 7, 8)
    if when == "before the look":
        rewrite(path(owner, 4))
    record(owner)
    if when == "after it":
        rewrite(path(owner, 4))
    package = owner.pack(member.commit())
    missing = carry(package, member)
    of_a_snapshot = owner.by_snapshot and when == "after it"
    known = owner.by_snapshot and when == "before the look"
    assert missing == ([] if of_a_snapshot or known else [b"1/4"])
    if missing:
        package = owner.pack(member.commit(), only=missing)
        assert package.names == b"delta\0tree/1/4\0"
        assert carry(package, member) == []
    member.apply()
    if of_a_snapshot:
        replicate(owner, member)
    assert shape(member.live) == shape(owner.live)


def test_who_lacked_many_is_sent_all(
    pair: tuple[Journal, Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, member = pair
    monkeypatch.setattr(kept_files, "_REFUSED_MAX", 3)
    for number in range(FILES):
        os.chown(path(owner, number), 7, 8)
    for number in range(3):
        rewrite(path(member, number))
    sent(owner, member.commit())
    missing = carry(owner.repack(member.commit()), member)
    assert len(missing) == 3
    package = owner.pack(member.commit(), only=missing)
    assert len(package.names.rstrip(b"\0").split(b"\0")) == FILES + 1
    take(owner, member)


@pytest.mark.parametrize("what", ["gone", "written to", "linked", "a directory"])
def test_a_member_that_has_another_file_asks_for_it(
    what: str, pair: tuple[Journal, Journal]
) -> None:
    owner, member = pair
    os.chown(path(owner, 4), 7, 8)
    file = path(member, 4)
    if what == "written to":
        rewrite(file)
    elif what == "linked":
        os.link(file, member.live / "another name")
    else:
        file.unlink()
    if what == "a directory":
        file.mkdir()
    sent(owner, member.commit())
    missing = carry(owner.repack(member.commit()), member)
    assert missing == [b"1/4"]
    assert carry(owner.pack(member.commit(), only=missing), member) == []
    member.apply()
    (member.live / "another name").unlink(missing_ok=True)
    assert shape(member.live).keys() == shape(owner.live).keys()
    found = shape(member.live)[b"1/4"]
    assert found == shape(owner.live)[b"1/4"]


def test_who_was_away_gets_what_was_written_meanwhile(
    pair: tuple[Journal, Journal],
) -> None:
    owner, member = pair
    away = member.commit()
    path(owner, 4).write_bytes(os.urandom(SIZE))
    record(owner)
    os.chown(path(owner, 4), 7, 8)
    os.chown(path(owner, 5), 7, 8)
    record(owner)
    os.chown(path(owner, 5), 9, 8)
    names, _ = sent(owner, away)
    assert names == [b"delta", b"tree/1/4"]
    take(owner, member)


def test_names_of_one_file_stay_together(pair: tuple[Journal, Journal]) -> None:
    owner, member = pair
    one, other, third = (owner.live / name for name in ("one", "other", "third"))
    one.write_bytes(os.urandom(SIZE))
    os.link(one, other)
    replicate(owner, member)
    os.chown(one, 7, 8)
    os.setxattr(one, "user.remark", b"both")
    names, size_bytes = sent(owner, member.commit())
    assert names == [b"delta", b"attributes/one", b"attributes/other"]
    assert size_bytes == 0
    take(owner, member)
    os.link(one, third)
    one.chmod(0o711)
    names, _ = sent(owner, member.commit())
    assert names == [b"delta", b"tree/one", b"tree/other", b"tree/third"]
    take(owner, member)
    third.unlink()
    one.chmod(0o600)
    replicate(owner, member)
    assert shape(member.live) == shape(owner.live)


def test_what_does_not_fit_comes_whole(disks: dict[str, Path]) -> None:
    """An attribute of XFS that ext4 has no room for."""
    owner, member = (Journal(make_home(disks[k], k), VOLUME) for k in ("xfs", "ext4"))
    file = owner.live / "file"
    file.write_bytes(os.urandom(SIZE))
    os.setxattr(file, "user.large", os.urandom(6000))
    os.setxattr(file, "user.small", b"1")
    replicate(owner, member)
    os.setxattr(file, "user.small", b"2")
    os.chown(file, 7, 8)
    replicate(owner, member)
    taken = member.live / "file"
    assert os.listxattr(taken) == ["user.small"]
    assert os.getxattr(taken, "user.small") == b"2"
    assert (taken.stat().st_uid, taken.read_bytes()) == (7, file.read_bytes())
    for each in (owner, member):
        each.close()


def test_attributes_that_came_for_nothing_are_not_given(
    pair: tuple[Journal, Journal],
) -> None:
    """They lie there still when another commit is applied."""
    owner, member = pair
    os.setxattr(path(owner, 4), "user.remark", b"old")
    sent(owner, member.commit())
    assert carry(owner.repack(member.commit()), member) == []
    member.staging.unmark()
    os.setxattr(path(owner, 4), "user.remark", b"new")
    rewrite(path(owner, 4))
    os.utime(path(owner, 4))
    names, _ = sent(owner, member.commit())
    assert names == [b"delta", b"tree/1/4"]
    take(owner, member)
    os.removexattr(path(owner, 4), "user.remark")
    names, _ = sent(owner, member.commit())
    assert names == [b"delta"]
    take(owner, member)


def test_what_was_renamed_comes_whole(pair: tuple[Journal, Journal]) -> None:
    owner, member = pair
    os.chown(path(owner, 4), 7, 8)
    path(owner, 4).rename(owner.live / "new")
    os.chown(path(owner, 5), 7, 8)
    os.chown(path(owner, 8), 7, 8)
    path(owner, 5).rename(path(owner, 8))  # of the same size
    (owner.live / "0").rename(owner.live / "moved")
    sent(owner, member.commit())
    take(owner, member)


def test_nothing_is_recorded_once_the_volume_has_changed_hands(
    pair: tuple[Journal, Journal],
) -> None:
    owner, member = pair
    os.chown(path(owner, 4), 7, 8)
    record(owner)
    before = [*owner.manifest.all()]
    answers = iter([True, False])
    with pytest.raises(BackendError, match="changed hands"):
        owner.pack(member.commit(), valid=lambda: next(answers))
    assert [*owner.manifest.all()] == before


@pytest.mark.parametrize("pair", ["ext4", "xfs"], indirect=True)
def test_what_may_be_written_to_yet_is_of_the_newest_commit(
    pair: tuple[Journal, Journal],
) -> None:
    """One commit, one content: who has an older one has what was read then."""
    owner, member = pair
    base = member.commit()
    os.chown(path(owner, 4), 7, 8)
    record(owner)
    row = owner.manifest.get(b"1/4")
    assert row is not None
    owner.manifest.touch([msgspec.structs.replace(row, ctime_ns=DOUBTED)])
    owner.record(NOTHING, (1, owner.commit()[1] + 1))
    assert carry(owner.pack(base), member) == []
    told = owner.manifest.get(b"1/4")
    assert told is not None
    assert told.entry.commit == owner.commit() > row.entry.commit
    assert told.alike_since == row.alike_since <= base


@pytest.mark.parametrize("what", ["written", "given"])
@pytest.mark.parametrize("pair", ["ext4", "xfs"], indirect=True)
def test_a_file_that_changes_while_it_is_read_is_not_told_of(
    what: str, pair: tuple[Journal, Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, member = pair
    os.chown(path(owner, 4), 7, 8)
    record(owner)
    digest = kept_files._digest

    def changing(file: int, size: int) -> bytes:
        found = digest(file, size)
        if what == "written":
            rewrite(path(owner, 4))
        else:
            path(owner, 4).chmod(0o600)
        return found

    monkeypatch.setattr(kept_files, "_digest", changing)
    package = owner.pack(member.commit())
    monkeypatch.undo()
    assert carry(package, member) == [b"1/4"]
    replicate(owner, member)
    assert shape(member.live) == shape(owner.live)


@pytest.mark.parametrize("pair", ["xfs"], indirect=True)
def test_in_a_pause_content_is_kept_too(pair: tuple[Journal, Journal]) -> None:
    owner, member = pair
    os.chown(path(owner, 4), 7, 8)
    path(owner, 5).write_bytes(b"written")
    os.setxattr(path(owner, 6), "user.remark", b"kept")
    owner.moments.expect([member.commit()])
    found = owner.look(EVERYTHING)
    hints = owner.moments.prepare(found, owner.manifest, shares_blocks=True)
    owner.moments.take(hints, ())
    changes = owner.moments.taken()
    assert changes is not None
    owner.record(changes, (1, owner.commit()[1] + 1))
    package = owner.pack(member.commit())
    assert owner.quality() == "snapshot"
    assert package.names == b"delta\0tree/2/5\0attributes/0/6\0"
    take(owner, member)
