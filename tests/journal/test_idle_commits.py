"""On btrfs: what has not changed costs neither a snapshot nor a commit of the disk."""

from __future__ import annotations

import itertools
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.watch import Hints, Watcher
from tests.support.journal_trees import VOLUME
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.watching import make_root

NOTHING = Hints()
ROUNDS = 5
TRIES = 5
numbers = itertools.count()


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    enter_private_mounts()
    with loop_filesystem(tmp_path_factory.mktemp("disk"), "btrfs") as disk:
        yield disk


@pytest.fixture
def home(disk: Path) -> Path:
    """Return the directory of a copy with one commit, of which all is on the disk."""
    home = disk / f"volume{next(numbers)}"
    home.mkdir()
    make_root(home / "live")
    (home / "live/file").write_bytes(b"x" * 8192)
    (home / "live/gone").write_bytes(b"x")
    with closing(Journal(home, VOLUME)) as journal:
        assert journal.by_snapshot
        journal.record(journal.look(EVERYTHING), (1, 1))
    os.sync()
    return home


def generation(disk: Path) -> int:
    """Return how many transactions the filesystem has committed."""
    device = subprocess.run(
        ["findmnt", "-no", "SOURCE", "-M", disk],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout.strip()
    shown = subprocess.run(
        ["btrfs", "inspect-internal", "dump-super", device],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout
    return int(shown.partition("\ngeneration")[2].split()[0])


def look(home: Path, hints: Hints = NOTHING) -> set[bytes]:
    """Return the paths that a round finds changed, as a commit would have them."""
    with closing(Journal(home, VOLUME)) as journal:
        changes = journal.look(hints)
    return {each.entry.path for each in changes.changed} | {*changes.deleted}


def rounds_are_no_commits(disk: Path, home: Path) -> bool:
    """Return whether rounds cost nothing; the kernel itself may commit now and then."""
    for _ in range(TRIES):
        before = generation(disk)
        for _ in range(ROUNDS):
            assert look(home) == set()
        os.sync()
        if generation(disk) == before:
            return True
    return False


def test_rounds_of_an_idle_volume_are_no_commits(disk: Path, home: Path) -> None:
    assert rounds_are_no_commits(disk, home)


def map_and_store(file: Path) -> None:
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 4096) as mapped:
        mapped[0] = 1


def write_directly(file: Path) -> None:
    block = mmap.mmap(-1, 4096)
    descriptor = os.open(file, os.O_WRONLY | os.O_DIRECT)
    os.pwrite(descriptor, block, 0)
    os.close(descriptor)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda live: map_and_store(live / "file"), b"file"),
        (lambda live: write_directly(live / "file"), b"file"),
        (lambda live: (live / "file").chmod(0o600), b"file"),
        (lambda live: os.truncate(live / "file", 5), b"file"),
        (lambda live: (live / "gone").unlink(), b"gone"),
        (lambda live: (live / "file").rename(live / "new"), b"new"),
        (lambda live: (live / "directory").mkdir(), b"directory"),
    ],
)
def test_what_no_event_tells_of_is_seen(
    home: Path, change: Callable[[Path], object], path: bytes
) -> None:
    change(home / "live")
    assert path in look(home)
    # It was no commit's, so it is found until it is one.
    assert path in look(home)


def test_what_is_not_on_the_disk_yet_is_told_by_events(home: Path) -> None:
    watcher = Watcher(home.parent)
    assert not watcher.fault
    with closing(watcher):
        watched = watcher.add(home / "live")
        assert watched.pop_hints() == EVERYTHING
        assert watched.pop_hints() == NOTHING
        with (home / "live/file").open("r+b", buffering=0) as file:
            file.write(b"y")
            assert look(home, watched.pop_hints()) == {b"file"}
            # The look has brought it to the disk.
            assert look(home, watched.pop_hints()) == {b"file"}


def test_reading_costs_one_snapshot_and_no_more(disk: Path, home: Path) -> None:
    os.utime(home / "live/file", (0, (home / "live/file").stat().st_mtime))
    with closing(Journal(home, VOLUME)) as journal:
        journal.record(journal.look(EVERYTHING), (1, 2))
    assert (home / "live/file").read_bytes()
    assert (home / "live/file").stat().st_atime > 0
    assert look(home) == set()
    assert rounds_are_no_commits(disk, home)


def test_a_commit_of_nothing_new_has_the_snapshot_of_the_last(home: Path) -> None:
    for commit, hints in (((2, 1), NOTHING), ((3, 1), EVERYTHING)):
        with closing(Journal(home, VOLUME)) as journal:
            journal.record(journal.look(hints), commit)
            assert journal.quality() == "snapshot"
            assert [each.name for each in (home / "commits").iterdir()] == [
                f"{commit[0]}.{commit[1]}"
            ]
