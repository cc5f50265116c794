"""Attributes that belong to one filesystem: neither compared nor carried."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import msgspec
import pytest

from backends.rsync.journal.entries import Known
from backends.rsync.journal.journal import Journal
from backends.system.copy_file import FileCopier, attribute_names
from tests.support.journal_trees import VOLUME, acl, replicate, shape
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.watching import make_root

KINDS = ("ext4", "xfs", "btrfs")
OF_XFS, OF_BTRFS = "trusted.SGI_ACL_FILE", "btrfs.compression"


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    enter_private_mounts()
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(
                loop_filesystem(tmp_path_factory.mktemp(kind), kind)
            )
            for kind in KINDS
        }


numbers = itertools.count()


def make_home(disk: Path) -> Path:
    home = disk / f"volume{next(numbers)}"
    home.mkdir()
    if disk.name == "btrfs":
        make_root(home / "live")
    else:
        (home / "live").mkdir()
    return home


def make_files(live: Path, kind: str) -> None:
    """Make a file and a directory with ACLs and, if the filesystem can, properties."""
    (live / "file").write_text("content")
    (live / "below").mkdir()
    (live / "below/file").write_text("content")
    for path in (live / "file", live / "below"):
        os.setxattr(path, "system.posix_acl_access", acl(user=7))
        os.setxattr(path, "user.remark", b"kept")
        os.setxattr(path, "user.rsync.%stat", b"not even by rsync")
    os.setxattr(live / "below", "system.posix_acl_default", acl(user=8))
    if kind == "btrfs":
        for path in (live / "file", live / "below"):
            os.setxattr(path, OF_BTRFS, b"zstd")
    elif kind == "ext4":
        os.setxattr(live / "file", OF_XFS, b"carried by an earlier version")


@pytest.mark.parametrize(("owner", "member"), [*itertools.permutations(KINDS, 2)])
def test_copies_on_two_filesystems_are_in_step(
    disks: dict[str, Path], owner: str, member: str
) -> None:
    homes = make_home(disks[owner]), make_home(disks[member])
    with (
        closing(Journal(homes[0], VOLUME)) as first,
        closing(Journal(homes[1], VOLUME)) as second,
    ):
        make_files(first.live, owner)
        replicate(first, second)
        assert shape(second.live) == shape(first.live)
        os.setxattr(first.live / "file", "system.posix_acl_access", acl(user=9))
        replicate(first, second)
        assert shape(second.live) == shape(first.live)
        changed = os.getxattr(second.live / "file", "system.posix_acl_access")
        assert changed == acl(user=9)
        own = set(os.listxattr(second.live / "file")) & {OF_XFS, OF_BTRFS}
        assert own == ({OF_XFS} if member == "xfs" else set())


def test_a_copy_of_a_tree_has_none_of_them(disks: dict[str, Path]) -> None:
    source, target = disks["btrfs"] / "source", disks["ext4"] / "target"
    for each in (source, target):
        each.mkdir()
    make_files(source, "btrfs")
    directories = [os.open(each, os.O_RDONLY) for each in (source, target)]
    copier, status = FileCopier(), (source / "file").stat()
    copier.copy("file", status, source=directories[0], target=directories[1])
    for each in directories:
        os.close(each)
    assert not copier.attributes_lost
    names = attribute_names(os.fsencode(target / "file"))
    assert sorted(names) == ["system.posix_acl_access", "user.remark"]


@pytest.mark.parametrize("kind", ["ext4", "btrfs"])
def test_what_an_earlier_version_counted_is_counted_anew(
    disks: dict[str, Path], kind: str
) -> None:
    """Its digests are in the manifest still, when it sends what a new member lacks."""
    homes = make_home(disks[kind]), make_home(disks["xfs"])
    with (
        closing(Journal(homes[0], VOLUME)) as first,
        closing(Journal(homes[1], VOLUME)) as second,
    ):
        make_files(first.live, kind)
        replicate(first, second)
        first.manifest.record(
            [counted_before(each) for each in first.manifest.all()], (), commit=(1, 2)
        )
        replicate(first, second)
        assert shape(second.live) == shape(first.live)


def counted_before(known: Known) -> Known:
    entry = msgspec.structs.replace(known.entry, commit=(1, 2))
    if entry.attributes:
        entry = msgspec.structs.replace(entry, attributes="0" * 32)
    return msgspec.structs.replace(known, entry=entry)
