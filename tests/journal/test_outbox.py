"""Copies for all members of what containers are writing to."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends.rsync.journal import outbox
from backends.rsync.journal.entries import (
    DOUBTED,
    WRITE_NS,
    Known,
    certain_ns,
    look_at,
    untouched,
)
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.outbox import fill, require_space
from backends.system.beneath import Beneath
from backends.system.clock import wall_ns
from backends.system.copy_file import FileCopier
from backends.system.copying import CopyError
from tests.support.journal_trees import (
    all_known,
    check_rows,
    make_everything,
    shape,
)
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.replaced import number_used_again, replaced_when_opened


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "live"
    root.mkdir()
    return root


def chosen(root: Path, *paths: bytes) -> list[Known]:
    return [known for known in all_known(root) if known.entry.path in paths]


def test_everything_is_copied_as_it_is(tmp_path: Path, source: Path) -> None:
    make_everything(source)
    known = list(all_known(source))
    filled = fill(source, known, tmp_path / "out")
    assert shape(tmp_path / "out/tree") == shape(source)
    # The files are too young for their times to be believed.
    assert [row.entry for row in filled.entries] == [row.entry for row in known]
    check_rows(filled.entries, known)
    assert filled.gone == []
    assert (tmp_path / "out/tree/sparse").stat().st_blocks < 1000


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_files_are_written_out_without_a_flush_of_the_disk_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """That no store through a mapping is missed, `test_mappings.py` tells."""
    content, flushed = os.urandom(5000), list[int]()
    enter_private_mounts()
    with loop_filesystem(tmp_path, kind) as disk:
        live = disk / "live"
        live.mkdir()
        (live / "file").write_bytes(content)
        monkeypatch.setattr(os, "fdatasync", flushed.append)
        fill(live, all_known(live), disk / "out")
        assert content in (tmp_path / f"{kind}.image").read_bytes()
    assert not flushed


def test_contents_are_shared_where_the_filesystem_can(tmp_path: Path) -> None:
    enter_private_mounts()
    with loop_filesystem(tmp_path, "btrfs") as shared:
        live = shared / "live"
        live.mkdir()
        (live / "file").write_bytes(os.urandom(50 * 2**20))
        os.sync()
        before = os.statvfs(shared).f_bfree
        fill(live, all_known(live), shared / "out")
        os.sync()
        taken = (before - os.statvfs(shared).f_bfree) * os.statvfs(shared).f_frsize
        assert shape(shared / "out/tree") == shape(live)
        assert taken < 10 * 2**20


def test_paths_may_be_deeper_than_files_may_be_open(
    tmp_path: Path, source: Path
) -> None:
    deep = source.joinpath(*("d" * 200))
    deep.mkdir(parents=True)
    for name in ("one", "two"):
        (deep / name).write_text(name)
        (deep.parent / name).write_text(f"above {name}")
    filled = fill(source, all_known(source), tmp_path / "out")
    assert shape(tmp_path / "out/tree") == shape(source)
    assert filled.gone == []
    with Beneath(source) as tree:
        way = b"/".join([b"d"] * 200)
        assert look_at(tree, way + b"/one") is not None
        # A way that breaks off does not change where the next one leads.
        assert look_at(tree, way[:-2] + b"/none/one") is None
        found = look_at(tree, way + b"/two")
        assert found is not None
        assert found.entry.size == len("two")


def test_only_what_is_asked_for_is_copied(tmp_path: Path, source: Path) -> None:
    make_everything(source)
    (tmp_path / "out/tree/stale").mkdir(parents=True)
    filled = fill(source, chosen(source, b"deep/er/file", b"pipe"), tmp_path / "out")
    copied = shape(tmp_path / "out/tree")
    assert sorted(copied) == [b"", b"deep", b"deep/er", b"deep/er/file", b"pipe"]
    assert copied[b"deep/er"][0].mode == 0o700
    assert [each.entry.path for each in filled.entries] == [b"deep/er/file", b"pipe"]
    # Its other names were not given: it cannot be linked with them, and is looked at
    # again.
    first, _ = filled.entries
    assert first.entry.links == 0
    assert not untouched(first, (source / "deep/er/file").stat())


def test_what_has_vanished_is_told(tmp_path: Path, source: Path) -> None:
    make_everything(source)
    known = list(all_known(source))
    (source / "pipe").unlink()
    (source / "deep").rename(source / "elsewhere")
    filled = fill(source, known, tmp_path / "out")
    deep = {b"deep", b"deep/er", b"deep/er/file", b"deep/er/after-acl"}
    assert set(filled.gone) == deep | {b"pipe"}
    assert not (tmp_path / "out/tree/deep").exists()


class Disturbed(FileCopier):
    """Has something happen in the source after each copy of a file."""

    def __init__(self, disturb: Callable[[], object]) -> None:
        super().__init__()
        self.disturb = disturb

    def copy(self, *args: object, **kwargs: object) -> bool:
        done = super().copy(*args, **kwargs)  # type: ignore[arg-type]
        self.disturb()
        return done


def disturbed(monkeypatch: pytest.MonkeyPatch, disturb: Callable[[], object]) -> None:
    monkeypatch.setattr(outbox, "FileCopier", lambda **_: Disturbed(disturb))


def settle(file: Path) -> None:
    """Return when *file*'s times are old enough to be believed."""
    believed_s = file.stat().st_ctime + WRITE_NS / 10**9
    time.sleep(max(0, believed_s - time.time()) + 0.1)


def test_a_file_that_was_quiet_is_believed(tmp_path: Path, source: Path) -> None:
    (source / "log").write_text("quiet")
    settle(source / "log")
    filled = fill(source, chosen(source, b"log"), tmp_path / "out")
    assert list(filled.entries) == chosen(source, b"log")


def write_after_copies(
    monkeypatch: pytest.MonkeyPatch, file: Path, lines: Iterator[str]
) -> None:
    """Have the next of *lines* appended to *file* after each copy."""

    def write() -> None:
        with file.open("a") as opened:
            opened.write(next(lines, ""))

    disturbed(monkeypatch, write)


def test_a_small_file_that_holds_still_later_is_copied_then(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "log").write_text("")
    write_after_copies(monkeypatch, source / "log", iter(("one\n", "two\n")))
    fill(source, chosen(source, b"log"), tmp_path / "out")
    assert (tmp_path / "out/tree/log").read_text() == "one\ntwo\n"


@pytest.mark.parametrize("tries", [1, 4])
def test_a_file_that_never_holds_still_counts_as_changed(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    """A small one is copied four times, a large one once."""
    (source / "log").write_text("one\n")
    settle(source / "log")
    if tries == 1:
        monkeypatch.setattr(outbox, "_SMALL_MAX_BYTES", 1)
    write_after_copies(monkeypatch, source / "log", itertools.repeat("more\n"))
    filled = fill(source, chosen(source, b"log"), tmp_path / "out")
    copied = (tmp_path / "out/tree/log").read_text()
    assert copied == "one\n" + "more\n" * (tries - 1)
    # The entry is what the copy is.
    (known,) = filled.entries
    assert known.entry.size == len(copied)
    assert not untouched(known, (source / "log").stat())


def test_a_file_that_vanishes_while_it_is_copied_again_has_gone(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "log").write_text("one\n")

    def replace_by_directory() -> None:
        (source / "log").unlink(missing_ok=True)
        (source / "log").mkdir(exist_ok=True)

    disturbed(monkeypatch, replace_by_directory)
    filled = fill(source, chosen(source, b"log"), tmp_path / "out")
    assert [each.entry.kind for each in filled.entries] == ["directory"]
    assert (tmp_path / "out/tree/log").is_dir()


def test_a_young_file_is_doubted(tmp_path: Path, source: Path) -> None:
    """Kernels before 6.13 give the next write the same time; no look could tell."""
    (source / "db").write_bytes(b"2222")
    (known,) = fill(source, chosen(source, b"db"), tmp_path / "out").entries
    assert known.ctime_ns == DOUBTED
    assert not untouched(known, (source / "db").stat())


@pytest.mark.parametrize(("kind", "is_doubted"), [("ext4", True), ("xfs", False)])
def test_what_a_direct_write_may_still_write_to_is_doubted(
    tmp_path: Path, kind: str, *, is_doubted: bool
) -> None:
    """It moved the ctime when it began. To clone a file waits for its end."""
    enter_private_mounts()
    with loop_filesystem(tmp_path, kind) as disk:
        home = disk / "home"
        (home / "live").mkdir(parents=True)
        (home / "live/db").write_bytes(b"2222")
        time.sleep(0.3)  # longer than a tick of the clock
        (known,) = fill(
            home / "live", chosen(home / "live", b"db"), home / "out"
        ).entries
        assert (known.ctime_ns == DOUBTED) == is_doubted
        journal = Journal(home, "volume")
        journal.record(journal.look(EVERYTHING), (1, 1))
        assert bool(journal.look(EVERYTHING)) == is_doubted
        journal.close()


def test_a_time_that_a_write_under_way_may_have_moved_is_doubted() -> None:
    begun_ns = wall_ns()
    young_ns = begun_ns - WRITE_NS // 2
    assert certain_ns(young_ns, begun_ns, is_read=False) == young_ns
    assert certain_ns(young_ns, begun_ns, is_read=True) == DOUBTED


def test_swapping_directories_for_links_leads_nowhere(
    tmp_path: Path, source: Path
) -> None:
    secret = tmp_path / "secret"
    for directory in (source / "a", secret):
        directory.mkdir(parents=True)
    (secret / "file").write_text("secret")
    (source / "a/file").write_text("public")
    known = list(all_known(source))
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (source / "a").rename(source / "b")
            (source / "a").symlink_to(secret)
            (source / "a").unlink()
            (source / "b").rename(source / "a")

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        for number in range(50):
            out = tmp_path / f"out{number}"
            fill(source, known, out)
            if (out / "tree/a").is_symlink():
                continue
            if (out / "tree/a/file").exists():
                assert (out / "tree/a/file").read_text() == "public"
    finally:
        stop.set()
        swapping.join()


def test_a_new_file_with_the_number_of_an_old_one_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with number_used_again(tmp_path) as (live, copier):
        monkeypatch.setattr(outbox, "FileCopier", lambda **_: copier)
        filled = list(fill(live, all_known(live), tmp_path / "out").entries)
    for name in ("z1", "z2"):
        assert (tmp_path / "out/tree" / name).read_text() == "new"
    links = {each.entry.path: each.entry.links for each in filled}
    # To the manifest they are no names of a1.
    assert links[b"a1"] == links[b"a2"] > 0 == links[b"z1"] == links[b"z2"]


def test_a_file_that_came_before_the_copy_was_opened_has_no_other_names(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copier = replaced_when_opened(source)
    monkeypatch.setattr(outbox, "FileCopier", lambda **_: copier)
    fill(source, all_known(source), tmp_path / "out")
    assert (tmp_path / "out/tree/a1").read_text() == "new"
    assert (tmp_path / "out/tree/a2").read_text() == "old"


def test_room_is_asked_for_before(tmp_path: Path) -> None:
    require_space(tmp_path, 0)
    with pytest.raises(CopyError, match="free space") as caught:
        require_space(tmp_path, 2**60)
    assert caught.value.no_space
