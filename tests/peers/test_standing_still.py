"""Transfers that say nothing, or carry nothing of worth: how long they go on."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backends.errors import BackendError, DeadlineError
from plugin.ownership.state import Commit
from plugin.replication import transfer as module
from plugin.replication.progress import Progress
from plugin.replication.transfer import RsyncTransfer
from tests.support.host import wait_until
from tests.support.leases import leased
from tests.support.peers import COMMAND_DEADLINE_S, VOLUME, PeerNode
from tests.support.processes import stopped, with_open

NODES = tuple[PeerNode, PeerNode]
GIB = 2**30
STALL_S = 2.0


class SpokeError(Exception):
    """rsync has said something at last."""


class Listening(Progress):
    """Ends a transfer as soon as rsync says something."""

    def note_line(self, number: int, line: str) -> None:
        raise SpokeError


def make_holes(nodes: NODES, size_bytes: int) -> Path:
    """Make a file of holes, whose member has another version; return where it is."""
    first, second = nodes
    source = first.directory / "source"
    (source / "tree").mkdir(parents=True, exist_ok=True)
    for number, directory in enumerate((source / "tree", second.staging.basis)):
        with (directory / "big").open("wb") as file:
            file.write(b"%d" % number)
            file.truncate(size_bytes)
    return source


def send(first: PeerNode, second: PeerNode, source: Path) -> float:
    """Send the file; return for how long rsync said nothing, in seconds."""
    began_s = time.monotonic()
    with pytest.raises(SpokeError):
        RsyncTransfer(first.peers, Listening()).send(
            second.id,
            volume_id=VOLUME,
            commit=Commit(5, 1),
            source=source,
            names=[b"tree/big\0"],
        )
    return time.monotonic() - began_s


def test_a_transfer_is_silent_while_the_member_reads(
    nodes: NODES, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = nodes
    monkeypatch.setattr(module, "_STALL_S", STALL_S)
    for size_bytes in (2 * GIB, 4 * GIB, 8 * GIB, 16 * GIB):
        source = make_holes(nodes, size_bytes)
        if send(first, second, source) > STALL_S + 1:
            return
    pytest.fail("rsync was never silent for longer than it may stand still")


def test_a_member_whose_rsync_stands_still_is_given_up(
    nodes: NODES, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = nodes
    monkeypatch.setattr(module, "_STALL_S", STALL_S)
    source = make_holes(nodes, 32 * GIB)
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send, first, second, source)
        wait_until(
            lambda: with_open(second.staging.lock),
            timeout_s=COMMAND_DEADLINE_S,
            what="the other side has begun",
        )
        with (
            stopped(with_open(second.staging.lock)),
            pytest.raises(DeadlineError, match="no progress for 2 s"),
        ):
            sending.result(COMMAND_DEADLINE_S)


def send_ahead(nodes: NODES, live: Path) -> None:
    """Send *live*, which had no bytes when it was looked at."""
    RsyncTransfer(nodes[0].peers, Progress()).send_ahead(
        nodes[1].id, volume_id=VOLUME, epoch=5, source=live, total_bytes=0
    )


def test_a_leased_file_is_left_to_the_commit(nodes: NODES) -> None:
    """Each would keep what is sent ahead for 45 seconds, and a container has many."""
    (live := nodes[0].directory / "live").mkdir()
    (live / "leased").write_text("x")
    with leased(live / "leased", kept=True):
        send_ahead(nodes, live)
    assert not (nodes[1].staging.directory / "leased").exists()


def test_a_hole_that_comes_after_the_look_is_not_sent_for_days(
    nodes: NODES, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GROWTH_MAX_BYTES", 2**20)
    (live := nodes[0].directory / "live").mkdir()
    (live / "file").touch()
    os.truncate(live / "file", 100 * GIB)
    with pytest.raises(BackendError, match="they had 0 GiB at first"):
        send_ahead(nodes, live)
