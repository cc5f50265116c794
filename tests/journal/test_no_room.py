"""A commit for which the disk has no room is an error of storage: it is told of."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.errors import RemoraError
from backends.rsync.journal.journal import EVERYTHING, Journal
from tests.support.journal_trees import VOLUME


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Inside the block no file can be made longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_delta_that_finds_no_room(tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    journal = Journal(tmp_path, VOLUME)
    for number in range(1000):
        (journal.live / f"{number:0250}").touch()
    journal.record(journal.look(EVERYTHING), (1, 1))
    with (
        files_of_at_most(200_000),
        pytest.raises(RemoraError, match="cannot write to"),
    ):
        journal.pack(None)
    journal.close()
    assert not (tmp_path / "outbox").exists()
