"""The scan: every kind of change is found, by a walk and by hints alike."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.scan import scan_all, scan_paths
from tests.support.journal_volume import ODD, Volume, fill, named
from tests.support.namespaces import enter_private_mounts


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    made = Volume(tmp_path)
    fill(made.root)
    made.keep(scan_all(made.root, made.manifest))
    yield made
    made.manifest.close()


def rewrite_unseen(path: Path) -> None:
    """Give a file other content of the same size, and its times back."""
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the clock has ticks
        path.write_bytes(bytes(reversed(path.read_bytes())))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def swap_for_link(root: Path) -> None:
    (root / "a/b").rename(root / "elsewhere")
    (root / "a/b").symlink_to("../elsewhere")


def replace_directory(root: Path) -> None:
    (root / "a").rename(root / "old")
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/new").write_text("new")
    shutil.rmtree(root / "old")


def become_file(root: Path) -> None:
    shutil.rmtree(root / "a")
    (root / "a").write_text("a file")


def become_directory(root: Path) -> None:
    (root / "a!").unlink()
    (root / "a!/x").mkdir(parents=True)


# What is done, the hints for it, then what is changed (the root always: see below),
# what is deleted.
CASES: dict[str, tuple[Callable[[Path], object], list[bytes], list, list]] = {
    "write": (
        lambda root: (root / "a!").write_text("more than there was in it before"),
        [b"a!"], [b"a!"], [],
    ),
    "times put back": (
        lambda root: rewrite_unseen(root / "a/b/other"),
        [b"a/b/other"], [b"a/b/other"], [],
    ),
    "mode": (lambda root: (root / "a").chmod(0o711), [b"a"], [b"a"], []),
    "root": (lambda root: root.chmod(0o711), [b""], [b""], []),
    "owner": (
        lambda root: os.chown(root / "soft", 1, 2, follow_symlinks=False),
        [b"soft"], [b"soft"], [],
    ),
    "attribute": (
        lambda root: os.setxattr(root / "a/b", "user.remark", b"1"),
        [b"a/b"], [b"a/b"], [],
    ),
    "new": (
        lambda root: (root / "a/b/new").write_text("new"),
        [b"a/b/new"], [b"a/b", b"a/b/new"], [],
    ),
    "gone": (
        lambda root: (root / "a/b/other").unlink(),
        [b"a/b/other"], [b"a/b"], [b"a/b/other"],
    ),
    "one name written": (
        lambda root: (root / "hard").write_text("more content"),
        [b"hard"], [b"a/b/file", b"hard"], [],
    ),
    "one name gone": (
        lambda root: (root / "hard").unlink(),
        [b"hard"], [b"", b"a/b/file"], [b"hard"],
    ),
    "one more name": (
        lambda root: os.link(root / "hard", root / "a/hard"),
        [b"a/hard"], [b"a", b"a/b/file", b"a/hard", b"hard"], [],
    ),
    "a second name": (
        lambda root: os.link(root / "a!", root / "a/second"),
        [b"a/second"], [b"a", b"a!", b"a/second"], [],
    ),
    "a second name of a pipe": (
        lambda root: os.link(root / "pipe", root / "a/second"),
        [b"a/second"], [b"a", b"a/second", b"pipe"], [],
    ),
    "directory renamed": (
        lambda root: (root / "a").rename(root / "c"),
        [b"a", b"c"],
        [b"", b"c", b"c/b", b"c/b/file", b"c/b/other", b"hard"], [b"a"],
    ),
    "directory replaced": (
        replace_directory, [b"a"],
        [b"", b"a", b"a/b", b"a/b/new", b"hard"], [b"a/b/file", b"a/b/other"],
    ),
    "directory gone": (
        lambda root: shutil.rmtree(root / "a"),
        [b"a/b/other", b"a/b"], [b"", b"hard"], [b"a"],
    ),
    "directory now a file": (become_file, [b"a"], [b"", b"a", b"hard"], [b"a/b"]),
    "file now a directory": (become_directory, [b"a!/x"], [b"", b"a!", b"a!/x"], []),
    "directory now a link": (
        swap_for_link, [b"a/b/other", b"elsewhere"],
        [b"", b"a", b"a/b", b"elsewhere", b"elsewhere/file", b"elsewhere/other",
         b"hard"],
        [b"a/b/file", b"a/b/other"],
    ),
    "odd name": (
        lambda root: os.truncate(os.fsencode(root) + b"/" + ODD, 1), [ODD], [ODD], [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("by_hints", [False, True], ids=["walk", "hints"])
@pytest.mark.parametrize("case", CASES)
def test_a_change_is_found(volume: Volume, case: str, by_hints: bool) -> None:
    do, hints, changed, deleted = CASES[case]
    do(volume.root)
    found = volume.scan(hints if by_hints else None)
    # The times of what a directory's name lies in are not always our concern.
    assert named(found)[:2] == (changed, deleted)
    volume.keep(found)
    assert named(scan_all(volume.root, volume.manifest)) == ([], [], [])


def test_everything_is_new_to_an_empty_manifest(tmp_path: Path, volume: Volume) -> None:
    kinds = {row.entry.path: row.entry.kind for row in volume.manifest.all()}
    assert list(kinds) == [
        b"", b"a", b"a!", b"a/b", b"a/b/file", b"a/b/other", b"hard", b"null", ODD,
        b"pipe", b"socket", b"soft",
    ]  # fmt: skip
    assert set(kinds.values()) == {
        "file", "directory", "link", "pipe", "socket", "character"
    }  # fmt: skip
    # A hint leads everywhere if nothing is known.
    other = Manifest(tmp_path / "other")
    found = scan_paths(volume.root, other, [b"a/b/other"])
    assert [each.entry.path for each in found.changed] == list(kinds)
    other.close()


def test_nothing_changed_is_nothing_found(volume: Volume) -> None:
    every = [row.entry.path for row in volume.manifest.all()]
    assert named(volume.scan(None)) == named(volume.scan(every)) == ([], [], [])
    assert named(volume.scan([b"not/there", b"a/neither", b"../x", b"/", b"a//b"])) == (
        ([], [], [])
    )


def test_what_only_the_kernel_noted_is_touched(volume: Volume) -> None:
    for name in ("a", "pipe"):
        status = (volume.root / name).stat()
        while (volume.root / name).stat().st_ctime_ns == status.st_ctime_ns:
            (volume.root / name).chmod(status.st_mode)
    for hints in (None, [b"a", b"pipe"]):
        assert named(volume.scan(hints)) == ([], [], [b"a", b"pipe"])
    volume.manifest.touch(volume.scan(None).touched)
    assert named(volume.scan(None)) == ([], [], [])


def test_what_is_below_a_mount_is_hidden_and_not_gone(volume: Volume) -> None:
    enter_private_mounts()
    (volume.root / "new").mkdir()
    for name in ("a/b", "new"):
        where = volume.root / name
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", where], check=True)
        (where / "strange").mkdir()
    hints = [b"a/b", b"a/b/file", b"a/b/strange", b"a/b/strange/x", b"new/strange"]
    try:
        assert named(volume.scan(None)) == ([b""], [], [])
        assert named(volume.scan(hints)) == ([], [], [])
    finally:
        subprocess.run(["umount", volume.root / "a/b"], check=True)
        subprocess.run(["umount", volume.root / "new"], check=True)
    assert named(volume.scan(None)) == ([b"", b"new"], [], [])


def test_a_missing_root_is_an_error_and_not_an_empty_volume(volume: Volume) -> None:
    volume.root.rename(volume.root.with_name("away"))
    volume.root.symlink_to("away")
    for hints in (None, [b"a"]):
        with pytest.raises(BackendError, match="cannot scan"):
            volume.scan(hints)
    volume.root.unlink()
    with pytest.raises(BackendError, match="cannot scan"):
        volume.scan(None)


def test_links_lead_nowhere_however_they_are_swapped(
    tmp_path: Path, volume: Volume
) -> None:
    secret = tmp_path / "secret/b"
    secret.mkdir(parents=True)
    (secret / "secret").write_text("secret")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (volume.root / "a").rename(volume.root / "aside")
            (volume.root / "a").symlink_to(tmp_path / "secret")
            (volume.root / "a").unlink()
            (volume.root / "aside").rename(volume.root / "a")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(200):
            for hints in (None, [b"a/b/secret", b"a/b", b"a"]):
                found = volume.scan(hints)
                seen = b"".join(each.entry.path for each in found.changed)
                assert b"secret" not in seen
    finally:
        stop.set()
        thread.join()


@contextmanager
def nested(root: Path, name: str, *, levels: int) -> Iterator[None]:
    """Make directories in each other; shutil cannot remove so many."""
    at = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    try:
        yield
    finally:
        subprocess.run(["rm", "-r", root / name], check=True, timeout=60)


def test_a_tree_deeper_than_a_process_may_open_files(volume: Volume) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with nested(volume.root, "d", levels=1500):
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        try:
            found = volume.keep(volume.scan([b"d"]))
            assert len(found.changed) == 1501  # the root as well
            assert named(volume.scan(None)) == ([], [], [])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_path_that_is_too_long_is_an_error(volume: Volume) -> None:
    with nested(volume.root, "d" * 250, levels=20):
        for hints in (None, [b"d" * 250]):
            with pytest.raises(BackendError, match="too long"):
                volume.scan(hints)


def test_a_file_that_was_written_counts_as_changed_whatever_it_looks_like(
    volume: Volume,
) -> None:
    found = scan_paths(volume.root, volume.manifest, [], written={b"a/b/other"})
    assert named(found) == ([b"a/b/other"], [], [])
