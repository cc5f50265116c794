"""
Whether the files of a commit are of one moment, as a database needs them.

A writer gives many files the same number, one after the other: so no file may be ahead
of one that is written before it, nor behind it by more than one. A snapshot promises
that for what was durable before the next was written. With the engine `journal` it is
seen to fail; there the writer does not wait for the disk, or it would be slower than
the copying.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.rsync.journal.journal import Journal
from tests.protocol.node import wait_until
from tests.support.journal_trees import VOLUME, replicate
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.pausing import control_group, joining, paused_owner
from tests.support.watching import make_root

FILES = 40
COMMITS = 25
COMMITS_UNTIL_TORN = 100
_WRITE = f"""
import itertools, os, sys
os.chdir(sys.argv[1])
flags = os.O_WRONLY | os.O_CREAT | int(sys.argv[2])
files = [os.open(f"{{each:02}}", flags) for each in range({FILES})]
for step in itertools.count():
    for file in files:
        os.pwrite(file, b"%08d" % step, 0)
"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    enter_private_mounts()
    with loop_filesystem(tmp_path_factory.mktemp("disk"), "btrfs") as disk:
        yield disk


@contextmanager
def two_copies(
    disk: Path, tmp_path: Path, *, subvolume: bool
) -> Iterator[tuple[Journal, Journal]]:
    """Yield an owner's copy that is written to, and a member's."""
    home, other = disk / f"owner{subvolume}", tmp_path / "member"
    home.mkdir()
    if subvolume:
        make_root(home / "live")
    else:
        (home / "live").mkdir()
    (other / "live").mkdir(parents=True)
    owner, member = Journal(home, VOLUME), Journal(other, VOLUME)
    durably = str(os.O_DSYNC if subvolume else 0)
    arguments = [sys.executable, "-S", "-c", _WRITE, str(home / "live"), durably]
    try:
        with running(arguments, home / "live"):
            yield owner, member
    finally:
        owner.close()
        member.close()


@contextmanager
def running(arguments: list[str], live: Path) -> Iterator[None]:
    """Have a writer run, once it has written all of its files."""
    writer = subprocess.Popen(arguments)
    try:
        last = live / f"{FILES - 1:02}"
        wait_until(lambda: last.exists() and last.stat().st_size, "all are written")
        yield
    finally:
        writer.kill()
        writer.wait()


def torn(directory: Path) -> list[int]:
    """Return the numbers in the files of *directory* if they are of no one moment."""
    steps = [int((directory / f"{each:02}").read_bytes()) for each in range(FILES)]
    ordered = steps == sorted(steps, reverse=True) and steps[0] - steps[-1] <= 1
    return [] if ordered else steps


def test_a_snapshot_is_of_one_moment(disk: Path, tmp_path: Path) -> None:
    seen = set()
    with two_copies(disk, tmp_path, subvolume=True) as (owner, member):
        for _ in range(COMMITS):
            replicate(owner, member)
            assert not torn(member.live)
            assert owner.quality() == "snapshot"
            seen.add((member.live / "00").read_bytes())
    assert len(seen) > COMMITS // 2  # the writer did write meanwhile


def test_copies_of_files_are_not(disk: Path, tmp_path: Path) -> None:
    with two_copies(disk, tmp_path, subvolume=False) as (owner, member):
        for number in itertools.count():
            assert number < COMMITS_UNTIL_TORN, "the test cannot fail"
            replicate(owner, member)
            assert owner.quality() == "fuzzy"
            if torn(member.live):
                return


@pytest.mark.parametrize(("kind", "consistency"), [("xfs", ""), ("ext4", "pause")])
def test_files_that_are_copied_while_nobody_runs_are(
    tmp_path: Path, kind: str, consistency: str
) -> None:
    enter_private_mounts()
    home, seen = tmp_path / "member", set()
    (home / "live").mkdir(parents=True)
    with (
        loop_filesystem(tmp_path, kind) as disk,
        control_group() as group,
        paused_owner(disk, consistency) as owner,
    ):
        command = joining(group, sys.executable, "-S", "-c", _WRITE, owner.mounted, "0")
        with running(command, owner.mounted):
            owner.replicate(home)  # it says what it lacks, which takes a while
            for _ in range(COMMITS):
                assert owner.replicate(home) == "snapshot", owner.facts
                assert not torn(home / "live")
                seen.add((home / "live/00").read_bytes())
        assert owner.facts.count == COMMITS + 1
        print(owner.facts)
    assert len(seen) > COMMITS // 2
