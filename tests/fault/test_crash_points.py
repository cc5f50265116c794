"""
SIGKILL between any two steps: what is left, the next start understands and repairs.

A child process does one use case on real files, real mounts and real SQLite, and dies
before its n-th step: see `fuse`. The parent then starts anew on what is left. n grows
until the child lives to the end, so every step is tried.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.system import mounts
from plugin.errors import VolumeNotFoundError
from plugin.volumes.operations import never
from tests.fault.world import PATIENCE_S, World
from tests.support.fuse import lives


def prepare(directory: Path, *, mounted: bool) -> None:
    """Make volume `v` with a file in it."""
    world = World(directory)
    world.volumes.creation.create("v", {"mode": "0750"})
    target = world.volumes.mounting.mount("v", "engine")
    (target / "file").write_text("precious")
    if not mounted:
        world.volumes.unmounting.unmount("v", "engine")
    world.close()


def recovered(directory: Path) -> World:
    """Start anew and let the reconciler do its work, twice: repairs may repeat."""
    world = World(directory)
    world.volumes.reconciler.run_once(patience_s=PATIENCE_S)
    world.volumes.reconciler.run_once(patience_s=PATIENCE_S)
    return world


def check_clean(world: World, directory: Path) -> None:
    """Assert that nothing is mounted, held, half-made or waiting to be deleted."""
    assert mounts.mount_points_below(directory) == []
    assert list((directory / "mounts").iterdir()) == []
    assert world.node.references.volumes() == []
    assert all(each.phase == "ready" for each in world.catalogue.heads())
    ids = {each.id for each in world.catalogue.heads()}
    assert {each.name for each in (directory / "pool/volumes").iterdir()} == ids
    trash = directory / "pool/trash"
    assert not trash.exists() or list(trash.iterdir()) == []


def check_usable(world: World, *, content: str | None) -> None:
    """Assert that `v` works, and holds *content* if it was there before."""
    if not world.volumes.views.all():
        world.volumes.creation.create("v", {"mode": "0750"})
    target = world.volumes.mounting.mount("v", "check")
    assert target.stat().st_mode & 0o7777 == 0o750
    if content is not None:
        assert (target / "file").read_text() == content
    world.volumes.unmounting.unmount("v", "check")
    world.volumes.removal.remove("v")
    world.volumes.reconciler.run_once(patience_s=PATIENCE_S)


def mount_and_unmount(world: World) -> None:
    world.volumes.mounting.mount("v", "engine")
    world.volumes.unmounting.unmount("v", "engine")


def import_source(world: World) -> None:
    source = world.directory / "source"
    world.volumes.creation.import_directory("v", {}, source, caller_gone=never)


def clone(world: World) -> None:
    world.volumes.creation.clone("w", "v", {}, caller_gone=never)


def take_snapshot(world: World) -> None:
    world.volumes.snapshots.create("v", "s", caller_gone=never)


def restore(world: World) -> None:
    world.volumes.snapshots.restore("v", "s", caller_gone=never)


def remove_snapshot(world: World) -> None:
    world.volumes.snapshots.remove("v", "s")


def remove_and_empty(world: World) -> None:
    world.volumes.removal.remove("v")
    world.volumes.reconciler.run_once(patience_s=PATIENCE_S)


SCENARIOS = {
    "create": (
        None,
        lambda world: world.volumes.creation.create("v", {"mode": "0750"}),
    ),
    "mount and unmount": (False, mount_and_unmount),
    "unmount": (True, lambda world: world.volumes.unmounting.unmount("v", "engine")),
    "remove": (False, remove_and_empty),
    "import": (None, import_source),
}


def begin(directory: Path, name: str) -> None:
    """Make what is there before scenario *name*."""
    mounted, _ = SCENARIOS[name]
    if mounted is not None:
        prepare(directory, mounted=mounted)
    if name == "import":
        (directory / "source").mkdir(mode=0o750)
        (directory / "source/file").write_text("precious")


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_any_step_is_repaired(name: str, disk: Path) -> None:
    _, act = SCENARIOS[name]
    for directory, life in lives(disk, lambda at: begin(at, name), World, act):
        world = recovered(directory)
        check_clean(world, directory)
        existing = [each.name for each in world.volumes.views.all()]
        if name in ("mount and unmount", "unmount"):
            assert existing == ["v"]
        if not life.died:
            assert existing == ([] if name == "remove" else ["v"])
        has_content = existing == ["v"] and name != "create"
        check_usable(world, content="precious" if has_content else None)
        check_clean(world, directory)
        with pytest.raises(VolumeNotFoundError):
            world.volumes.views.get("v")
        world.close()
    assert life.steps


def test_a_kill_at_any_step_of_the_first_start_is_repaired(disk: Path) -> None:
    """Databases, identity and pool are begun, and each is used or begun again."""
    steps = 0
    for directory, life in lives(disk, lambda _: None, lambda at: at, World):
        world = recovered(directory)
        check_clean(world, directory)
        assert world.volumes.views.all() == []
        check_usable(world, content=None)
        check_clean(world, directory)
        world.close()
        steps = len(life.steps)
    assert steps > 20


def changed_since_its_snapshot(directory: Path) -> None:
    """Make volume `v`, its snapshot `s`, and then another content."""
    prepare(directory, mounted=False)
    world = World(directory)
    take_snapshot(world)
    (world.volumes.mounting.mount("v", "engine") / "file").write_text("later")
    world.volumes.unmounting.unmount("v", "engine")
    world.close()


@pytest.mark.parametrize("act", [clone, take_snapshot, restore, remove_snapshot])
def test_a_kill_during_a_copy_loses_nothing(
    act: Callable[[World], None], disk: Path
) -> None:
    original = disk / "original"
    original.mkdir()
    if act is take_snapshot:
        prepare(original, mounted=False)
    else:
        changed_since_its_snapshot(original)

    def begin_again(directory: Path) -> None:
        # The copies that lead there, made once, cost more than all the rest.
        subprocess.run(["cp", "-a", f"{original}/.", directory], check=True, timeout=10)

    for directory, life in lives(disk, begin_again, World, act):
        world = recovered(directory)
        check_clean(world, directory)
        copies = directory / "pool/copies"
        assert not copies.exists() or list(copies.iterdir()) == []
        contents = all_contents(world)
        assert "precious" in contents.values() or act is remove_snapshot
        assert "later" in contents.values() or act is take_snapshot
        if not life.died:
            assert (
                sorted(contents.values())
                == {
                    clone: ["later", "later", "precious"],
                    take_snapshot: ["precious", "precious"],
                    restore: ["later", "precious", "precious"],
                    remove_snapshot: ["later"],
                }[act]
            )
            assert len(life.steps) > 1
        world.close()


def all_contents(world: World) -> dict[str, str]:
    """Return what `file` holds in every volume and every snapshot; each has one."""
    contents = {}
    for volume in world.volumes.views.all():
        target = world.volumes.mounting.mount(volume.name, "check")
        contents[volume.name] = (target / "file").read_text()
        world.volumes.unmounting.unmount(volume.name, "check")
        record = world.volumes.views.existing(volume.name).record
        backend = world.ownership.registry.get("rsync")
        for each in backend.snapshots.all(record.volume()):
            data = backend.data_directory(record.volume(), each.name)
            contents[f"{volume.name}@{each.name}"] = (data / "file").read_text()
    return contents


def read_a_copy(world: World) -> None:
    world.volumes.mounting.mount("r", "engine")
    world.volumes.unmounting.unmount("r", "engine")


def test_a_kill_at_any_step_of_reading_leaves_nothing(disk: Path) -> None:
    original = disk / "original"
    original.mkdir()
    prepare(original, mounted=False)
    world = World(original)
    world.volumes.creation.create("r", {"readonly_copy": "v"})
    world.close()

    def begin_again(directory: Path) -> None:
        subprocess.run(["cp", "-a", f"{original}/.", directory], check=True, timeout=10)

    steps = 0
    for directory, life in lives(disk, begin_again, World, read_a_copy):
        world = recovered(directory)
        assert mounts.mount_points_below(directory) == []
        assert world.node.references.volumes() == []
        left = [*directory.glob("pool/*/*"), *directory.glob("mounts/*")]
        assert left == [*directory.glob("pool/volumes/*")]
        shown = world.volumes.mounting.mount("r", "check")
        assert (shown / "file").read_text() == "precious"
        world.volumes.unmounting.unmount("r", "check")
        world.close()
        steps = len(life.steps)
    assert steps > 10
