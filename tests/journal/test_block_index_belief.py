"""A block index is believed for its commit, its file and its boot, and else never."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.system import index_file
from backends.system.index_file import opened_index
from backends.system.ranges import BLOCK_BYTES
from tests.support.searched import NAME, Volume, volume_in

MIB = 2**20


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    with volume_in(tmp_path, os.urandom(3 * MIB + 5000)) as made:
        yield made


def test_an_index_counts_only_for_its_commit_and_file(volume: Volume) -> None:
    right = {"inode": volume.inode, "base": volume.commit, "data": volume.data}
    for wrong in ({"base": (1, 1)}, {"base": (2, 0)}, {"inode": volume.inode + 1}):
        assert volume.searching.find(NAME, **{**right, **wrong}) is None
        assert not volume.data.exists()
    assert volume.searching.find(NAME, **right) is not None
    # Nobody has kept it.
    assert volume.searching.find(NAME, **right) is None


def test_one_that_nobody_kept_is_made_anew(volume: Volume) -> None:
    volume.write(0, b"x")
    assert volume.ask([]) is not None
    assert volume.ask([]) is None
    changed = volume.searching.index(NAME, inode=volume.inode, base=volume.commit)
    assert changed is None
    volume.indexes.keep(NAME, volume.commit)
    volume.copy = volume.file.read_bytes()
    volume.write(MIB, b"y")
    assert volume.find().sent == [(MIB, 4096)]


def test_what_was_read_for_a_commit_that_failed_is_none_of_the_next(
    volume: Volume,
) -> None:
    assert volume.ask([]) is not None
    volume.write(0, b"x")
    assert volume.ask([]) is None
    volume.indexes.keep(NAME, (1, 1))
    volume.commit = (1, 1)
    assert volume.ask([]) is None


def test_a_copy_of_the_file_leads_on_too(volume: Volume) -> None:
    volume.write(5 * BLOCK_BYTES, b"y")
    (volume.live / "copy").write_bytes(volume.file.read_bytes())
    path = volume.indexes.file(b"copy")
    volume.indexes.file(NAME).rename(path)
    changed = volume.searching.index(b"copy", inode=volume.inode, base=volume.commit)
    assert changed == [(5 * BLOCK_BYTES, BLOCK_BYTES)]


def restarted() -> str:
    """Return another boot's identity."""
    return "00000000-0000-4000-8000-000000000001"


def is_believed(volume: Volume) -> bool:
    with opened_index(volume.indexes.file(NAME)) as index:
        header = index and index.header()
        return header is not None and header.is_of(volume.commit, volume.inode)


def test_another_boot_does_not_believe_it(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_believed(volume)
    monkeypatch.setattr(index_file, "boot_id", restarted)
    assert not is_believed(volume)
    volume.indexes.seal()
    assert not is_believed(volume)
    volume.indexes.keep(NAME, volume.commit)
    assert not volume.indexes.file(NAME).exists()


def test_one_that_is_whole_is_kept_in_its_own_boot_alone(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert volume.ask([]) is not None
    monkeypatch.setattr(index_file, "boot_id", restarted)
    volume.indexes.keep(NAME, volume.commit)
    assert not volume.indexes.file(NAME).exists()


def test_a_sealed_one_counts_in_every_boot(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume.indexes.seal()
    with monkeypatch.context() as patch:
        patch.setattr(index_file, "boot_id", restarted)
        assert is_believed(volume)
        volume.indexes.keep(NAME, volume.commit)
        assert is_believed(volume)
    volume.write(0, b"x")
    assert volume.find().sent == [(0, 4096)]
    monkeypatch.setattr(index_file, "boot_id", restarted)
    assert not is_believed(volume)


def test_a_seal_is_broken_durably_before_anything_is_written(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power failure left new tags under the old header."""
    calls: list[str] = []
    flush, write = os.fdatasync, os.pwrite
    monkeypatch.setattr(os, "fdatasync", lambda at: (calls.append("flush"), flush(at)))
    monkeypatch.setattr(
        os, "pwrite", lambda *each: (calls.append("write"), write(*each))[1]
    )
    with opened_index(volume.indexes.file(NAME)) as index:
        index.begin(index.header())
        assert calls == ["write"]
        index.put(index.header()._replace(state=index_file.KEPT, commit=(1, 0)))
        calls.clear()
        index.seal()
        assert calls == ["flush", "write", "flush"]
        index.begin(index.header())
        assert calls[3:] == ["write", "flush"]


@pytest.mark.parametrize("damage", [b"", b"\0" * 4096, b"x" * 5000])
def test_a_damaged_header_is_not_believed(volume: Volume, damage: bytes) -> None:
    index = volume.indexes.file(NAME)
    index.write_bytes(damage + index.read_bytes()[len(damage) :] if damage else b"")
    assert volume.ask([]) is None
    volume.indexes.keep(NAME, volume.commit)
    assert not index.exists()


def test_indexes_are_private_and_go_when_nobody_needs_them(volume: Volume) -> None:
    index = volume.indexes.file(NAME)
    assert index.stat().st_mode & 0o777 == 0o600
    assert index.parent.stat().st_mode & 0o777 == 0o700
    volume.indexes.forget(NAME)
    assert not index.exists()
    assert volume.ask([]) is None
