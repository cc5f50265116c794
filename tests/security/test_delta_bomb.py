"""A delta of an owner that means harm: a small file that would take much memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.rsync.journal.delta import Delta, Header, write_delta
from backends.rsync.journal.journal import Journal
from tests.support.journal_trees import VOLUME

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
