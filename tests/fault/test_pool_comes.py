"""A pool whose disk is mounted after the daemon's start, and unmounted under it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from backends.errors import BackendError
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.system.clock import Deadline
from plugin.ownership.state import Commit, CopyState
from tests.fault.test_crash_points_apart import Node
from tests.protocol.node import wait_until
from tests.support.journal_trees import carry

BEFORE = CopyState(promised=3, commit=Commit(3, 6), next_seq=7)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Yield a node whose pool is not there; `mount_disk` brings it."""
    (tmp_path / "node").mkdir()
    made = Node(tmp_path / "node")
    made.prepare(BEFORE)
    mark(made, tmp_path / "owner")
    pool = made.backend.pool.path
    pool.rename(tmp_path / "disk")
    pool.mkdir()
    yield made
    made.journals.close()
    subprocess.run(["umount", "-l", pool], check=False, timeout=30)
    made.close()


def mark(node: Node, home: Path) -> None:
    """Leave what a daemon leaves that is killed right after the commit point of 3.7."""
    (home / "live").mkdir(parents=True)
    (home / "live/new").write_text("of 3.7")
    owner = Journal(home, node.record.id)
    owner.record(owner.look(EVERYTHING), (3, 7))
    member = Journal(node.home, node.record.id)
    assert carry(owner.pack(None), member)  # what it lacks
    assert carry(owner.pack(None, only=[b"", b"new"]), member) == []
    owner.close()
    member.close()


def mount_disk(node: Node, tmp_path: Path) -> None:
    command = ["mount", "--bind", tmp_path / "disk", node.backend.pool.path]
    subprocess.run(command, check=True, timeout=30)


def test_copies_are_right_at_once_and_repaired_soon(node: Node, tmp_path: Path) -> None:
    node.journals.repair()
    with pytest.raises(BackendError, match="is not mounted"):
        node.ownership.copy_state(node.record)
    mount_disk(node, tmp_path)
    assert node.replica == msgspec.structs.replace(BEFORE, commit=Commit(3, 7))
    live = node.home / "live"
    wait_until((live / "new").exists, "the commit is applied")
    with node.journals.using(node.record, Deadline(30)) as journal:
        assert journal.staging.marked() is None
        assert journal.commit() == (3, 7)
    # Without the mark, too.
    assert node.replica == msgspec.structs.replace(BEFORE, commit=Commit(3, 7))
    assert not (live / "file").exists()


def test_a_copy_that_cannot_be_repaired_keeps_none_back(
    node: Node, tmp_path: Path
) -> None:
    """Whatever it is: a marker that names no file, for instance."""
    home = tmp_path / "disk/volumes" / node.record.id
    for digit in "0f":  # found before it and after
        number = digit * 8 + node.record.id[8:]
        bad = shutil.copytree(home, home.with_name(number))
        described = (bad / "volume.json").read_text()
        (bad / "volume.json").write_text(described.replace(node.record.id, number))
        (bad / "applying").write_text('{"commit": [3, 7], "work": "\\u0000"}')
    node.journals.repair()
    mount_disk(node, tmp_path)
    wait_until((node.home / "live/new").exists, "the commit is applied")


def test_a_first_use_comes_before_the_repair(node: Node, tmp_path: Path) -> None:
    mount_disk(node, tmp_path)
    with node.journals.using(node.record, Deadline(30)) as journal:
        assert journal.commit() == (3, 7)
    assert node.replica == msgspec.structs.replace(BEFORE, commit=Commit(3, 7))


def test_changes_are_watched_on_the_disk_that_is_there(
    node: Node, tmp_path: Path
) -> None:
    node.journals.repair()
    for _ in range(2):
        mount_disk(node, tmp_path)
        wait_until(lambda: watches(node), "a watch that tells of one file")
        subprocess.run(["umount", "-l", node.backend.pool.path], check=True, timeout=30)
        wait_until(lambda: node.journals._watcher is None, "the watch ends")
        with pytest.raises(BackendError, match="is not mounted"):
            node.ownership.copy_state(node.record)


def watches(node: Node) -> bool:
    """Return whether a watch tells of a file that is written to, and no more."""
    with node.journals.using(node.record, Deadline(30)) as journal:
        node.journals.hints(node.record, journal)
        (journal.live / "new").write_text("newer")
        hints = node.journals.hints(node.record, journal)
        return not hints.everything and b"new" in hints.paths
