"""Opening a volume's manifest: what is passing is waited out, what is damaged goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.errors import BackendError
from backends.rsync.journal import entries
from backends.rsync.journal.entries import Commit
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.packing import Package
from backends.rsync.journal.scan import Changes
from backends.rsync.journal.watch import Hints
from backends.system.clock import Deadline
from plugin.ownership.copy_states import CopyStates
from plugin.replication.journals import Journals
from tests.support.journal_trees import VOLUME, carry, shape
from tests.support.processes import descriptors
from tests.support.watching import make_root


@pytest.fixture
def journal_of(tmp_path: Path) -> Callable[[], Journal]:
    home = tmp_path / "home"
    home.mkdir()
    make_root(home / "live")
    (home / "live/file").write_bytes(b"1")
    return lambda: Journal(home, VOLUME)


def test_a_passing_error_discards_no_manifest(
    journal_of: Callable[[], Journal],
) -> None:
    with closing(journal_of()) as journal:
        journal.record(journal.look(EVERYTHING), (7, 12))
    failed = 0
    for more in range(12):
        with descriptors(more):
            try:
                journal = journal_of()
            except (BackendError, OSError):
                failed += 1
            else:
                journal.close()
        with closing(journal_of()) as journal:
            assert journal.commit() == (7, 12), f"{more} descriptors were left"
    assert failed


def commit(owner: Journal, seq: int, base: Commit | None) -> Package:
    """Return the owner's next commit, packed, with all that is new since *base*."""
    changes = owner.look(EVERYTHING)
    owner.record(changes, (1, seq))
    paths = [each.entry.path for each in changes.changed]
    return owner.pack(base, only=[] if base else paths)


def test_a_commit_is_applied_although_its_manifest_is_damaged_meanwhile(
    journal_of: Callable[[], Journal],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its bytes are all here. What else is here is compared before the next commit."""
    monkeypatch.setattr(entries, "WRITE_NS", 0)  # nothing is sent once more
    (tmp_path / "owner").mkdir()
    make_root(tmp_path / "owner/live")
    with closing(Journal(tmp_path / "owner", VOLUME)) as owner:
        (owner.live / "below").mkdir()
        for name in ("file", "below/kept", "below/goes"):
            (owner.live / name).write_text(name)
        with closing(journal_of()) as member:
            assert carry(commit(owner, 1, None), member) == []
            member.apply()
            (owner.live / "file").write_text("other")
            times = (owner.live / "below").stat().st_mtime_ns
            (owner.live / "below/goes").unlink()
            os.utime(owner.live / "below", ns=(times, times))
            assert carry(commit(owner, 2, (1, 1)), member) == []
        (member.home / "manifest.db").write_bytes(b"not a database" * 99)
        with closing(journal_of()) as member:
            member.apply()
            assert member.staging.marked() is None
            assert shape(member.live) == shape(owner.live)
            # It says that it knows nothing, and is sent all of it.
            assert member.commit() == (0, 0)
            (owner.live / "file").write_text("third")
            with pytest.raises(BackendError, match="a full one is needed"):
                carry(commit(owner, 3, (1, 2)), member)
            missing = carry(owner.pack(None), member)
            assert b"below/kept" in missing
            assert carry(owner.pack(None, only=missing), member) == []
            member.apply()
            assert member.commit() == (1, 3)
            assert shape(member.live) == shape(owner.live)


@pytest.mark.parametrize(
    "content", [b"not a database" * 99, None], ids=["damaged", "removed"]
)
def test_a_lost_manifest_has_all_names_looked_at_and_no_member_deletes_them(
    journal_of: Callable[[], Journal], tmp_path: Path, content: bytes | None
) -> None:
    """No hint tells of what lay there before; and a commit of nothing is refused."""
    (tmp_path / "member").mkdir()
    make_root(tmp_path / "member/live")
    with closing(Journal(tmp_path / "member", VOLUME)) as member:
        with closing(journal_of()) as owner:
            assert carry(commit(owner, 1, None), member) == []
            member.apply()
        manifest = owner.home / "manifest.db"
        manifest.unlink()
        if content is not None:
            manifest.write_bytes(content)
        with closing(journal_of()) as owner:
            changes = owner.look(Hints())
            owner.record(Changes([], [], []), (1, 2))
            with pytest.raises(BackendError, match="not even a root"):
                carry(owner.pack(None), member)
            assert {e.entry.path for e in changes.changed} == {b"", b"file"}
            owner.record(changes, (1, 3))
            assert carry(owner.pack(None, only=[b"file"]), member) == []
        member.apply()
        assert shape(member.live) == shape(owner.live)


def test_a_manifest_with_a_damaged_page_is_made_anew_by_the_next_use(
    journal_of: Callable[[], Journal],
) -> None:
    with closing(journal_of()) as journal:
        for number in range(2000):
            (journal.live / f"{number}").touch()
        journal.record(journal.look(EVERYTHING), (1, 1))
        home = journal.home
    content = bytearray((home / "manifest.db").read_bytes())
    half = len(content) // 2
    content[half:] = bytes(len(content) - half)
    (home / "manifest.db").write_bytes(content)
    place: Any = SimpleNamespace(copy_directory=lambda _: home)
    journals = Journals(place, CopyStates(lambda _: home))
    record: Any = SimpleNamespace(id=VOLUME, name="db", options={}, volume=lambda: None)
    with (
        pytest.raises(BackendError, match="cannot use the manifest"),
        journals.using(record, Deadline(10)) as journal,
    ):
        journal.look(EVERYTHING)
    with journals.using(record, Deadline(10)) as journal:
        assert journal.commit() == (0, 0)
        assert len(journal.look(EVERYTHING).changed) == 2002
