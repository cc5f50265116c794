"""A delta of an owner that means harm: much memory for a small file, or no file."""

from __future__ import annotations

import os
import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.rsync.journal.delta import Delta, Header, write_delta
from backends.rsync.journal.journal import Journal
from backends.rsync.journal.manifest import TOMBSTONES_MAX
from backends.rsync.journal.staging import Staging
from tests.support.journal_trees import VOLUME
from tests.support.peers import PeerNode

MIB = 2**20
NAMES = 50_000


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    (tmp_path / "live").mkdir()
    (tmp_path / "staging/tree").mkdir(parents=True)
    with closing(Journal(tmp_path, VOLUME)) as made:
        made.manifest.record([], [], commit=(1, 1))
        yield made


def delta(tmp_path: Path, deletions: Iterator[bytes]) -> None:
    (tmp_path / "staging").mkdir(exist_ok=True)
    header = Header(VOLUME, (1, 1), (1, 2))
    write_delta(tmp_path / "staging/delta", header, [], deletions)


def test_many_deletions_take_no_memory(tmp_path: Path, journal: Journal) -> None:
    delta(tmp_path, (b"%07d/x" % number for number in range(NAMES)))
    tracemalloc.start()
    try:
        with journal.staged() as found:
            assert journal.staging.missing(found, journal.manifest) == []
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 3 * MIB


def test_deletions_come_in_order(tmp_path: Path) -> None:
    """Who checks them goes along with them, and keeps none."""
    for paths in ([b"b", b"a"], [b"a", b"a"]):
        header = Header(VOLUME, (1, 1), (1, 2))
        write_delta(tmp_path / "delta", header, [], paths)
        with pytest.raises(BackendError, match="out of order"):
            Delta.open(tmp_path / "delta")


@pytest.mark.parametrize("kind", ["device", "disk", "pipe", "link", "directory"])
def test_what_comes_as_a_delta_and_is_no_file_is_not_opened(
    nodes: tuple[PeerNode, PeerNode], kind: str
) -> None:
    """To open a device can restart the machine, and a pipe waits for its writer."""
    owner, member = nodes
    source = owner.directory / "source"
    source.mkdir()
    path, elsewhere = source / "delta", member.directory / "elsewhere"
    write_delta(elsewhere, Header(VOLUME, (1, 1), (1, 2)), [], [])
    if kind in ("device", "disk"):
        # Numbers that no driver has: to open them says so.
        os.mknod(path, 0o20600 if kind == "device" else 0o60600, os.makedev(300, 7))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(elsewhere)
    else:
        path.mkdir()
    done = owner.send(member, source, ["delta"])
    assert done.returncode == 0, done.stderr
    came = member.staging.directory / "delta"
    assert came.lstat().st_mode == path.lstat().st_mode
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it was opened, and waits"))
    signal.alarm(20)
    try:
        with pytest.raises(BackendError, match="no regular file"):
            Staging(member.directory).delta()
    finally:
        signal.alarm(0)


def test_a_delta_of_holes_is_not_read_to_its_end(tmp_path: Path) -> None:
    """It costs its sender nothing; the copy cannot be used while it is read."""
    delta(tmp_path, iter([b"a"]))
    path = tmp_path / "delta"
    (tmp_path / "staging/delta").rename(path)
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(2**31)
        file.seek(-20, os.SEEK_END)
        file.write(content[-20:])
    with pytest.raises(BackendError, match="more in it than it says"):
        Delta.open(path)


def test_no_delta_has_more_names_than_a_volume(tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    delta(tmp_path, (b"%07d" % number for number in range(TOMBSTONES_MAX + 3)))
    with closing(Journal(tmp_path, VOLUME, max_names=1)) as journal:
        with pytest.raises(BackendError, match="more than 100002 names"):
            journal.staged()
        delta(tmp_path, iter([b"a"]))
        journal.staged().close()
