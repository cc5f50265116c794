"""Large files for tests: of a few blocks, and an owner and a member that have one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.rsync.journal import large_files
from backends.rsync.journal.journal import Journal
from tests.support.file_fates import LARGE, SIZE
from tests.support.journal_trees import VOLUME, replicate
from tests.support.large_files import make_home, mounted, settle


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a file count as large from LARGE bytes on."""
    monkeypatch.setattr(large_files, "LARGE_BYTES", LARGE)


@pytest.fixture(scope="module")
def xfs_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the module's XFS."""
    with mounted(tmp_path_factory, "xfs") as made:
        yield made["xfs"]


@pytest.fixture
def xfs_pair(xfs_disk: Path, small_is_large: None) -> Iterator[tuple[Journal, Journal]]:
    """Yield an owner and a member on XFS, which have the large file `db`."""
    owner, member = (Journal(make_home(xfs_disk, "xfs"), VOLUME) for _ in "12")
    (owner.live / "db").write_bytes(os.urandom(SIZE))
    replicate(owner, member)
    settle(owner, member)
    yield owner, member
    for each in (owner, member):
        each.close()
