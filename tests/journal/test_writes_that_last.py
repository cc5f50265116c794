"""
A write that lasts is sent whole, though it moves the times of its file only once.

One of a gigabyte lasts, a direct one that waits for its disk, and any where memory has
no room for what is dirty. Here it waits for its own bytes, which come later.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.rsync.journal import large_files
from backends.rsync.journal.base_leads import copy_lead
from backends.rsync.journal.early_leads import EarlyLeads
from backends.rsync.journal.journal import Journal
from backends.system.beneath import Beneath
from tests.support.file_fates import LARGE, PART, SIZE
from tests.support.journal_trees import VOLUME, replicate
from tests.support.large_files import make_home, mounted, settle
from tests.support.lasting_write import lasting_write

# Until its times are believed.
SETTLED_S = 0.3
BOTH = pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["cached", "direct"])


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(tmp_path_factory, "xfs") as disks:
        yield disks["xfs"]


@BOTH
def test_it_goes_on_when_its_file_is_looked_at(
    disk: Path, flags: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_files, "LARGE_BYTES", LARGE)
    owner, member = (Journal(make_home(disk, "xfs"), VOLUME) for _ in "12")
    file = owner.live / "db"
    file.write_bytes(os.urandom(SIZE))
    replicate(owner, member)
    settle(owner, member)
    with lasting_write(file, PART, b"late", flags=flags) as go_on:
        time.sleep(SETTLED_S)
        end = threading.Timer(SETTLED_S, go_on)
        end.start()
        replicate(owner, member)
        end.join()
    replicate(owner, member)
    assert (member.live / "db").read_bytes() == file.read_bytes()
    for each in (owner, member):
        each.close()


@BOTH
def test_it_goes_on_in_a_moment(disk: Path, flags: int) -> None:
    """A process that is frozen writes nothing more, but its disk does."""
    home = make_home(disk, "xfs")
    path = home / "db"
    path.write_bytes(os.urandom(SIZE))
    early = EarlyLeads(home)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        early.add(b"db", file.fileno(), base=None, content=(1, 1))
        with lasting_write(path, PART, b"late", flags=flags) as go_on:
            end = threading.Timer(SETTLED_S, go_on)
            end.start()
            lead = early.take(b"db", file.fileno())
            end.join()
    assert lead is not None
    with Beneath(home / "made") as tree:
        copy_lead(tree, lead)
    assert (home / "made/db").read_bytes() == path.read_bytes()
