"""The manifest: what it says after each commit, and what happened since another."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from backends.errors import BackendError
from backends.rsync.journal import manifest as module
from backends.rsync.journal.entries import Entry, Known
from backends.rsync.journal.manifest import Manifest
from tests.support.journal_trees import bare


def known(path: bytes, **fields: object) -> Known:
    inode = fields.pop("inode", 7)
    ctime_ns = fields.pop("ctime_ns", 5)
    values = {"kind": "file", "mode": 0o644, "uid": 1, "gid": 2, "mtime_ns": 3}
    return Known(Entry(path, **values | fields), inode, ctime_ns)


def tree(*paths: bytes) -> list[Known]:
    return [known(path, inode=number) for number, path in enumerate(paths, 1)]


def paths(rows: Iterator[Known]) -> list[bytes]:
    return [row.entry.path for row in rows]


def happened(manifest: Manifest, base: tuple[int, int]) -> tuple[list, list] | None:
    found = manifest.since(base)
    if found is None:
        return None
    return [entry.path for entry in found[0]], list(found[1])


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    made = Manifest(tmp_path / "manifest")
    yield made
    made.close()


def test_a_new_one_is_empty(manifest: Manifest) -> None:
    assert manifest.commit() == manifest._horizon == (0, 0)
    assert (manifest.get(b""), list(manifest.all())) == (None, [])
    assert (manifest.count(), manifest.size_bytes()) == (0, 0)
    assert manifest.with_inode(1) == []
    assert happened(manifest, (0, 0)) == ([], [])


def test_every_field_comes_back_after_a_restart(tmp_path: Path) -> None:
    rows = [
        known(b"", kind="directory", mode=0o1777, inode=2**64 - 1, ctime_ns=1),
        known(b"a\n\xff", size=2**63 - 1, attributes="0f", mtime_ns=-(2**63)),
        known(b"b", size=2**63 - 1, inode=2**63),
        known(b"device", kind="block", device=2**32 - 1),
        known(b"link", kind="link", target=b"\xfe/\n"),
        known(b"two", links=2**64 - 2, inode=2**64 - 2),
    ]
    first = Manifest(tmp_path / "manifest")
    older = msgspec.structs.replace(
        rows[-1], entry=msgspec.structs.replace(rows[-1].entry, commit=(2, 9))
    )
    first.record([older, *rows[:-1]], [], commit=(3, 4))
    first.close()
    again = Manifest(tmp_path / "manifest")
    found = list(again.all())
    assert bare(found) == rows
    # Only the last row says itself which commit it is from.
    written = [row.entry.commit for row in found]
    assert written == [(3, 4)] * (len(rows) - 1) + [(2, 9)]
    assert [again.get(row.entry.path) for row in rows] == found
    assert (again.commit(), again._horizon) == ((3, 4), (3, 4))
    assert bare(again.with_inode(2**63)) == [rows[2]]
    assert again.size_bytes() == pytest.approx(2**64)
    assert (tmp_path / "manifest").stat().st_mode & 0o777 == 0o600
    again.close()


def test_below_is_what_lies_in_a_directory(manifest: Manifest) -> None:
    below = (b"a/\xff", b"a/b", b"a/b/c")
    manifest.record(
        tree(b"", b"a", *below, b"a!", b"a0", b"ab", b"\xff\xff"), [], commit=(1, 1)
    )
    assert paths(manifest.below(b"a")) == sorted(below)
    assert paths(manifest.below(b"")) == sorted(
        [*below, b"a", b"a!", b"a0", b"ab", b"\xff\xff"]
    )
    assert paths(manifest.all())[:2] == [b"", b"a"]
    assert paths(manifest.below(b"a/b/c")) == []


def test_all_names_of_a_file_are_found_by_this_nodes_number(manifest: Manifest) -> None:
    rows = [known(b"a", links=99, inode=5), known(b"b", links=99, inode=5)]
    alone, directory = known(b"c", inode=6), known(b"d", kind="directory", inode=6)
    manifest.record([*rows, alone, directory], [], commit=(1, 1))
    assert paths(manifest.with_inode(5)) == [b"a", b"b"]
    # 99 was another node's number; here it may be another file's.
    assert {row.entry.links for row in manifest.with_inode(5)} == {5}
    assert bare(manifest.with_inode(6)) == [alone]
    manifest.touch([known(b"a", inode=8), known(b"b", inode=8)])
    assert {row.entry.links for row in manifest.with_inode(8)} == {8}


def test_what_happened_since_each_commit(manifest: Manifest) -> None:
    manifest.record(tree(b"", b"a", b"b", b"c"), [], commit=(1, 1))
    manifest.record(tree(b"b", b"d"), [b"c"], commit=(1, 2))
    manifest.record(tree(b"b/x"), [b"a"], commit=(2, 1))
    assert happened(manifest, (2, 1)) == ([], [])
    assert happened(manifest, (1, 2)) == ([b"b/x"], [b"a"])
    assert happened(manifest, (1, 7)) == ([b"b/x"], [b"a"])
    assert happened(manifest, (1, 1)) == ([b"b", b"b/x", b"d"], [b"a", b"c"])
    # Before the first commit things may have been deleted that nobody noted.
    assert happened(manifest, (1, 0)) is None
    assert happened(manifest, (2, 2)) is None


def test_a_deleted_directory_takes_all_below_along(manifest: Manifest) -> None:
    manifest.record(tree(b"", b"a", b"a!", b"a/b", b"a/b/c"), [], commit=(1, 1))
    manifest.record([], [b"a"], commit=(1, 2))
    assert paths(manifest.all()) == [b"", b"a!"]
    assert happened(manifest, (1, 1)) == ([], [b"a"])


def test_a_directory_that_comes_back_has_not_what_it_had(manifest: Manifest) -> None:
    manifest.record(tree(b"", b"a", b"a/old", b"a/kept"), [], commit=(1, 1))
    manifest.record([], [b"a"], commit=(1, 2))
    manifest.record(tree(b"a", b"a/kept"), [], commit=(1, 3))
    assert happened(manifest, (1, 1)) == ([b"a", b"a/kept"], [b"a/old"])
    assert happened(manifest, (1, 2)) == ([b"a", b"a/kept"], [])


def test_a_path_that_is_deleted_and_written_at_once_exists(manifest: Manifest) -> None:
    manifest.record(tree(b"", b"a", b"a/old"), [], commit=(1, 1))
    manifest.record(tree(b"a"), [b"a", b"a/old"], commit=(1, 2))
    assert happened(manifest, (1, 1)) == ([b"a"], [b"a/old"])


def test_what_is_deleted_unknown_is_passed_on(manifest: Manifest) -> None:
    manifest.record(tree(b""), [], commit=(1, 1))
    manifest.record([], [b"never/seen"], commit=(1, 2))
    assert happened(manifest, (1, 1)) == ([], [b"never/seen"])


def test_recording_twice_is_recording_once(manifest: Manifest) -> None:
    manifest.record(tree(b"", b"a", b"b"), [], commit=(1, 1))
    for _ in range(2):
        manifest.record(tree(b"b"), [b"a"], commit=(1, 2))
        assert happened(manifest, (1, 1)) == ([b"b"], [b"a"])
        assert paths(manifest.all()) == [b"", b"b"]


def test_an_older_commit_is_refused(manifest: Manifest) -> None:
    manifest.record(tree(b""), [], commit=(2, 1))
    with pytest.raises(BackendError, match="older"):
        manifest.record(tree(b"a"), [b""], commit=(1, 9))
    assert paths(manifest.all()) == [b""]
    assert manifest.commit() == (2, 1)


def test_what_fails_half_way_has_not_happened(manifest: Manifest) -> None:
    manifest.record(tree(b"", b"a", b"b"), [], commit=(1, 1))

    def broken() -> Iterator[Known]:
        yield from tree(b"b", b"c")
        raise KeyError("torn")

    with pytest.raises(KeyError):
        manifest.record(broken(), [b"a"], commit=(1, 2))
    assert paths(manifest.all()) == [b"", b"a", b"b"]
    assert happened(manifest, (1, 1)) == ([], [])
    manifest.record(tree(b"c"), [], commit=(1, 2))
    assert happened(manifest, (1, 1)) == ([b"c"], [])


def test_a_name_that_an_earlier_commit_brought_back_is_not_deleted(
    manifest: Manifest,
) -> None:
    """A member that missed that commit gets it with a later one."""
    manifest.record(tree(b"", b"d"), [], commit=(5, 1))
    manifest.record([], [b"d"], commit=(5, 2))
    [back] = tree(b"d")
    entry = msgspec.structs.replace(back.entry, commit=(5, 3))
    manifest.record([msgspec.structs.replace(back, entry=entry)], [], commit=(5, 4))
    assert happened(manifest, (5, 2)) == ([b"d"], [])
    assert happened(manifest, (5, 1)) == ([b"d"], [])


def test_touching_is_no_change(manifest: Manifest) -> None:
    manifest.record(tree(b"", b"a"), [], commit=(1, 1))
    manifest.touch([known(b"a", inode=77, ctime_ns=88), known(b"not there")])
    row = manifest.get(b"a")
    assert row is not None
    assert bare([row]) == [known(b"a", inode=77, ctime_ns=88)]
    assert row.entry.commit == (1, 1)
    assert happened(manifest, (1, 1)) == ([], [])
    assert manifest.count() == 2


def test_old_tombstones_are_forgotten_by_whole_commits(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOMBSTONES_MAX", 4)
    names = [b"%d" % number for number in range(9)]
    manifest.record(tree(b"", *names), [], commit=(1, 1))
    manifest.record([], names[0:2], commit=(1, 2))
    manifest.record([], names[2:4], commit=(1, 3))
    assert manifest._horizon == (1, 1)
    manifest.record([], names[4:5], commit=(1, 4))
    assert manifest._horizon == (1, 2)
    assert happened(manifest, (1, 1)) is None
    assert happened(manifest, (1, 2)) == ([], names[2:5])


def test_the_newest_commits_tombstones_stay(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every member would be sent everything after one large removal."""
    monkeypatch.setattr(module, "TOMBSTONES_MAX", 4)
    manifest.record(
        tree(b"", b"a", *(b"a/%d" % number for number in range(9)), b"b"),
        [],
        commit=(1, 1),
    )
    manifest.record([], [b"b"], commit=(1, 2))
    manifest.record([], [b"a"], commit=(1, 3))
    assert happened(manifest, (1, 2)) == ([], [b"a"])
    assert happened(manifest, (1, 1)) is None
    manifest.record(tree(b"c"), [], commit=(1, 4))
    assert manifest._horizon == (1, 3)


@pytest.mark.parametrize("content", [b"not a database" * 99, b"\0" * 4096])
def test_a_file_that_cannot_be_read_is_told_and_discarded(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "manifest"
    path.write_bytes(content)
    with pytest.raises(BackendError, match="next scan makes it anew"):
        Manifest(path)
    (tmp_path / "manifest-journal").write_bytes(b"old")
    Manifest.discard(path)
    assert list(tmp_path.iterdir()) == []
    Manifest(path).close()


def test_the_version_before_is_led_on(tmp_path: Path, manifest: Manifest) -> None:
    manifest.record(tree(b"", b"a"), [], commit=(1, 1))
    manifest.close()
    with closing(sqlite3.connect(tmp_path / "manifest")) as old:
        for column in ("alike_epoch", "alike_seq"):
            old.execute(f"ALTER TABLE entries DROP COLUMN {column}")
        old.execute("PRAGMA user_version = 1")
    for _ in range(2):
        with closing(Manifest(tmp_path / "manifest")) as led_on:
            assert bare(led_on.all()) == tree(b"", b"a")
            assert led_on.commit() == (1, 1)
            row = msgspec.structs.replace(known(b"b"), alike_since=(1, 1))
            led_on.record([row], [], commit=(1, 2))
            found = led_on.get(b"b")
            assert found
            assert found.alike_since == (1, 1)
            led_on.record([], [b"b"], commit=(1, 2))
            assert led_on.since((1, 1)) is not None
        with closing(sqlite3.connect(tmp_path / "manifest")) as old:
            old.execute("UPDATE state SET seq = 1")
            old.commit()


def test_a_newer_version_is_not_touched(tmp_path: Path, manifest: Manifest) -> None:
    manifest._connection.execute("PRAGMA user_version = 3")
    with pytest.raises(BackendError, match="version 3"):
        Manifest(tmp_path / "manifest")


def test_a_damaged_page_is_an_error_and_not_an_absence(tmp_path: Path) -> None:
    path = tmp_path / "manifest"
    whole = Manifest(path)
    whole.record(tree(b"", *(b"%d" % n for n in range(5000))), [], commit=(1, 1))
    whole.close()
    content = path.read_bytes()
    path.write_bytes(content[: 4096 * 8] + b"\xa5" * (len(content) - 4096 * 8))
    damaged = Manifest(path)
    with pytest.raises(BackendError, match="next scan makes it anew"):
        list(damaged.all())
    damaged.close()


def test_reading_over_a_commit_is_an_error(manifest: Manifest) -> None:
    """A delta of two commits' halves would be neither."""
    manifest.record(tree(*(b"%05d" % n for n in range(3000))), [], commit=(1, 1))
    rows = manifest.all()
    next(rows)
    manifest.touch(tree(b"00001"))
    for _ in range(1500):
        next(rows)
    manifest.record([], [b"00002"], commit=(1, 2))
    with pytest.raises(BackendError, match="while it was read"):
        list(rows)


def test_several_threads_may_use_it(manifest: Manifest) -> None:
    manifest.record(tree(b"", *(b"%d" % n for n in range(2000))), [], commit=(1, 1))
    failures: list[BaseException] = []

    def use(number: int) -> None:
        try:
            for turn in range(5):
                manifest.touch([known(b"%d" % number, ctime_ns=turn)])
                assert len(list(manifest.all())) == 2001
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_after_closing_it_says_so(manifest: Manifest) -> None:
    manifest.record(tree(*(b"%d" % n for n in range(2000))), [], commit=(1, 1))
    rows = manifest.all()
    next(rows)
    manifest.close()
    manifest.close()
    with pytest.raises(BackendError):
        list(rows)
    with pytest.raises(BackendError):
        manifest.get(b"1")
