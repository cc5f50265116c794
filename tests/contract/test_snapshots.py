"""Snapshots, clones and restoring, as every backend must do them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from backends.base import Volume
from backends.errors import (
    BackendError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    VolumeBusyError,
)
from backends.system.copying import Copied, Destination, copy_tree
from tests.contract.conftest import Bench
from tests.support.processes import descriptors


def ignore(_copied: Copied) -> None:
    """Hear of progress and say nothing."""


def take(bench: Bench, volume: Volume, name: str) -> None:
    bench.backend.snapshots.create(volume, name, mounted_at=None, progress=ignore)


def restore(bench: Bench, volume: Volume, name: str, keep_as: str) -> None:
    bench.backend.snapshots.restore(
        volume, name, keep_as=keep_as, progress=ignore, exchanging=nullcontext()
    )


def clone(bench: Bench, source: Volume, name: str, snapshot: str = "") -> Volume:
    volume = bench.volume(name)

    def fill(destination: Destination) -> None:
        directory = bench.backend.data_directory(source, snapshot)
        copy_tree(directory, destination, progress=ignore)

    return bench.backend.create(volume, deadline_s=30, fill=fill)


def write(bench: Bench, volume: Volume, text: str) -> None:
    (bench.mount(volume) / "file").write_text(text)
    bench.unmount(volume)


def read(bench: Bench, volume: Volume) -> str:
    try:
        return (bench.mount(volume) / "file").read_text()
    finally:
        bench.unmount(volume)


def names(bench: Bench, volume: Volume) -> list[str]:
    return sorted(each.name for each in bench.backend.snapshots.all(volume))


def test_a_snapshot_stays_as_it_was(stored: Bench) -> None:
    volume = stored.created()
    write(stored, volume, "old")
    assert names(stored, volume) == []
    made = stored.backend.snapshots.create(
        volume, "monday", mounted_at=None, progress=ignore
    )
    assert (made.name, made.files, made.size_bytes) == ("monday", 1, 3)
    write(stored, volume, "new")
    data = stored.backend.data_directory(volume, "monday")
    assert (data / "file").read_text() == "old"
    stored.backend = stored.reopen()
    assert stored.backend.snapshots.all(volume) == [made]
    with pytest.raises(SnapshotExistsError, match="monday"):
        take(stored, volume, "monday")
    assert (data / "file").read_text() == "old"


def test_a_removed_snapshot_is_gone_and_its_space_free(stored: Bench) -> None:
    volume = stored.created()
    take(stored, volume, "one")
    take(stored, volume, "two")
    stored.backend.snapshots.remove(volume, "one")
    assert names(stored, volume) == ["two"]
    for act in (
        lambda: stored.backend.snapshots.remove(volume, "one"),
        lambda: stored.backend.data_directory(volume, "one"),
        lambda: restore(stored, volume, "one", "kept"),
    ):
        with pytest.raises(SnapshotNotFoundError, match="'one'"):
            act()
    assert stored.backend.collect_garbage(deadline_s=30) == 1


def test_restoring_keeps_what_the_volume_was(stored: Bench) -> None:
    volume = stored.created(mode="0750", uid="1000")
    write(stored, volume, "old")
    take(stored, volume, "monday")
    write(stored, volume, "new")
    restore(stored, volume, "monday", "kept")
    assert read(stored, volume) == "old"
    assert names(stored, volume) == ["kept", "monday"]
    data = stored.backend.data_directory(volume, "kept")
    assert (data / "file").read_text() == "new"
    shown = stored.mount(volume).stat()
    stored.unmount(volume)
    assert (shown.st_mode & 0o7777, shown.st_uid) == (0o750, 1000)
    restore(stored, volume, "kept", "kept-too")
    assert read(stored, volume) == "new"
    for name in ("monday", "kept", "kept-too"):
        stored.backend.snapshots.remove(volume, name)
    stored.backend.remove(volume, deadline_s=30)
    assert stored.backend.collect_garbage(deadline_s=30) == 4


def test_a_restore_that_fails_once_the_bytes_are_exchanged_keeps_both(
    stored: Bench,
) -> None:
    """The newest bytes are the kept ones by then: what fails throws nothing away."""
    volume = stored.created()
    write(stored, volume, "old")
    take(stored, volume, "monday")
    write(stored, volume, "newest")

    @contextmanager
    def exchanging() -> Iterator[None]:
        with descriptors(0):  # the exchange needs none, what follows does
            yield

    with suppress(BackendError):
        stored.backend.snapshots.restore(
            *(volume, "monday"),
            keep_as="kept",
            progress=ignore,
            exchanging=exchanging(),
        )
    stored.backend.collect_garbage(deadline_s=30)
    kept = stored.backend.data_directory(volume, "kept") / "file"
    assert (kept.read_text(), read(stored, volume)) == ("newest", "old")


def test_restoring_over_a_taken_name_changes_nothing(stored: Bench) -> None:
    volume = stored.created()
    write(stored, volume, "old")
    take(stored, volume, "monday")
    write(stored, volume, "new")
    with pytest.raises(SnapshotExistsError):
        restore(stored, volume, "monday", "monday")
    assert read(stored, volume) == "new"


def test_a_removal_does_not_take_snapshots_along(stored: Bench) -> None:
    volume = stored.created()
    take(stored, volume, "monday")
    with pytest.raises(BackendError, match="monday"):
        stored.backend.remove(volume, deadline_s=30)
    assert stored.backend.data_directory(volume, "monday").is_dir()
    stored.mount(volume)
    stored.unmount(volume)


@pytest.mark.parametrize("snapshot", ["", "monday"])
def test_a_clone_is_a_volume_of_its_own(stored: Bench, snapshot: str) -> None:
    volume = stored.created(mode="2750", uid="1000", gid="1001")
    write(stored, volume, "old")
    if snapshot:
        take(stored, volume, snapshot)
        write(stored, volume, "new")
    copy = clone(stored, volume, "copy", snapshot)
    assert copy.id != volume.id
    shown = stored.mount(copy).stat()
    stored.unmount(copy)
    assert (shown.st_mode & 0o7777, shown.st_uid, shown.st_gid) == (0o2750, 1000, 1001)
    assert read(stored, copy) == "old"
    write(stored, copy, "changed")
    write(stored, volume, "newest")
    assert read(stored, copy) == "changed"
    if not snapshot:
        stored.backend.remove(volume, deadline_s=30)
    assert read(stored, copy) == "changed"


def test_a_copy_that_fails_leaves_nothing_to_be_seen(
    stored: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = stored.created()
    (stored.mount(volume) / "file").write_text("bytes")
    stored.unmount(volume)

    def break_off(_copied: Copied) -> None:
        raise VolumeBusyError("broken off")

    for act in (
        lambda: stored.backend.snapshots.create(
            volume, "s", mounted_at=None, progress=break_off
        ),
        lambda: stored.backend.snapshots.create(
            stored.volume("never-made"), "s", mounted_at=None, progress=ignore
        ),
    ):
        with pytest.raises((BackendError, VolumeBusyError)):
            act()
    assert names(stored, volume) == []
    stored.backend.collect_garbage(deadline_s=30)
    pool = Path(str(stored.backend.status(volume)["path"])).parents[2]
    assert list((pool / "copies").iterdir()) == []
    assert list((pool / "trash").iterdir()) == []


def test_blocks_are_shared_where_the_filesystem_can(
    stored: Bench, tmp_path: Path
) -> None:
    volume = stored.created()
    big = stored.mount(volume) / "big"
    big.write_bytes(os.urandom(32 * 2**20))
    subprocess.run(["sync", "-f", big], check=True)
    stored.unmount(volume)
    pool = Path(str(stored.backend.status(volume)["path"])).parents[2]
    before = os.statvfs(pool)
    take(stored, volume, "s")
    after = os.statvfs(pool)
    used = (before.f_bfree - after.f_bfree) * before.f_frsize
    shares = not (tmp_path / "ext4").exists()
    assert (used < 4 * 2**20) == shares
    data = stored.backend.data_directory(volume, "s")
    live = stored.backend.data_directory(volume)
    subprocess.run(["cmp", data / "big", live / "big"], check=True)
