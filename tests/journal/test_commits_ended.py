"""Snapshots of commits after a kill at any moment, and after a volume's removal."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.base import Volume
from backends.rsync.backend import RsyncBackend
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.outbox import unpack_all
from backends.rsync.journal.packing import OUTBOX_NAME
from tests.protocol.node import REPOSITORY
from tests.support.journal_trees import VOLUME, all_known, check_rows, shape
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.watching import make_root

KILLS = 12
_COMMIT = f"""
import sys
from pathlib import Path
from backends.rsync.journal.journal import EVERYTHING, Journal
home = Path(sys.argv[1])
while True:
    journal = Journal(home, "{VOLUME}")
    step = journal.commit()[1] + 1
    for number in range(20):
        (home / f"live/{{number}}").write_text(str(step * number % 7))
    (home / "live/step").write_text(str(step))
    base = journal.commit() if step > 1 else None
    journal.record(journal.look(EVERYTHING), (1, step))
    journal.pack(base, only=[b"step"])
    journal.unpack()
    journal.close()
    print(step, flush=True)
"""


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    enter_private_mounts()
    with loop_filesystem(tmp_path_factory.mktemp("disk"), "btrfs") as disk:
        yield disk


def subvolumes(disk: Path) -> list[str]:
    """Return the paths of all subvolumes, as the kernel has them."""
    listed = subprocess.run(
        ["btrfs", "subvolume", "list", disk],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return sorted(line.split(" path ")[1] for line in listed.stdout.splitlines())


def test_a_kill_leaves_nothing_wrong(disk: Path) -> None:
    home = disk / "killed"
    home.mkdir()
    make_root(home / "live")
    chance = random.Random(1)
    for _ in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMIT, home],
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chance.random() * 0.2)
        process.kill()
        process.communicate()
        journal = Journal(home, VOLUME)
        commit = journal.commit()
        # What is known as a commit is one, whenever it was that the process ended.
        assert journal.quality() == "snapshot"
        known = {each.entry.path for each in journal.manifest.all()}
        assert known == {each.entry.path for each in all_known(journal.source())}
        step = (journal.source() / "step").read_text()
        assert step == str(commit[1])
        unpack_all(home / OUTBOX_NAME)  # as a start does
        following = commit[0], commit[1] + 1
        journal.record(journal.look(EVERYTHING), following)
        assert shape(journal.source()) == shape(journal.live)
        check_rows(journal.manifest.all(), all_known(journal.live))
        journal.close()
        kept = f"killed/commits/{following[0]}.{following[1]}"
        assert subvolumes(disk) == [kept, "killed/live"]


def test_a_removed_volume_leaves_no_subvolume(disk: Path) -> None:
    backend = RsyncBackend(disk / "pool", pool_id=None)
    backend.pool.initialise()
    before = subvolumes(disk)
    options = {"mode": "0755", "uid": "0", "gid": "0"}
    volume = backend.create(
        Volume(VOLUME, "db", options, "2026-01-01T00:00:00Z"), deadline_s=30
    )
    assert backend.status(volume)["engine"] == "btrfs"
    journal = Journal(backend.pool.home(volume), VOLUME)
    (journal.live / "file").write_text("one")
    journal.record(journal.look(EVERYTHING), (1, 1))
    # A crash in a round: what was taken and what was to be sent are still there.
    (journal.live / "file").write_text("two")
    journal.look(EVERYTHING)
    journal.pack(None, only=[b"file"])
    journal.manifest.close()
    assert len(subvolumes(disk)) == len(before) + 4
    backend.remove(volume, deadline_s=30)
    assert backend.collect_garbage(deadline_s=30) == 1
    assert subvolumes(disk) == before
    assert list(backend.pool.trash.path.iterdir()) == []
