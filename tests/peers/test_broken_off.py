"""A transfer that was broken off: the next one sends what is left of the file."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backends.errors import RemoraError
from backends.rsync.journal import partial
from plugin.ownership.state import Commit
from plugin.peers.sharing import AHEAD_SEQ, SharedSsh
from plugin.replication.progress import Progress
from plugin.replication.transfer import RsyncTransfer
from tests.support.host import wait_until
from tests.support.peers import COMMAND_DEADLINE_S, VOLUME, PeerNode
from tests.support.processes import command, descendants, signal_all, with_open

NODES = tuple[PeerNode, PeerNode]
MIB = 2**20
SIZE, CUT_AFTER = 100 * MIB, 60 * MIB
PIECE = b"remora".ljust(4096, b".")


def make_file(path: Path, size: int) -> None:
    """Make a file that no compression makes smaller."""
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))


def source_of(node: PeerNode) -> Path:
    source = node.directory / "source"
    (source / "tree/below").mkdir(parents=True)
    make_file(source / "tree/below/big", SIZE)
    return source


def send(first: PeerNode, second: PeerNode, source: Path, commit: Commit) -> int:
    """Send it, with its name or as a whole tree; return the bytes on the line."""
    transfer = RsyncTransfer(first.peers, Progress())
    ahead = commit.seq == AHEAD_SEQ
    return transfer.send(
        second.id,
        volume_id=VOLUME,
        commit=commit,
        source=source / "tree" if ahead else source,
        names=None if ahead else [b"tree/below/big\0"],
    )


def slowly(node: PeerNode) -> None:
    """Give the line of *node*'s transfers a speed at which they can be met."""
    sockets = node.run_directory / "slow"
    slow = SharedSsh(
        node.peer_directory, sockets=sockets, bandwidth_limit_bytes=30 * MIB
    )
    node.peers.ssh = slow


def parts(node: PeerNode) -> list[Path]:
    """Return what is not whole at *node*."""
    staging = node.staging.directory
    return [*staging.glob("[up]*/*"), *staging.glob("tree/.remora.unfinished/*")]


def break_off(first: PeerNode, second: PeerNode, source: Path, commit: Commit) -> None:
    """Send until most of the file is there, then kill every ssh of the sender."""
    usual = first.peers.ssh
    slowly(first)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send, first, second, source, commit)
        wait_until(
            lambda: any(each.stat().st_size > CUT_AFTER for each in parts(second)),
            timeout_s=COMMAND_DEADLINE_S,
            what="most of it has come",
        )
        ours = descendants(os.getpid())
        signal_all([pid for pid in ours if command(pid) == "ssh"], signal.SIGKILL)
        with pytest.raises(RemoraError):
            sending.result(COMMAND_DEADLINE_S)
    first.peers.ssh = usual
    wait_until(
        lambda: not with_open(second.staging.lock),
        timeout_s=COMMAND_DEADLINE_S,
        what="the other side has ended",
    )


@pytest.mark.parametrize("commit", [Commit(5, 1), Commit(5, AHEAD_SEQ)])
def test_the_rest_is_sent(nodes: NODES, commit: Commit) -> None:
    """As a commit's file, and as one of a tree that is sent ahead."""
    first, second = nodes
    source = source_of(first)
    break_off(first, second, source, commit)
    arrived = second.staging.directory / "tree/below/big"
    assert not arrived.exists()
    is_tree = commit.seq == AHEAD_SEQ
    place = second.staging
    partial.make_ready(place.directory, place.basis, is_tree=is_tree)
    assert send(first, second, source, commit) < SIZE - CUT_AFTER + 2 * MIB
    assert arrived.read_bytes() == (source / "tree/below/big").read_bytes()
    assert not parts(second)


def test_the_rest_is_sent_after_rsync_was_killed(nodes: NODES) -> None:
    """As it is when the power of the member fails: rsync tidies nothing up."""
    first, second = nodes
    source, commit = source_of(first), Commit(5, 1)
    slowly(first)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send, first, second, source, commit)
        wait_until(
            lambda: any(each.stat().st_size > CUT_AFTER for each in parts(second)),
            timeout_s=COMMAND_DEADLINE_S,
            what="most of it has come",
        )
        signal_all(with_open(second.staging.lock), signal.SIGKILL)
        with pytest.raises(RemoraError):
            sending.result(COMMAND_DEADLINE_S)
    partial.make_ready(second.staging.directory, second.staging.basis)
    assert [each.name for each in parts(second)] == ["big"]
    assert send(first, second, source, commit) < SIZE - CUT_AFTER + 2 * MIB


def names(directory: Path) -> list[str]:
    return [each.name for each in directory.iterdir()]


def left(unfinished: Path, **sizes: int) -> None:
    """Leave files in *unfinished*, as rsync does."""
    unfinished.mkdir(parents=True)
    for name, size in sizes.items():
        (unfinished / name).write_bytes(b"x" * size)


@pytest.mark.parametrize("place", ["staging/tree/deep", "basis/deep"])
def test_a_part_is_no_help_where_the_whole_file_is(tmp_path: Path, place: str) -> None:
    staging, basis = tmp_path / "staging", tmp_path / "basis"
    basis.mkdir()
    left(staging / "unfinished", **{"a[b]*.abcdef": 2 * MIB, "other.123456": 2 * MIB})
    (tmp_path / place).mkdir(parents=True)
    make_file(tmp_path / place / "a[b]*", 2 * MIB)
    make_file(tmp_path / place / "other", MIB)
    partial.make_ready(staging, basis)
    assert names(staging / "partial") == ["other"]
    assert not names(staging / "unfinished")


def test_a_part_of_a_redo_file_is_kept(tmp_path: Path) -> None:
    """However large its file is; when it has come, a part is of something else."""
    staging, live = tmp_path / "staging", tmp_path / "basis/deep"
    left(staging / "unfinished", **{"db.abcdef": 2 * MIB, "other.abcdef": 2 * MIB})
    live.mkdir(parents=True)
    (staging / "redo/deep").mkdir(parents=True)
    for path in (live / "db", live / "other", staging / "redo/deep/other"):
        make_file(path, 3 * MIB)
    partial.make_ready(staging, tmp_path / "basis")
    assert names(staging / "partial") == ["db"]


def test_of_several_parts_the_largest_is_kept(tmp_path: Path) -> None:
    left(
        tmp_path / "unfinished", **{"a.abcdef": 3 * MIB, "a.ghijkl": MIB, "b.abcdef": 5}
    )
    (tmp_path / "partial").mkdir()
    make_file(tmp_path / "partial/a", 2 * MIB)
    partial.make_ready(tmp_path, tmp_path / "basis")
    assert names(tmp_path / "partial") == ["a"]
    assert (tmp_path / "partial/a").stat().st_size == 3 * MIB


def test_parts_of_files_sent_ahead_are_found_when_files_are_sent_ahead(
    tmp_path: Path,
) -> None:
    """A volume may have that name: what a commit has there is left alone."""
    unfinished = tmp_path / "tree/.remora.unfinished"
    left(unfinished, **{"a.abcdef": 2 * MIB})
    partial.make_ready(tmp_path, tmp_path / "basis")
    assert names(unfinished) == ["a.abcdef"]
    partial.make_ready(tmp_path, tmp_path / "basis", is_tree=True)
    assert not names(unfinished)
    assert names(tmp_path / "partial") == ["a"]


def test_a_link_in_place_of_the_tree_is_not_followed(tmp_path: Path) -> None:
    staging, other = tmp_path / "staging", tmp_path / "other"
    staging.mkdir()
    left(other / ".remora.unfinished", **{"a.abcdef": 2 * MIB})
    (staging / "tree").symlink_to(other)
    with pytest.raises(NotADirectoryError):
        partial.make_ready(staging, tmp_path / "basis", is_tree=True)
    assert names(other / ".remora.unfinished") == ["a.abcdef"]


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    staging, other = tmp_path / "staging", tmp_path / "other"
    staging.mkdir()
    other.mkdir()
    (other / "file").write_bytes(PIECE)
    (staging / "partial").symlink_to(other)
    partial.make_ready(staging, tmp_path / "basis")
    assert (other / "file").read_bytes() == PIECE
    assert not (staging / "partial").is_symlink()
