"""A volume with more names than it may have is refused, with memory for no more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.watch import Hints
from backends.system.beneath import opened
from backends.system.walk import walk
from tests.support.journal_trees import VOLUME
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.watching import make_root

MOST = 30


@pytest.fixture(params=["plain", "btrfs"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    if request.param == "plain":
        (tmp_path / "live").mkdir()
        made = Journal(tmp_path, VOLUME, max_names=MOST)
        yield made
        made.close()
        return
    enter_private_mounts()
    with loop_filesystem(tmp_path, "btrfs") as disk:
        make_root(disk / "live")
        made = Journal(disk, VOLUME, max_names=MOST)
        assert made.by_snapshot
        yield made
        made.close()


@pytest.mark.parametrize("directory", ["", "one"])
def test_more_names_are_refused_until_there_are_fewer(
    journal: Journal, directory: str
) -> None:
    top = journal.live / directory
    top.mkdir(exist_ok=True)
    for number in range(MOST - 1):
        (top / f"{number}").touch()
    journal.record(journal.look(EVERYTHING), (1, 1))
    for number in range(3):
        os.link(top / "0", top / f"more{number}")
    with pytest.raises(BackendError, match=f"more than {MOST} names"):
        changes = journal.look(EVERYTHING)
        journal.record(changes, (1, 2))
    for number in range(3):
        (top / f"more{number}").unlink()
    journal.look(EVERYTHING)


def test_hints_lead_to_no_more_either(journal: Journal) -> None:
    journal.record(journal.look(EVERYTHING), (1, 1))
    (journal.live / "new").mkdir()
    for number in range(2 * MOST + 1):
        (journal.live / f"new/{number}").touch()
    with pytest.raises(BackendError, match=f"more than {MOST} names"):
        journal.look(Hints(paths={b"new"}))


def test_of_a_directory_no_more_names_are_kept(tmp_path: Path) -> None:
    for number in range(2 * MOST + 1):
        (tmp_path / f"{number}").touch()
    with (
        opened(tmp_path) as top,
        pytest.raises(OSError, match="a directory has too many names"),
    ):
        list(walk(top, names_max=MOST))
