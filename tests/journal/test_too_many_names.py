"""A volume with more names than it may have is refused, with memory for no more."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.rsync.journal import journal as journal_module
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.outbox import fill
from backends.rsync.journal.watch import Hints
from backends.system import first_names
from backends.system import walk as walk_module
from backends.system.beneath import opened
from backends.system.copying import CopyError
from backends.system.walk import walk
from tests.support.journal_trees import VOLUME, all_known
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


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the names of a volume have no more bytes together than the usual ones."""
    monkeypatch.setattr(walk_module, "_BYTES_LEAST", 0)
    monkeypatch.setattr(journal_module, "_GROWN_MAX_BYTES", 0)


def make_long(top: Path) -> list[Path]:
    """Return less than `MOST` names, which have long paths."""
    top = top.joinpath(*["x" * 250] * 4)
    top.mkdir(parents=True)
    made = [top / f"{number}" for number in range(10)]
    for each in made:
        each.touch()
    return made


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("hints", [EVERYTHING, Hints(paths={b"x" * 250})])
def test_long_names_are_refused_until_there_are_fewer(
    journal: Journal, hints: Hints
) -> None:
    """Each path of a commit is in memory several times."""
    journal.record(journal.look(EVERYTHING), (1, 1))
    made = make_long(journal.live)
    with pytest.raises(BackendError, match="the last one was 'xxxx"):
        journal.record(journal.look(hints), (1, 2))
    for each in made:
        each.unlink()
    journal.record(journal.look(hints), (1, 2))


@pytest.mark.usefixtures("short")
def test_names_that_come_one_by_one_are_counted(journal: Journal) -> None:
    """Hints lead to each alone, and to all together never."""
    made = make_long(journal.live)
    for each in made:
        each.unlink()
    journal.record(journal.look(EVERYTHING), (1, 1))
    with pytest.raises(BackendError, match="have more than 0 MiB together"):
        for number, each in enumerate(made):
            each.touch()
            path = os.fsencode(each.relative_to(journal.live))
            journal.record(journal.look(Hints(paths={path})), (1, 2 + number))


@pytest.mark.usefixtures("short")
def test_of_a_directory_no_long_names_are_kept(tmp_path: Path) -> None:
    for number in range(MOST):
        (tmp_path / f"{number:0200}").touch()
    with (
        opened(tmp_path) as top,
        pytest.raises(OSError, match="a directory has long names"),
    ):
        list(walk(top, names_max=MOST))


def test_of_linked_files_no_long_paths_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_names, "_BYTES_MAX", 1000)
    (tmp_path / "one").mkdir()
    for number in range(MOST):
        (first := tmp_path / f"one/{number:060}").touch()
        os.link(first, tmp_path / f"one/{number:061}")
    (outbox := tmp_path / "outbox").mkdir()
    with pytest.raises(CopyError, match="too many long paths of linked files"):
        fill(tmp_path / "one", all_known(tmp_path / "one"), outbox)
