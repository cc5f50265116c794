"""Leads from before a moment lead in it to what the files are then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.rsync.journal.base_leads import Lead, copy_lead
from backends.rsync.journal.early_leads import EarlyLeads
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.system import extents
from backends.system.beneath import Beneath
from backends.system.copy_file import clone
from backends.system.extents import Places
from tests.support.journal_trees import VOLUME, carry, replicate, shape
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.written_files import fallocate

MIB = 2**20


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    enter_private_mounts()
    with loop_filesystem(tmp_path_factory.mktemp("disk"), "xfs") as disk:
        yield disk


def change(live: Path, turn: int) -> None:
    """Write to large files in ways of their own, each *turn* elsewhere."""
    for path in live.iterdir():
        with path.open("r+b") as file:
            file.seek(turn * MIB + 5)
            file.write(os.urandom(10_000))
    with (live / "punched").open("r+b") as file:
        fallocate(file.fileno(), 1 | 2, turn * MIB, 64 * 1024)  # a hole, of that size
    os.truncate(live / "cut", 6 * MIB - turn * 5000)
    os.truncate(live / "grown", 6 * MIB + turn * 5000)
    (live / "replaced").unlink()
    (live / "replaced").write_bytes(os.urandom(5 * MIB + turn))


def test_they_are_led_on_in_the_moment(disk: Path, tmp_path: Path) -> None:
    home = tmp_path / "member"
    for live in (disk / "owner/live", home / "live"):
        live.mkdir(parents=True)
    owner, member = Journal(disk / "owner", VOLUME), Journal(home, VOLUME)
    for name in ("written", "punched", "cut", "grown", "replaced", "gone"):
        (owner.live / name).write_bytes(os.urandom(6 * MIB))
    replicate(owner, member)
    for turn in range(1, 4):
        change(owner.live, turn)
        owner.moments.expect([member.commit()])
        again = owner.moments.prepare(
            owner.look(EVERYTHING), owner.manifest, shares_blocks=True
        )
        change(owner.live, turn + 1)
        (owner.live / "gone").unlink(missing_ok=True)
        owner.moments.take(again, ())
        changes, expected = owner.moments.taken(), shape(owner.live)
        assert changes is not None
        owner.record(changes, (1, owner.commit()[1] + 1))
        change(owner.live, turn + 2)
        package = owner.pack(member.commit())
        assert owner.quality() == "snapshot"
        assert carry(package, member) == []
        member.apply()
        assert shape(member.live) == expected
    owner.close()
    member.close()
    assert not (disk / "owner/outbox").exists()


def test_one_has_what_the_file_has(disk: Path) -> None:
    """It is made of what the file was, of which the most is the same."""
    (disk / "base").write_bytes(os.urandom(5 * MIB))
    (disk / "file").write_bytes(os.urandom(6 * MIB))
    early = EarlyLeads(disk)
    with (disk / "file").open("r+b") as file, (disk / "base").open("rb") as base:
        early.add(b"path", file.fileno(), base=base.fileno(), content=(1, 1))
        assert b"path" in early
        file.write(b"since")
        file.flush()
        lead = early.take(b"path", file.fileno())
    assert b"path" not in early
    assert made_of(lead, disk) == (disk / "file").read_bytes()


def made_of(lead: Lead | None, disk: Path) -> bytes:
    """Return the content of the file that is made of *lead*."""
    assert lead is not None
    with Beneath(disk / "made") as tree:
        copy_lead(tree, lead)
    made = disk / "made" / os.fsdecode(lead.path)
    content = made.read_bytes()
    made.unlink()
    return content


def test_a_file_grows_while_its_clone_is_led_on(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By half a block, as whatever is appended to does all the time."""
    path = disk / "appended"
    path.write_bytes(os.urandom(MIB) + b"end")
    moved = extents.moved_ranges

    def grow(old: int, new: int, places: Places | None = None) -> object:
        with path.open("ab") as file:
            file.write(b"more")
            file.flush()
            os.fsync(file.fileno())
            found = moved(old, new, places)
            file.write(b"and more")
        return found

    with path.open("rb") as file, (disk / "base").open("w+b") as base:
        clone(file.fileno(), base.fileno())
        early = EarlyLeads(disk)
        monkeypatch.setattr(extents, "moved_ranges", grow)
        early.add(b"appended", file.fileno(), base=base.fileno(), content=(1, 1))
        monkeypatch.undo()
        lead = early.take(b"appended", file.fileno())
    assert made_of(lead, disk) == path.read_bytes()
