"""Hints from the kernel: whatever way somebody writes, it is hinted."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.rsync.journal.watch import Hints, Watcher
from backends.system import btrfs, libc
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.watching import EVERYTHING, make_root, ready, watching


@pytest.fixture(scope="module", params=["ext4", "btrfs", "btrfs-subvolume", "xfs"])
def pool(request, tmp_path_factory) -> Iterator[Path]:
    enter_private_mounts()
    directory = tmp_path_factory.mktemp("filesystem")
    kind, _, variant = request.param.partition("-")
    with loop_filesystem(directory, kind) as mount_point:
        if not variant:
            yield mount_point
            return
        # As distributions install it: the top level is mounted nowhere.
        make_root(mount_point / "inner")
        shown = directory / "shown"
        shown.mkdir()
        subprocess.run(["mount", "--bind", mount_point / "inner", shown], check=True)
        subprocess.run(["umount", mount_point], check=True)
        try:
            yield shown
        finally:
            # For the helper, which unmounts what it has mounted.
            subprocess.run(["mount", "--move", shown, mount_point], check=True)


@pytest.fixture
def root(pool, request) -> Path:
    number = len(list(pool.iterdir()))
    return make_root(pool / f"volume-{number}")


@pytest.fixture
def watcher(pool) -> Iterator[Watcher]:
    with watching(pool) as made:
        yield made


def test_each_change_is_hinted_under_its_name(watcher, root):
    (root / "there").write_text("there")
    (root / "deep").mkdir()
    watched = ready(watcher, root)

    def hints() -> set[bytes]:
        taken = watched.pop_hints()
        assert not taken.everything
        assert not taken.trees
        return set(taken.paths)

    assert hints() == set()
    (root / "new").write_text("new")
    assert hints() == {b"", b"new"}
    with (root / "there").open("a") as file:
        file.write("more")
        file.flush()
        assert hints() == {b"there"}  # not closed yet
    assert hints() == {b"there"}
    (root / "there").chmod(0o600)
    assert hints() == {b"there"}
    os.setxattr(root / "there", "user.x", b"1")
    assert hints() == {b"there"}
    os.utime(root / "there", (1, 1))
    assert hints() == {b"there"}
    os.truncate(root / "there", 1)
    assert hints() == {b"there"}
    (root / "deep" / "link").symlink_to("nowhere")
    assert hints() == {b"deep", b"deep/link"}
    os.mkfifo(root / "deep" / "pipe")
    assert hints() == {b"deep", b"deep/pipe"}
    (root / "new").rename(root / "deep" / "renamed")
    assert hints() == {b"", b"new", b"deep", b"deep/renamed"}
    os.link(root / "there", root / "deep" / "second")
    assert hints() == {b"deep", b"deep/second"}
    (root / "there").unlink()
    assert hints() == {b"", b"there"}
    (root / "deep").chmod(0o700)
    assert hints() == {b"deep"}
    root.chmod(0o700)
    assert hints() == {b""}
    assert (root / "deep" / "second").read_bytes()
    assert hints() == set()  # reading changes nothing


def test_new_directories_and_what_is_in_them_at_once(watcher, root):
    watched = ready(watcher, root)
    deep = root / "a" / "b" / "c"
    deep.mkdir(parents=True)
    for number in range(50):
        (deep / f"f{number}").write_text("x")
    files = {b"a/b/c/f%d" % number for number in range(50)}
    hints = watched.pop_hints()
    assert hints.paths == {b"", b"a", b"a/b", b"a/b/c", *files}
    assert not hints.trees
    assert not hints.everything


def test_names_of_any_bytes(watcher, root):
    watched = ready(watcher, root)
    names = [b"two\nlines \xff\xfe", b"\xc3 (deleted)\n", b"\n" * 255, b"\\012"]
    directory = root / os.fsdecode(names[0])
    directory.mkdir()
    for name in names:
        (directory / os.fsdecode(name)).touch()
    assert watched.pop_hints().paths == {
        *(b"", names[0]),
        *(names[0] + b"/" + name for name in names),
    }


def test_a_removed_directory_is_a_tree(watcher, root):
    """Its files cannot be told any more; one of the same name must not hide that."""
    for name in ("old/below/file", "old/other", "stays/file"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    watched = ready(watcher, root)
    subprocess.run(["rm", "-r", root / "old"], check=True)
    (root / "old").mkdir()
    (root / "stays" / "file").write_text("y")
    hints = watched.pop_hints()
    assert not hints.everything
    assert b"old" in hints.trees
    assert hints.trees <= hints.paths
    assert {b"", b"old", b"stays/file"} <= hints.paths
    assert b"stays" not in hints.trees


@pytest.mark.parametrize("way", ["within", "out", "into", "exchange"])
def test_a_renamed_directory_is_a_tree_where_it_was_and_where_it_is(watcher, root, way):
    outside = make_root(root.parent / f"{root.name}-outside")
    if root.stat().st_dev != outside.stat().st_dev and way in ("out", "into"):
        root, outside = root / "root", root / "outside"  # no rename leaves a subvolume
        root.mkdir()
        outside.mkdir()
    for directory in (root, outside):
        (directory / "d").mkdir()
        (directory / "d" / "file").write_text("x")
    watched = ready(watcher, root)
    (root / "d" / "file").write_text("where it was")
    assert watched.pop_hints().paths == {b"d/file"}
    (root / "d" / "file").write_text("again")
    names = {"within": {b"d", b"e"}, "out": {b"d"}, "into": {b"e"}}
    if way == "within":
        (root / "d").rename(root / "e")
    elif way == "out":
        (root / "d").rename(outside / "e")
    elif way == "into":
        (outside / "d").rename(root / "e")
    else:
        (root / "plain").write_text("x")
        command = "import ctypes, sys; l = ctypes.CDLL(None); sys.exit(l.renameat2("
        command += "-100, sys.argv[1].encode(), -100, sys.argv[2].encode(), 2))"
        swapped = [root / "plain", root / "d"]
        subprocess.run([sys.executable, "-c", command, *swapped], check=True)
    hints = watched.pop_hints()
    assert not hints.everything
    assert hints.trees == names.get(way, {b"d", b"plain"})
    assert {b"", *hints.trees} <= hints.paths
    # Directories are found again where they are now.
    for directory in (root / "d", root / "e"):
        if directory.is_dir():
            (directory / "file").write_text("y")
            name = os.fsencode(directory.name)
            assert watched.pop_hints().paths == {name + b"/file"}


def test_a_directory_moved_within_one_that_is_moved_then(watcher, root):
    """Events tell of the names, not of where their directories were at that time."""
    (root / "a" / "x" / "deep").mkdir(parents=True)
    watched = ready(watcher, root)
    (root / "a" / "x" / "deep" / "file").write_text("x")
    (root / "a" / "x").rename(root / "a" / "y")
    (root / "a").rename(root / "b")
    hints = watched.pop_hints()
    assert not hints.everything
    # All below them is looked at: also what was hinted where it is no more.
    assert {b"a", b"b"} <= hints.trees <= hints.paths


def test_renames_elsewhere_do_not_matter(watcher, root):
    elsewhere = root.parent / f"{root.name}-elsewhere"
    elsewhere.mkdir()
    watched = ready(watcher, root)
    (elsewhere / "d").mkdir()
    (elsewhere / "d").rename(elsewhere / "e")
    subprocess.run(["rm", "-r", elsewhere], check=True)
    assert watched.pop_hints() == Hints()


def test_a_bind_mount_in_another_namespace(watcher, root, tmp_path):
    (root / "sub").mkdir()
    watched = ready(watcher, root)
    script = 'mount --bind "$1" "$2" && echo x > "$2/sub/through" && umount "$2"'
    subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", "-ec", script, "sh", root, tmp_path),
        ],
        check=True,
        timeout=30,
    )
    assert watched.pop_hints().paths == {b"sub", b"sub/through"}


def test_two_volumes_get_their_own(watcher, root):
    other = make_root(root.parent / f"{root.name}0")  # the other's name begins the same
    mine, theirs = ready(watcher, root), ready(watcher, other)
    (root / "mine").write_text("x")
    (other / "theirs").write_text("x")
    assert mine.pop_hints().paths == {b"", b"mine"}
    assert theirs.pop_hints().paths == {b"", b"theirs"}
    watcher.remove(theirs)
    (root / "mine").write_text("x")
    assert mine.pop_hints().paths == {b"mine"}
    assert theirs.pop_hints() == theirs.pop_hints() == EVERYTHING


def test_a_directory_unknown_before_it_became_a_root(watcher, root):
    """Where it belongs to nobody is not remembered once it belongs to somebody."""
    first = ready(watcher, root)
    other = make_root(root.parent / f"{root.name}-other")
    (other / "early").write_text("x")
    assert first.pop_hints().paths == frozenset()
    second = ready(watcher, other)
    (other / "late").write_text("x")
    assert second.pop_hints().paths == {b"", b"late"}


def test_what_was_written_before_take_is_in_it(watcher, root):
    """Whoever reads the queue meanwhile, and whoever writes."""
    watched = ready(watcher, root)
    noise_ends = threading.Event()

    def noise() -> None:
        while not noise_ends.is_set():
            (root / "noise").write_text("x")

    thread = threading.Thread(target=noise)
    thread.start()
    try:
        for number in range(500):
            (root / f"f{number}").write_text("x")
            assert b"f%d" % number in watched.pop_hints().paths
    finally:
        noise_ends.set()
        thread.join()


def test_a_map_is_told_when_its_file_is_closed(watcher, root):
    (root / "map").write_bytes(b"\0" * 4096)
    watched = ready(watcher, root)
    with (root / "map").open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0] = 1
        memory.flush()
    assert watched.pop_hints().paths == {b"map"}


@pytest.mark.parametrize("way", ["made without a name", "linked", "moved away"])
def test_a_write_by_a_name_that_is_gone_tells_of_the_file(watcher, root, way):
    (root / "d").mkdir()
    if way == "made without a name":
        file = os.open(root / "d", os.O_TMPFILE | os.O_RDWR)
        libc.call("linkat", file, b"", -100, os.fsencode(root / "data"), 0x1000)
    else:
        file = os.open(root / "d/tmp", os.O_CREAT | os.O_RDWR)
        os.link(root / "d/tmp", root / "data")
        (root / "d/tmp").unlink()
    if way == "moved away":
        (root / "d").rmdir()
    watched = ready(watcher, root)
    os.write(file, b"x")
    os.close(file)
    hints = watched.pop_hints()
    assert b"data" not in hints.paths
    assert not hints.everything
    on_btrfs = libc.filesystem_type(watched._root.descriptor) == btrfs.FILESYSTEM_TYPE
    assert hints.inodes == (set() if on_btrfs else {(root / "data").stat().st_ino})
