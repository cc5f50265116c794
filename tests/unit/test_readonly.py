"""Read-only copies: what is refused, what breaks a copy off, what is told of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.base import Volume
from backends.errors import (
    BackendError,
    DeadlineError,
    InvalidRequestError,
    RemoraError,
)
from backends.readonly.backend import ReadonlyBackend
from backends.system import btrfs
from backends.system.clock import Deadline
from backends.system.mounts import unmount
from plugin.model import VolumeRecord
from tests.fault.world import World
from tests.support.namespaces import enter_private_mounts, loop_filesystem

ENOUGH_S = 30.0
DAYS_S = 2 * 86_400


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Yield a node that is alone, with the volume `v` and a copy of it, `r`."""
    enter_private_mounts()
    with loop_filesystem(tmp_path, "ext4", size="100M") as disk:
        world = World(disk)
        world.volumes.creation.create("v", {})
        (world.volumes.mounting.mount("v", "engine") / "file").write_text("bytes")
        world.volumes.creation.create("r", {"readonly_copy": "v"})
        yield world
        world.volumes.unmounting.unmount("v", "engine")
        world.close()


def backend(world: World) -> ReadonlyBackend:
    found = world.ownership.registry.get("readonly")
    assert isinstance(found, ReadonlyBackend)
    return found


def record(world: World, name: str) -> VolumeRecord:
    return world.volumes.views.existing(name).record


def left(world: World) -> list[Path]:
    """Return what there is of copies, mounted or not."""
    pool = world.directory / "pool"
    mounts = [each.name for each in (world.directory / "mounts").iterdir()]
    assert mounts == [record(world, "v").id]
    return [*pool.glob("readonly/*"), *pool.glob("copies/*")]


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("r2", {"readonly_copy": "r"}, "'r' is a read-only copy itself"),
        ("r2", {"readonly_copy": "r2"}, "'r2' cannot show itself"),
        ("r2", {"readonly_copy": "v@s"}, "must be the name of a volume"),
        ("r2", {"readonly_copy": "v", "size": "1G"}, "unknown option 'size'"),
        ("r2", {"readonly_copy": "v", "from": "v"}, "unknown option 'from'"),
        ("r2", {"backend": "readonly"}, "needs the option 'readonly_copy'"),
    ],
)
def test_what_cannot_be_shown_is_not_made(
    world: World, name: str, options: dict[str, str], told: str
) -> None:
    with pytest.raises(InvalidRequestError, match=told):
        world.volumes.creation.create(name, options)
    assert [each.name for each in world.volumes.views.all()] == ["r", "v"]


def test_nothing_is_copied_into_one(world: World) -> None:
    volume = Volume("", "r2", {"readonly_copy": "v"}, "")
    with pytest.raises(InvalidRequestError, match="nothing can be copied into it"):
        backend(world).require_creatable(volume, filled=True)
    with pytest.raises(BackendError, match="can have no snapshots"):
        world.volumes.snapshots.create("r", "s", caller_gone=lambda: False)


def mount(world: World, deadline_s: float) -> Path:
    found = record(world, "r")
    target = world.volumes.views.target(found)
    backend(world).mount(found.volume(), target, deadline_s=deadline_s)
    return target


def test_a_copy_that_takes_too_long_is_broken_off(world: World) -> None:
    with pytest.raises(DeadlineError, match="takes longer than a Mount may") as caught:
        mount(world, 0.5)
    assert "remora clone v@NOW COPY" in caught.value.hint
    assert left(world) == []


def test_a_copy_leaves_the_disk_its_reserve(world: World) -> None:
    free = os.statvfs(world.directory)
    fill = free.f_bavail * free.f_bsize - 2**20
    with (world.directory / "full").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, fill)
    with pytest.raises(BackendError, match="has no room: ") as caught:
        mount(world, ENOUGH_S)
    assert "MiB of reserve" in caught.value.cause
    assert left(world) == []


def test_what_a_container_reads_stays_when_our_mount_of_it_was_lost(
    world: World,
) -> None:
    shown, own = mount(world, ENOUGH_S), world.directory / "container"
    own.mkdir()
    enter = 'mount --bind "$1" "$2" && echo && exec sleep 600'
    command = ["unshare", "-m", "--", "sh", "-c", enter, "-", str(shown), str(own)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as reader:
        try:
            assert reader.stdout is not None
            reader.stdout.readline()
            # As for a managed plugin that starts anew, in another mount namespace.
            unmount(shown)
            shown.rmdir()
            assert mount(world, ENOUGH_S) == shown
            seen = Path(f"/proc/{reader.pid}/root{own}/file")
            assert seen.samefile(shown / "file")
        finally:
            reader.kill()
    backend(world).unmount(record(world, "r").volume(), shown, deadline_s=ENOUGH_S)
    assert left(world) == []


def test_what_is_changed_or_removed_while_it_is_read_is_no_copy(world: World) -> None:
    world.volumes.creation.create("w", {})

    def use() -> None:
        (world.volumes.mounting.mount("w", "engine") / "file").touch()

    def end() -> None:
        world.volumes.unmounting.unmount("w", "engine")

    def remove() -> None:
        world.volumes.removal.remove("w")

    for change in (use, end, remove):
        with (
            pytest.raises(RemoraError, match=r"meanwhile|no copy any more"),
            world.reading("w", Deadline(ENOUGH_S)) as tree,
        ):
            before = tree.quality
            change()
        assert before == ("fuzzy" if change is end else "quiesced")


def test_a_trash_that_takes_nothing_hinders_no_unmount(world: World) -> None:
    shown, trash = mount(world, ENOUGH_S), world.directory / "pool/trash"
    trash.rmdir()
    trash.touch()
    backend(world).unmount(record(world, "r").volume(), shown, deadline_s=ENOUGH_S)
    assert len(left(world)) == 1
    trash.unlink()
    backend(world).collect_garbage(deadline_s=ENOUGH_S)
    assert left(world) == []


def test_a_subvolume_that_no_snapshot_has_is_told_of(tmp_path: Path) -> None:
    enter_private_mounts()
    with loop_filesystem(tmp_path, "btrfs", size="200M") as disk:
        world = World(disk)
        world.volumes.creation.create("v", {})
        nested = world.volumes.mounting.mount("v", "engine") / "d/nested"
        nested.parent.mkdir()
        btrfs.create(nested)
        world.volumes.creation.create("r", {"readonly_copy": "v"})
        with pytest.raises(BackendError, match="has a subvolume in it"):
            mount(world, ENOUGH_S)
        assert left(world) == []
        btrfs.delete(nested)
        shown = mount(world, ENOUGH_S)
        assert [each.name for each in shown.iterdir()] == ["d"]
        backend(world).unmount(record(world, "r").volume(), shown, deadline_s=ENOUGH_S)
        world.volumes.unmounting.unmount("v", "engine")
        world.close()


def test_one_that_is_shown_for_days_is_warned_of(world: World) -> None:
    shown = mount(world, ENOUGH_S)
    assert (shown / "file").read_text() == "bytes"
    volume = record(world, "r").volume()
    told = backend(world).status(volume)
    assert told["readonly_copy"] == "v"
    assert "warnings" not in told
    [path] = world.directory.glob("pool/readonly/*/copy.json")
    at_s = path.stat().st_mtime - DAYS_S
    os.utime(path, (at_s, at_s))
    (warning,) = backend(world).status(volume)["warnings"]
    assert "has to be started anew for each backup" in warning
    backend(world).unmount(volume, shown, deadline_s=ENOUGH_S)
    assert left(world) == []
