"""
Stores through a mapping: each of them is found, although no call and no time tells.

On ext4 the first store into a clean page moves the file's times, and those that follow
into the same page move nothing until the page was written out. Source: mmap(2).
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.rsync.journal.journal import EVERYTHING, Journal
from tests.support.journal_trees import VOLUME
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.watching import make_root

SIZE = 16 * mmap.PAGESIZE
# Times that are younger than this are looked at again anyway.
SETTLED_S = 0.3


@pytest.fixture(scope="module", params=["ext4", "xfs", "btrfs"])
def disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    enter_private_mounts()
    with loop_filesystem(tmp_path_factory.mktemp("disk"), request.param) as disk:
        yield disk


def sent(journal: Journal, number: int) -> bytes:
    """Return what of `db` is sent as commit 1.*number*, b"" if nothing is."""
    changes = journal.look(EVERYTHING)
    if b"db" not in [each.entry.path for each in changes.changed]:
        return b""
    since = journal.commit()
    journal.record(changes, (1, number))
    package = journal.pack(since if number > 1 else None, only=[b"db"])
    try:
        return (package.directory / "tree/db").read_bytes()
    finally:
        journal.unpack()


@pytest.mark.parametrize("at", [0, 5 * mmap.PAGESIZE + 7])
def test_a_store_into_a_page_that_was_sent_dirty_is_sent(disk: Path, at: int) -> None:
    home = disk / f"home-{at}"
    home.mkdir()
    make_root(home / "live")
    file = home / "live/db"
    file.write_bytes(bytes(SIZE))
    os.sync()
    journal = Journal(home, VOLUME)
    descriptor = os.open(file, os.O_RDWR)
    mapped = mmap.mmap(descriptor, SIZE)
    try:
        assert sent(journal, 1)
        for number, letter in enumerate((b"A", b"B", b"C"), start=2):
            mapped[at : at + 5] = 5 * letter
            time.sleep(SETTLED_S)
            assert sent(journal, number)[at : at + 5] == 5 * letter
    finally:
        mapped.close()
        os.close(descriptor)
        journal.close()
