"""Opening a volume's manifest: what is passing is waited out, what is damaged goes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.rsync.journal.journal import EVERYTHING, Journal
from tests.support.journal_trees import VOLUME, carry
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


def test_a_damaged_manifest_is_kept_while_a_commit_depends_on_it(
    journal_of: Callable[[], Journal], tmp_path: Path
) -> None:
    owner_home = tmp_path / "owner"
    owner_home.mkdir()
    make_root(owner_home / "live")
    with closing(Journal(owner_home, VOLUME)) as owner, closing(journal_of()) as member:
        for number, content in enumerate((b"1", b"22"), start=1):
            (owner.live / "file").write_bytes(content)
            owner.record(owner.look(EVERYTHING), (1, number))
            base = (1, number - 1) if number > 1 else None
            package = owner.pack(base, only=[] if base else [b"file"])
            assert carry(package, member) == []
            owner.unpack()
            if number == 1:
                member.apply()
        path = member.home / "manifest.db"
    whole = path.read_bytes()
    path.write_bytes(b"not a database" * 99)
    with pytest.raises(BackendError, match="cannot use the manifest"):
        journal_of()
    path.write_bytes(whole)
    with closing(journal_of()) as member:
        member.apply()
        assert member.commit() == (1, 2)
        assert (member.live / "file").read_bytes() == b"22"
