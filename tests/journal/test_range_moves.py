"""Ranges lead every member on right, whoever was the owner, and whoever was away."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.rsync.journal import base_clones, large_files
from backends.rsync.journal.journal import EVERYTHING, Journal
from tests.support.file_fates import LARGE, PART, SIZE
from tests.support.journal_trees import VOLUME, carry, replicate, send
from tests.support.large_files import make_home, mounted, write_at

KINDS = ("ext4", "xfs", "btrfs")


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_files, "LARGE_BYTES", LARGE)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with mounted(tmp_path_factory, *KINDS) as made:
        yield made


def copies(disk: Path, kind: str) -> tuple[Journal, Journal, Journal]:
    """Return three copies; of the first two's large file ranges are known."""
    owner, member, third = (Journal(make_home(disk, kind), VOLUME) for _ in range(3))
    (owner.live / "db").write_bytes(os.urandom(SIZE))
    replicate(owner, member)
    write_at(owner.live / "db", 0, b"settled")
    replicate(owner, member)
    return owner, member, third


def led_on(owner: Journal, member: Journal) -> bool:
    """Bring the commit over as a redo file; return whether both are the same."""
    package = owner.pack(member.commit())
    assert package.names == b"delta\0redo/db\0"
    assert carry(package, member) == []
    owner.unpack()
    member.apply()
    return (member.live / "db").read_bytes() == (owner.live / "db").read_bytes()


def commit(owner: Journal) -> None:
    time.sleep(0.15)  # the times of its files are believed
    epoch, number = owner.commit()
    owner.record(owner.look(EVERYTHING), (epoch, number + 1))


def test_what_a_new_owner_undoes_is_sent(disks: dict[str, Path]) -> None:
    """It compares with a clone that is older than the commit of the member."""
    first, second, _ = copies(disks["xfs"], "xfs")
    before = (first.live / "db").read_bytes()[PART : PART + 9000]
    write_at(first.live / "db", PART, os.urandom(9000))
    commit(first)
    assert led_on(first, second)
    write_at(second.live / "db", PART, before)
    write_at(second.live / "db", 3 * PART, b"new")
    second.record(second.look(EVERYTHING), (2, 1))
    assert led_on(second, first)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_what_was_cut_off_between_two_bases_is_sent(
    kind: str, disks: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The redo file is made for the older one, and the file was cut since."""
    monkeypatch.setattr(base_clones, "_YOUNG_NS", 0)
    first, second, third = copies(disks[kind], kind)
    first.pack(None, only=[b"db", b""])
    assert carry(first.repack(None), third) == []
    first.unpack()
    third.apply()
    os.truncate(first.live / "db", SIZE - PART)
    commit(first)
    assert led_on(first, second)
    write_at(first.live / "db", PART, os.urandom(5000))
    commit(first)
    first.pack(second.commit(), third.commit())
    assert carry(first.repack(second.commit()), second) == []
    first.unpack()
    second.apply()
    os.truncate(second.live / "db", SIZE)
    second.record(second.look(EVERYTHING), (2, 1))
    assert led_on(second, third)


@pytest.mark.parametrize("kind", KINDS)
def test_what_only_a_member_that_was_filled_has_is_searched(
    kind: str, disks: dict[str, Path]
) -> None:
    """Its files were sent as they lay there, and no other member was due."""
    owner, _, filled = copies(disks[kind], kind)
    before = (owner.live / "db").read_bytes()[PART : PART + 9000]
    write_at(owner.live / "db", PART, os.urandom(9000))
    commit(owner)
    package = owner.pack(None)
    assert package.names == b"delta\0"
    send(owner.home, filled.staging.tree(), [b"live/./db"])
    assert carry(package, filled) == []
    owner.unpack()
    filled.apply()
    write_at(owner.live / "db", PART, before)
    commit(owner)
    assert led_on(owner, filled)
