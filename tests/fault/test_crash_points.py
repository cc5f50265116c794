"""
SIGKILL between any two steps: what is left, the next start understands and repairs.

A child process does one use case on real files, real mounts and real SQLite, and dies
at its n-th step: before or after a system call that changes something, or a commit. The
parent then starts anew on what is left. n grows until the child lives to the end, so
every step is tried.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backends.registry import Registry
from backends.rsync import snapshots
from backends.rsync.backend import RsyncBackend
from backends.system import copying, mounts
from plugin import database
from plugin.catalogue import Catalogue
from plugin.discovery import Discovery
from plugin.errors import VolumeNotFoundError
from plugin.importing import import_directory
from plugin.node import Node
from plugin.operations import Operations, never
from plugin.options import OptionResolver
from plugin.propagation import Propagation
from plugin.reconciler import Reconciler
from plugin.service import VolumeService
from plugin.snapshots import SnapshotService
from plugin.store.sqlite import SqliteStore
from tests.support.namespaces import enter_private_mounts
from tests.support.world import ownership_alone

STEPS_MAX = 200
CHANGING_CALLS = (
    "mkdir", "rename", "rmdir", "unlink", "chown", "chmod", "fsync", "write",
)  # fmt: skip


class World:
    """One start of the daemon's inside on the files of *directory*."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.node = Node(directory)
        self.store = SqliteStore(directory / "store.db")
        backend = RsyncBackend(directory / "pool", pool_id=self.node.fact("pool_id"))
        if self.node.fact("pool_id") is None:
            self.node.set_fact("pool_id", backend.pool.initialise())
        registry = Registry([backend])
        (directory / "mounts").mkdir(exist_ok=True)
        catalogue = Catalogue(self.store)
        operations = Operations()
        self.service = VolumeService(
            catalogue=catalogue,
            registry=registry,
            resolver=OptionResolver(registry, {}),
            references=self.node.references,
            operations=operations,
            discovery=Discovery(
                catalogue=catalogue,
                registry=registry,
                references=self.node.references,
                locks=operations.locks,
            ),
            ownership=ownership_alone(self.store, self.node, registry, backend),
            keeper=None,
            propagation=Propagation(directory / "mounts", self.node),
            mount_dir=directory / "mounts",
            mount_deadline_s=30,
            disuse_grace_s=0,
        )
        self.reconciler = Reconciler(self.service, interval_s=10.0)

    def close(self) -> None:
        self.store.close()
        self.node.close()


class Fuse:
    """Kills this process at the n-th step once it is lit."""

    def __init__(self, fatal_step: int) -> None:
        self.left = fatal_step
        self.lit = False

    def step(self) -> None:
        if self.lit:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*args: Any, **kwargs: Any) -> Any:
            self.step()
            result = call(*args, **kwargs)
            self.step()
            return result

        return stepping

    def wire(self) -> None:
        """Put the fuse around everything that changes something."""
        for name in CHANGING_CALLS:
            setattr(os, name, self.around(getattr(os, name)))
        copying.run_with_progress = self.around(copying.run_with_progress)
        snapshots._exchange = self.around(snapshots._exchange)
        fuse = self

        class Connection(sqlite3.Connection):
            def execute(self, query: str, *args: Any) -> sqlite3.Cursor:
                if query in ("BEGIN IMMEDIATE", "COMMIT"):
                    return fuse.around(super().execute)(query, *args)
                return super().execute(query, *args)

        class Libc:
            mount = staticmethod(fuse.around(mounts._libc.mount))
            umount2 = staticmethod(fuse.around(mounts._libc.umount2))

        mounts._libc = Libc()  # type: ignore[assignment]
        connect = sqlite3.connect
        database.sqlite3.connect = lambda *args, **kwargs: connect(  # type: ignore[attr-defined]
            *args, factory=Connection, **kwargs
        )


def dies(directory: Path, act: Callable[[World], None], fatal_step: int) -> bool:
    """Do *act* in a child that dies at *fatal_step*; return whether it died."""
    child = os.fork()
    if child == 0:
        try:
            fuse = Fuse(fatal_step)
            fuse.wire()
            world = World(directory)
            fuse.lit = True
            act(world)
        except BaseException as error:  # noqa: BLE001 - told to the parent
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the use case failed in the child"
    return False


def prepare(directory: Path, *, mounted: bool) -> None:
    """Make volume `v` with a file in it."""
    world = World(directory)
    world.service.create("v", {"mode": "0750"})
    target = world.service.mount("v", "engine")
    (target / "file").write_text("precious")
    if not mounted:
        world.service.unmount("v", "engine")
    world.close()


def recovered(directory: Path) -> World:
    """Start anew and let the reconciler do its work, twice: repairs may repeat."""
    world = World(directory)
    world.reconciler.run_once()
    world.reconciler.run_once()
    return world


def check_clean(world: World, directory: Path) -> None:
    """Assert that nothing is mounted, held, half-made or waiting to be deleted."""
    assert mounts.mount_points_below(directory) == []
    assert list((directory / "mounts").iterdir()) == []
    assert world.service.references.volumes() == []
    assert all(each.phase == "ready" for each in world.service.catalogue.all())
    ids = {each.id for each in world.service.catalogue.all()}
    assert {each.name for each in (directory / "pool/volumes").iterdir()} == ids
    trash = directory / "pool/trash"
    assert not trash.exists() or list(trash.iterdir()) == []


def check_usable(world: World, *, content: str | None) -> None:
    """Assert that `v` works, and holds *content* if it was there before."""
    if not world.service.volumes():
        world.service.create("v", {"mode": "0750"})
    target = world.service.mount("v", "check")
    assert target.stat().st_mode & 0o7777 == 0o750
    if content is not None:
        assert (target / "file").read_text() == content
    world.service.unmount("v", "check")
    world.service.remove("v")
    world.reconciler.run_once()


def mount_and_unmount(world: World) -> None:
    world.service.mount("v", "engine")
    world.service.unmount("v", "engine")


def import_source(world: World) -> None:
    source = world.directory / "source"
    import_directory(world.service, "v", {}, source, caller_gone=never)


def clone(world: World) -> None:
    world.service.clone("w", "v", {}, caller_gone=never)


def take_snapshot(world: World) -> None:
    SnapshotService(world.service).take("v", "s", caller_gone=never)


def restore(world: World) -> None:
    SnapshotService(world.service).restore("v", "s", caller_gone=never)


def remove_snapshot(world: World) -> None:
    SnapshotService(world.service).remove("v", "s")


def remove_and_empty(world: World) -> None:
    world.service.remove("v")
    world.reconciler.run_once()


SCENARIOS = {
    "first start": (None, lambda _world: None),
    "create": (None, lambda world: world.service.create("v", {"mode": "0750"})),
    "mount and unmount": (False, mount_and_unmount),
    "unmount": (True, lambda world: world.service.unmount("v", "engine")),
    "remove": (False, remove_and_empty),
    "import": (None, import_source),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_any_step_is_repaired(name: str, tmp_path: Path) -> None:
    enter_private_mounts()
    mounted, act = SCENARIOS[name]
    for step in range(1, STEPS_MAX):
        directory = tmp_path / str(step)
        directory.mkdir()
        if mounted is not None:
            prepare(directory, mounted=mounted)
        if name == "import":
            (directory / "source").mkdir(mode=0o750)
            (directory / "source/file").write_text("precious")
        died = dies(directory, act, step)
        world = recovered(directory)
        check_clean(world, directory)
        existing = [each.name for each in world.service.volumes()]
        if name in ("mount and unmount", "unmount"):
            assert existing == ["v"]
        if not died:
            assert existing == ([] if name in ("first start", "remove") else ["v"])
        has_content = existing == ["v"] and name not in ("first start", "create")
        check_usable(world, content="precious" if has_content else None)
        check_clean(world, directory)
        with pytest.raises(VolumeNotFoundError):
            world.service.get("v")
        world.close()
        if not died:
            print(f"{name}: {step - 1} fatal steps tried", file=sys.stderr)
            assert step > 1 or name == "first start"
            return
    pytest.fail(f"still dying at step {STEPS_MAX}")


def changed_since_its_snapshot(directory: Path) -> None:
    """Make volume `v`, its snapshot `s`, and then another content."""
    prepare(directory, mounted=False)
    world = World(directory)
    take_snapshot(world)
    (world.service.mount("v", "engine") / "file").write_text("later")
    world.service.unmount("v", "engine")
    world.close()


@pytest.mark.parametrize("act", [clone, take_snapshot, restore, remove_snapshot])
def test_a_kill_during_a_copy_loses_nothing(
    act: Callable[[World], None], tmp_path: Path
) -> None:
    enter_private_mounts()
    for step in range(1, STEPS_MAX):
        directory = tmp_path / str(step)
        directory.mkdir()
        if act is take_snapshot:
            prepare(directory, mounted=False)
        else:
            changed_since_its_snapshot(directory)
        died = dies(directory, act, step)
        world = recovered(directory)
        check_clean(world, directory)
        copies = directory / "pool/copies"
        assert not copies.exists() or list(copies.iterdir()) == []
        contents = all_contents(world)
        assert "precious" in contents.values() or act is remove_snapshot
        assert "later" in contents.values() or act is take_snapshot
        if not died:
            assert (
                sorted(contents.values())
                == {
                    clone: ["later", "later", "precious"],
                    take_snapshot: ["precious", "precious"],
                    restore: ["later", "precious", "precious"],
                    remove_snapshot: ["later"],
                }[act]
            )
            assert step > 3
        world.close()
        if not died:
            return
    pytest.fail(f"still dying at step {STEPS_MAX}")


def all_contents(world: World) -> dict[str, str]:
    """Return what `file` holds in every volume and every snapshot; each has one."""
    contents = {}
    for volume in world.service.volumes():
        target = world.service.mount(volume.name, "check")
        contents[volume.name] = (target / "file").read_text()
        world.service.unmount(volume.name, "check")
        record = world.service.existing(volume.name).record
        backend = world.service.registry.get("rsync")
        for each in backend.snapshots.all(record.volume()):
            data = backend.data_directory(record.volume(), each.name)
            contents[f"{volume.name}@{each.name}"] = (data / "file").read_text()
    return contents
