"""The one walk through trees that others write to, and the way down that it goes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.system.beneath import Beneath, opened
from backends.system.copying import Destination, copy_tree
from backends.system.walk import walk
from tests.support.namespaces import enter_private_mounts

LEVELS = 5000


def paths(top: Path) -> list[bytes]:
    with opened(top) as directory:
        return [path for path, _, _, _ in walk(directory)]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def deep_tree(top: Path, levels: int = LEVELS) -> Iterator[Path]:
    """Yield a tree of many levels; each has a file before its directory, and after."""
    top.mkdir()
    at = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        for name in ("c", "e"):
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=at))
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    try:
        yield top
    finally:
        subprocess.run(["rm", "-rf", top], check=True, timeout=120)


def test_all_that_is_there_comes_in_the_order_of_the_paths(tmp_path: Path) -> None:
    for name in ("a", "a!", "b/c/d"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a/b", "a!/x", "a!b", "aa", "b/c/d/e", "odd \udcff"):
        (tmp_path / name).touch()
    found = paths(tmp_path)
    everything = [
        os.fsencode(each.relative_to(tmp_path)) for each in tmp_path.rglob("*")
    ]
    assert found == sorted(everything)
    assert found.index(b"a!") < found.index(b"a/b")


def test_each_name_comes_with_its_directory_and_status(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_text("12345")
    with opened(tmp_path / "a") as directory:
        for path, name, at, status in walk(directory, path=b"a"):
            same = os.stat(name, dir_fd=at, follow_symlinks=False)
            assert (status.st_ino, status.st_size) == (same.st_ino, same.st_size)
            assert (tmp_path / os.fsdecode(path)).stat().st_ino == status.st_ino


def test_links_are_told_of_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "tree/inside").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("not ours")
    (tmp_path / "tree/inside/out").symlink_to(tmp_path / "outside")
    (tmp_path / "tree/loop").symlink_to(".")
    assert paths(tmp_path / "tree") == [b"inside", b"inside/out", b"loop"]


def test_another_filesystem_is_not_gone_into(tmp_path: Path) -> None:
    enter_private_mounts()
    (tmp_path / "inside").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "inside"], check=True)
    try:
        (tmp_path / "inside/file").write_text("not ours")
        assert paths(tmp_path) == [b"inside"]
        assert paths(tmp_path / "inside") == [b"file"]
    finally:
        subprocess.run(["umount", tmp_path / "inside"], check=True)


def test_what_is_not_to_be_entered_is_left_alone(tmp_path: Path) -> None:
    for name in ("a/below", "b/below"):
        (tmp_path / name).mkdir(parents=True)
    with opened(tmp_path) as directory:
        found = [path for path, *_ in walk(directory, enter=lambda path: path != b"a")]
    assert found == [b"a", b"b", b"b/below"]


def test_what_vanishes_meanwhile_is_left_out(tmp_path: Path) -> None:
    for name in ("a", "gone", "moved/below", "swapped/below", "z"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text(name)
    before, found = open_files(), []
    with opened(tmp_path) as directory:
        for path, *_ in walk(directory):
            found.append(path)
            if path == b"a":
                (tmp_path / "a/file").unlink()
                (tmp_path / "z/file").unlink()
                (tmp_path / "gone/file").unlink()
                (tmp_path / "gone").rmdir()
            if path == b"moved":
                (tmp_path / "moved").rename(tmp_path / "later")
            if path == b"swapped":
                (tmp_path / "swapped").rename(tmp_path / "away")
                (tmp_path / "swapped").symlink_to("away")
    assert found == [b"a", b"moved", b"swapped", b"z"]
    assert open_files() == before


def test_the_top_has_to_be_a_directory(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(NotADirectoryError):
            paths(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        paths(tmp_path / "none")


def test_a_tree_may_be_deeper_than_files_may_be_open(tmp_path: Path) -> None:
    with deep_tree(tmp_path / "deep") as top, opened(top) as directory:
        before, most, last = open_files(), 0, b""
        for count, (path, *_) in enumerate(walk(directory), 1):
            last = path
            if count % 100 == 0:
                most = max(most, open_files())
        assert (count, last) == (3 * LEVELS, b"e")
        assert most - before < 100
        assert open_files() == before


def test_the_way_back_leads_nowhere_else(tmp_path: Path) -> None:
    """A part of a deep tree that is moved away meanwhile has gone, with its rest."""
    with deep_tree(tmp_path / "deep") as top, opened(top) as directory:
        found = []
        for path, *_ in walk(directory):
            found.append(path)
            if path == b"d/" * 200 + b"d":
                (top / "d/d/d").rename(top / "d/d/away")
                (top / "d/d/d").symlink_to("away")
        assert found[-3:] == [b"d/d/e", b"d/e", b"e"]
        assert b"d/d/d/e" not in found
        # What was open when it was moved has been seen to its end.
        assert max(path.count(b"/") for path in found) > 200


def test_names_are_found_beneath_a_deep_way(tmp_path: Path) -> None:
    with deep_tree(tmp_path / "deep") as top, Beneath(top) as tree:
        before = open_files()
        for depth in (4999, 10, 3000, 2999, 0):
            assert tree.status(b"d/" * depth + b"e") is not None
            assert open_files() - before < 100
        assert tree.status(b"d/" * 2000 + b"none/e") is None
        assert tree.status(b"d/" * 2000 + b"e") is not None


def test_a_deep_tree_can_be_copied(tmp_path: Path) -> None:
    levels = 1500  # it has two trees open, and may have 1,024 files
    with deep_tree(tmp_path / "deep", levels) as top:
        os.utime(top / "d", ns=(5, 1_000_000_007))
        target = tmp_path / "target"
        target.mkdir()
        try:
            done = copy_tree(top, Destination(target), progress=lambda _copied: None)
            assert done.files == 2 * levels
            assert paths(target) == paths(top)
            assert (target / "d").stat().st_mtime_ns == 1_000_000_007
        finally:
            subprocess.run(["rm", "-rf", target], check=True, timeout=120)
