"""Transfers under way: what rsync's lines say, estimates, and what is counted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from plugin.replication.progress import Carried, Done, Progress

VOLUME, NODE = "volume", "node"
MIB = 2**20


@pytest.fixture
def progress() -> Progress:
    return Progress()


def done(progress: Progress) -> Done:
    (transfer,) = progress.under_way()
    return transfer.done


def test_a_line_of_rsyncs_is_understood(progress: Progress) -> None:
    number = progress.begin("sending", VOLUME, NODE, 30_001_000)
    line = "       10977280  36%   10.02MB/s    0:00:01  "
    progress.note_line(number, line)
    assert done(progress) == Done(10_977_280, 30_001_000, 0, 10.02 * MIB)
    (transfer,) = progress.under_way(VOLUME)
    assert (transfer.percent(), transfer.left_s()) == (36, 2)
    line = "       30000000  99%   10.15MB/s    0:00:02 (xfr#1, to-chk=1/2)"
    progress.note_line(number, line)
    assert done(progress).files == 1
    progress.note_line(number, "  12  0%    0.00kB/s    0:00:00  ")
    assert done(progress).files == 1
    progress.end(number)
    progress.end(number)
    progress.note_line(number, line)
    assert progress.under_way() == []


@pytest.mark.parametrize(
    "line",
    [
        "",
        "rsync: connection unexpectedly closed",
        "10,977,280  36%   10.02MB/s    0:00:01",
        "1 36% fast",
        "9" * 40 + "  36%   10.02MB/s    0:00:01",
    ],
)
def test_other_lines_are_nothing(progress: Progress, line: str) -> None:
    progress.note_line(progress.begin("sending", VOLUME, NODE), line)
    assert done(progress) == Done()
    (transfer,) = progress.under_way()
    assert (transfer.percent(), transfer.left_s()) == (None, None)


def test_without_a_total_rsyncs_percentage_leads_to_one(progress: Progress) -> None:
    number = progress.begin("sending", VOLUME, NODE)
    progress.note_line(number, "  500  50%    1.00kB/s    0:00:00  ")
    assert done(progress).total_bytes == 1000


def test_a_real_rsync_says_such_lines(progress: Progress, tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    for name in ("one", "two"):
        (source / name).write_bytes(b"x" * 1_234_567)
    output = subprocess.run(
        [
            *("rsync", "-a", "--info=progress2", "--no-human-readable"),
            *(f"{source}/", f"{target}/"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    number = progress.begin("sending", VOLUME, NODE, 2_469_134)
    for line in output.replace("\r", "\n").splitlines():
        progress.note_line(number, line)
    assert done(progress).done_bytes == 2_469_134
    assert done(progress).files == 2


def test_what_the_sender_says_is_the_receivers_and_of_no_other(
    progress: Progress,
) -> None:
    number = progress.begin("receiving", VOLUME, NODE)
    progress.note_received(VOLUME, "other", Done(1, 2, 3, 4.0))
    progress.note_received("other", NODE, Done(1, 2, 3, 4.0))
    assert progress.receiving_percent(VOLUME) is None
    progress.note_received(VOLUME, NODE, Done(50, 200, 3, 30.0))
    assert progress.receiving_percent(VOLUME) == 25
    assert progress.under_way()[0].left_s() == 5
    progress.end(number)
    assert progress.receiving_percent(VOLUME) is None


def test_what_was_carried_is_counted_by_direction(progress: Progress) -> None:
    progress.count("sending", size_bytes=5)
    progress.count("sending", size_bytes=2, commits=1)
    assert progress.carried("sending") == Carried(7, 1)
    assert progress.carried("receiving") == Carried()
    assert progress.synced_before_s(VOLUME) is None
    progress.synced(VOLUME)
    age_s = progress.synced_before_s(VOLUME)
    assert age_s is not None
    assert 0 <= age_s < 60
    progress.forget(VOLUME)
    assert progress.synced_before_s(VOLUME) is None
