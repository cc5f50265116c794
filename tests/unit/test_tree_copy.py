"""The copier: what is kept, what is left out, and what nobody can make it read."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
import tracemalloc
from pathlib import Path

import pytest

from backends.errors import VolumeBusyError
from backends.rsync.journal import outbox
from backends.rsync.journal.outbox import fill
from backends.system.beneath import opened
from backends.system.copy_file import FileCopier
from backends.system.copying import Copied, CopyError, Destination, copy_tree
from backends.system.tree import TreeCopy
from tests.support.journal_trees import acl, all_known
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.replaced import Disturbed, number_used_again, replaced_when_opened


def copied(source: Path, target: Path) -> Copied:
    target.mkdir(exist_ok=True)
    return copy_tree(source, Destination(target), progress=lambda _copied: None)


def test_every_kind_of_file_is_kept(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/file").write_bytes(b"x" * 100_000)
    os.link(source / "deep/er/file", source / "hard")
    (source / "soft").symlink_to("/nonexistent")
    os.mkfifo(source / "pipe", 0o640)
    os.mknod(source / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    (source / "odd\nname \udcff").write_text("odd")
    with (source / "sparse").open("wb") as file:
        file.seek(64 * 2**20)
        file.write(b"end")
    os.setxattr(source / "hard", "user.remark", b"kept")
    os.chown(source / "hard", 12, 34)
    (source / "hard").chmod(0o6711)
    (source / "deep").chmod(0o2770)
    os.utime(source / "deep", ns=(5, 1_000_000_007))
    done = copied(source, target)
    assert (done.files, done.attributes_lost) == (7, 0)
    for before in sorted(source.rglob("*")):
        after = target / before.relative_to(source)
        old, new = before.lstat(), after.lstat()
        assert (old.st_mode, old.st_uid, old.st_gid, old.st_mtime_ns, old.st_rdev) == (
            *(new.st_mode, new.st_uid, new.st_gid, new.st_mtime_ns, new.st_rdev),
        )
        assert old.st_nlink == new.st_nlink
        if before.is_file():
            assert before.read_bytes() == after.read_bytes()
    assert (target / "hard").stat().st_ino == (target / "deep/er/file").stat().st_ino
    assert (target / "sparse").stat().st_blocks < 1000
    assert os.getxattr(target / "hard", "user.remark") == b"kept"
    assert (target / "soft").readlink() == Path("/nonexistent")


def test_another_filesystem_inside_is_left_out(tmp_path: Path) -> None:
    enter_private_mounts()
    source = tmp_path / "source"
    (source / "inside").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", source / "inside"], check=True)
    (source / "inside/file").write_text("not ours")
    copied(source, tmp_path / "target")
    assert [each.name for each in (tmp_path / "target").rglob("*")] == ["inside"]
    subprocess.run(["umount", source / "inside"], check=True)


def test_swapping_directories_for_links_leads_nowhere(tmp_path: Path) -> None:
    """A container that races with the copy must not get at the host's files."""
    source, secret = tmp_path / "source", tmp_path / "secret"
    for directory in (source / "a", secret):
        directory.mkdir(parents=True)
    (secret / "file").write_text("secret")
    (source / "a/file").write_text("public")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (source / "a").rename(source / "b")
            (source / "a").symlink_to(secret)
            (source / "a").unlink()
            (source / "b").rename(source / "a")

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for number in range(15):
            copied(source, tmp_path / f"target{number}")
            for file in (tmp_path / f"target{number}").rglob("file"):
                if not file.parent.is_symlink():
                    assert file.read_text() == "public"
    finally:
        stop.set()
        swapping.join()


def copied_by(copier: FileCopier, source: Path, target: Path) -> None:
    target.mkdir()
    with opened(source) as top, opened(target) as new_top:
        TreeCopy(copier).run(top, new_top)


def test_a_new_file_with_the_number_of_an_old_one_is_not_taken_for_it(
    tmp_path: Path,
) -> None:
    with number_used_again(tmp_path) as (live, copier):
        copied_by(copier, live, tmp_path / "target")
    for name in ("z1", "z2"):
        assert (tmp_path / "target" / name).read_text() == "new"


def test_a_file_that_came_before_the_copy_was_opened_has_no_other_names(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    copied_by(replaced_when_opened(source), source, tmp_path / "target")
    assert (tmp_path / "target/a1").read_text() == "new"
    assert (tmp_path / "target/a2").read_text() == "old"


def test_attributes_of_a_file_are_copied_one_by_one(tmp_path: Path) -> None:
    """On XFS a file may have any number of them, each of 64 KiB."""
    enter_private_mounts()
    with loop_filesystem(tmp_path, "xfs") as disk, (disk / "it").open("w") as file:
        for number in range(200):
            os.setxattr(file.fileno(), f"user.{number}", b"x" * 65000)
        (disk / "target").mkdir()
        with opened(disk) as top, opened(disk / "target") as target:
            tracemalloc.start()
            FileCopier().copy("it", (disk / "it").stat(), source=top, target=target)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert len(os.listxattr(disk / "target/it")) == 200
    assert peak < 2**20


@pytest.mark.parametrize("way", ["copy", "commit"])
def test_attributes_of_directories_are_copied_one_by_one(
    tmp_path: Path, way: str
) -> None:
    """None is kept until the directory has its entries, however deep they are."""
    enter_private_mounts()
    with loop_filesystem(tmp_path, "xfs") as disk:
        paths = ["a", "a/b", "a/b/c"]
        (source := disk / "source").mkdir()
        for path in paths:
            (source / path).mkdir()
            for number in range(100):
                os.setxattr(source / path, f"user.{number}", b"x" * 65000)
        entries = list(all_known(source)) if way == "commit" else []
        tracemalloc.start()
        if way == "copy":
            copied_by(FileCopier(), source, disk / "target")
        else:
            fill(source, entries, disk)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        target = disk / ("target" if way == "copy" else "tree")
        assert [len(os.listxattr(target / path)) for path in paths] == [100] * 3
    assert peak < 2**20


@pytest.mark.parametrize("way", ["copy", "commit"])
def test_a_directory_that_goes_while_it_is_copied_leaves_a_private_one(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its ACL the mode would let in whom the ACL kept out."""
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d/file").write_text("x")
    os.setxattr(source / "d", "system.posix_acl_access", acl(user=7))
    entries = list(all_known(source))
    (source / "d").chmod(0o770)

    def go(_name: object = b"") -> None:
        shutil.rmtree(source / "d", ignore_errors=True)

    copier = Disturbed(before=lambda _: None, after=go)
    if way == "copy":
        copied_by(copier, source, tmp_path / "target")
    else:
        monkeypatch.setattr(outbox, "FileCopier", lambda **_: copier)
        fill(source, entries, tmp_path)
    target = tmp_path / ("target" if way == "copy" else "tree")
    assert (target / "d").stat().st_mode & 0o777 == 0o700
    assert (target / "d/file").read_text() == "x"


def test_a_full_filesystem_is_told(tmp_path: Path) -> None:
    enter_private_mounts()
    source = tmp_path / "source"
    source.mkdir()
    with loop_filesystem(tmp_path, "ext4") as small:
        room = os.statvfs(small)
        with (source / "big").open("wb") as file:
            for _ in range(room.f_blocks * room.f_frsize // 2**20 + 1):
                file.write(b"x" * 2**20)
        with pytest.raises(CopyError, match="No space left") as caught:
            copied(source, small / "target")
        assert caught.value.no_space
        # There is room again, to clean up in.
        (small / "new").write_bytes(b"x" * 2**20)


def test_a_copy_can_be_broken_off(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()

    def stop(_copied: Copied) -> None:
        raise VolumeBusyError("enough")

    (tmp_path / "target").mkdir()
    with pytest.raises(VolumeBusyError, match="enough"):
        copy_tree(tmp_path / "source", Destination(tmp_path / "target"), progress=stop)


def test_a_source_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CopyError, match="No such file"):
        copied(tmp_path / "none", tmp_path / "target")
