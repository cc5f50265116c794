"""The use cases on a backend in memory: rules, roll-back, what Docker relies on."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from backends.base import Volume
from backends.errors import (
    BackendError,
    DeadlineError,
    InvalidRequestError,
    VolumeBusyError,
    VolumeExistsError,
)
from backends.system.clock import Deadline
from backends.system.mounts import VolumeUser
from plugin.errors import StoreError, VolumeNotFoundError
from plugin.store.base import Put
from plugin.volumes.references import Count
from tests.support.ids import id_of
from tests.support.world import World, failing, set_phase


def test_create_is_seen_and_its_repetition_succeeds(world: World) -> None:
    world.volumes.creation.create("v", {"mode": "700"})
    first = world.volume_id("v")
    world.volumes.creation.create("v", {"mode": "0700"})
    assert world.volume_id("v") == first
    assert [each.name for each in world.volumes.views.all()] == ["v"]
    assert list(world.disk) == [first]


def test_create_with_other_options_names_the_difference(world: World) -> None:
    world.volumes.creation.create("v", {"mode": "0700"})
    with pytest.raises(VolumeExistsError, match="mode is 0700, asked for not set"):
        world.volumes.creation.create("v", {})
    with pytest.raises(VolumeExistsError, match="size is not set, asked for 1024"):
        world.volumes.creation.create("v", {"mode": "0700", "size": "1k"})


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".", "-a", "a b", "a\nb", "é"])
def test_bad_names_make_nothing(world: World, name: str) -> None:
    for act in (
        lambda: world.volumes.creation.create(name, {}),
        lambda: world.volumes.mounting.mount(name, "id"),
        lambda: world.volumes.unmounting.unmount(name, "id"),
        lambda: world.volumes.removal.remove(name),
    ):
        with pytest.raises(InvalidRequestError, match="is not a volume name"):
            act()
    with pytest.raises(VolumeNotFoundError):
        world.volumes.views.get(name)
    assert world.disk == {}


def test_a_failed_creation_leaves_nothing(world: World) -> None:
    world.backend.before = failing("create")
    with pytest.raises(BackendError, match="create failed"):
        world.volumes.creation.create("v", {})
    assert world.catalogue.heads() == []
    world.backend.before = lambda _operation, _volume: None
    world.volumes.creation.create("v", {})


def test_what_cannot_be_made_is_refused_before_anything_is_written(
    world: World,
) -> None:
    world.backend.fault = "the disk is not mounted"
    written: list[str] = []
    world.backend.before = lambda name, _volume: written.append(name)
    with pytest.raises(BackendError, match="not mounted"):
        world.volumes.creation.create("v", {})
    assert (written, world.catalogue.heads()) == ([], [])


def test_a_record_that_cannot_be_read_keeps_nobody_from_what_else_is_left_over(
    world: World,
) -> None:
    fields = {"backend": "rsync", "created_at": "", "requested": {}}
    for name, options in (("good", {}), ("spoilt", {"size": 5})):
        record = {"id": id_of(name), "name": name, "phase": "creating"}
        value = msgspec.json.encode(fields | record | {"options": options})
        world.store.transact([], [Put(f"volumes/{name}", value)])
    assert world.volumes.views.left_over() == ["good"]
    assert world.volumes.adoption.adopt(dry_run=True)["undone"] == ["good"]


def test_people_see_what_is_not_made_to_the_end_and_may_remove_it(
    world: World,
) -> None:
    def silent(name: str, _volume: Volume) -> None:
        if name in ("create", "remove"):
            raise DeadlineError("storage does not answer")

    world.backend.before = silent
    with pytest.raises(DeadlineError):
        world.volumes.creation.create("v", {})
    views = world.volumes.views
    assert [each.name for each in views.all(being_made=True)] == ["v"]
    assert views.look_at("v").status()["phase"] == "creating"
    assert views.left_over() == ["v"]
    assert world.volumes.adoption.adopt(dry_run=True)["undone"] == ["v"]
    report = world.volumes.adoption.adopt(dry_run=False)
    assert "storage does not answer" in report["refused"][0]
    # Storage that says no for ever must not keep the name for ever.
    world.backend.before = failing("remove")
    world.volumes.removal.remove("v")
    assert world.catalogue.heads() == []


def test_repair_undoes_what_was_not_made_to_the_end(world: World) -> None:
    world.backend.before = lambda name, _: (
        (_ for _ in ()).throw(SystemExit) if (name in ("create", "remove")) else None
    )
    with pytest.raises(SystemExit):
        world.volumes.creation.create("v", {})
    world.restart()
    assert world.volumes.adoption.adopt(dry_run=False)["undone"] == ["v"]
    assert world.catalogue.heads() == []


def test_a_creation_that_cannot_be_rolled_back_is_invisible_until_it_is(
    world: World,
) -> None:
    def silent(name: str, _volume: Volume) -> None:
        if name in ("create", "remove"):
            raise DeadlineError("storage does not answer")

    world.backend.before = silent
    with pytest.raises(DeadlineError):
        world.volumes.creation.create("v", {})
    assert world.volumes.views.all() == []
    with pytest.raises(VolumeNotFoundError):
        world.volumes.views.get("v")
    with pytest.raises(VolumeNotFoundError):
        world.volumes.mounting.mount("v", "id")
    world.backend.before = lambda _operation, _volume: None
    world.volumes.reconciler.run_once()
    assert world.catalogue.heads() == []


def test_a_refused_creation_is_forgotten_though_storage_is_gone(world: World) -> None:
    def broken(name: str, _volume: Volume) -> None:
        if name in ("create", "remove"):
            raise BackendError("no such share")

    world.backend.before = broken
    with pytest.raises(BackendError):
        world.volumes.creation.create("v", {})
    assert world.catalogue.heads() == []


def test_create_makes_a_new_volume_of_one_that_a_crash_left(world: World) -> None:
    world.backend.before = lambda name, _: (
        (_ for _ in ()).throw(SystemExit) if (name in ("create", "remove")) else None
    )
    with pytest.raises(SystemExit):
        world.volumes.creation.create("v", {"mode": "0700"})
    world.restart()
    assert world.catalogue.heads()[0].phase == "creating"
    world.volumes.creation.create("v", {"mode": "0750"})
    assert world.volumes.views.get("v").status()["options"] == {"mode": "0750"}


def test_mounts_are_counted_and_the_last_unmount_unmounts(world: World) -> None:
    world.volumes.creation.create("v", {})
    first = world.volumes.mounting.mount("v", "a")
    assert world.volumes.mounting.mount("v", "b") == first
    assert world.volumes.views.path("v") == str(first)
    world.volumes.unmounting.unmount("v", "a")
    assert world.is_mounted()
    world.volumes.unmounting.unmount("v", "b")
    assert not world.is_mounted()
    assert world.volumes.views.path("v") == str(first)


def test_unmount_of_what_is_unknown_succeeds(world: World) -> None:
    world.volumes.unmounting.unmount("nothing", "id")
    world.volumes.creation.create("v", {})
    world.volumes.mounting.mount("v", "a")
    world.volumes.unmounting.unmount("v", "other")
    assert world.is_mounted()


def test_mount_of_an_unknown_volume_fails(world: World) -> None:
    with pytest.raises(VolumeNotFoundError, match="there is no volume 'v'"):
        world.volumes.mounting.mount("v", "id")


def test_a_failed_mount_leaves_no_reference(world: World) -> None:
    world.volumes.creation.create("v", {})
    world.backend.before = failing("mount")
    with pytest.raises(BackendError):
        world.volumes.mounting.mount("v", "a")
    assert not world.count("v")
    world.backend.before = lambda _operation, _volume: None
    world.volumes.mounting.mount("v", "a")
    world.backend.before = failing("mount")
    with pytest.raises(BackendError):
        world.volumes.mounting.mount("v", "b")
    assert world.count("v") == Count(live=1)


def test_a_mount_past_its_deadline_leaves_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, deadline_s=0.3)
    world.volumes.creation.create("v", {})
    release = threading.Event()
    world.backend.before = lambda name, _: (
        release.wait(20) and None if name == "mount" else None
    )
    with pytest.raises(DeadlineError):
        world.volumes.mounting.mount("v", "a")
    # Whatever is asked of other volumes, and reads of this one, go on meanwhile.
    world.volumes.creation.create("w", {})
    assert world.volumes.views.get("v").record.name == "v"
    release.set()
    deadline = Deadline(10)
    while world.volumes.operations.under_way() and not deadline.passed():
        pass
    assert not world.is_mounted()
    assert not world.count("v")


def test_a_creation_whose_caller_is_gone_is_taken_back(world: World) -> None:
    release = threading.Event()
    world.backend.before = lambda name, _: (
        release.wait(20) and None if name == "create" else None
    )
    with pytest.raises(DeadlineError):
        world.volumes.creation.create("v", {}, caller_gone=lambda: True)
    release.set()
    deadline = Deadline(10)
    while world.volumes.operations.under_way() and not deadline.passed():
        pass
    assert world.catalogue.heads() == []
    assert world.disk == {}


def test_remove_refuses_what_the_engine_holds(world: World) -> None:
    world.volumes.creation.create("v", {})
    world.volumes.mounting.mount("v", "a")
    with pytest.raises(VolumeBusyError, match="holds 1 mount of"):
        world.volumes.removal.remove("v")
    assert world.volumes.views.get("v").status()["phase"] == "ready"
    world.volumes.unmounting.unmount("v", "a")
    world.volumes.removal.remove("v")
    assert world.disk == {}


def test_remove_refuses_what_a_process_uses_though_no_reference_is_left(
    world: World,
) -> None:
    world.volumes.creation.create("v", {})
    volume_id = world.volume_id("v")
    world.backend.used_by[volume_id] = [VolumeUser(7, "mysqld", "/var/lib/mysql")]
    with pytest.raises(VolumeBusyError, match=r"mysqld \(pid 7\) at /var/lib/mysql"):
        world.volumes.removal.remove("v")
    assert world.volumes.views.get("v").status()["phase"] == "ready"
    assert list(world.disk) == [volume_id]


def test_remove_of_what_is_unknown_succeeds(world: World) -> None:
    world.volumes.removal.remove("v")
    world.volumes.creation.create("v", {})
    world.volumes.removal.remove("v")
    world.volumes.removal.remove("v")


def test_remove_drops_inherited_references_that_nobody_uses(world: World) -> None:
    world.volumes.creation.create("v", {})
    world.volumes.mounting.mount("v", "lost")
    world.volumes.mounting.engine_activated()
    world.volumes.removal.remove("v")
    assert not world.is_mounted()
    assert world.node.references.volumes() == []


def test_a_removal_that_storage_refuses_changes_nothing(world: World) -> None:
    world.volumes.creation.create("v", {})
    world.backend.before = failing("remove")
    with pytest.raises(BackendError):
        world.volumes.removal.remove("v")
    world.backend.before = lambda _operation, _volume: None
    world.volumes.reconciler.run_once()
    assert world.volumes.views.get("v").status()["phase"] == "ready"
    world.volumes.mounting.mount("v", "a")


def test_a_removal_is_not_begun_while_storage_is_not_ready(world: World) -> None:
    world.volumes.creation.create("v", {})
    world.backend.fault = "the disk is not mounted"
    with pytest.raises(BackendError, match="the disk is not mounted"):
        world.volumes.removal.remove("v")
    assert world.volumes.views.get("v").status()["phase"] == "ready"


def test_a_removal_with_unknown_outcome_is_finished_later(world: World) -> None:
    world.volumes.creation.create("v", {})

    def late(name: str, _volume: Volume) -> None:
        if name == "remove":
            raise DeadlineError("storage did not answer")

    world.backend.before = late
    with pytest.raises(DeadlineError):
        world.volumes.removal.remove("v")
    assert world.volumes.views.get("v").status()["phase"] == "removing"
    with pytest.raises(VolumeBusyError, match="being removed"):
        world.volumes.mounting.mount("v", "a")
    world.backend.before = lambda _operation, _volume: None
    world.volumes.reconciler.run_once()
    assert world.volumes.views.all() == []
    assert world.disk == {}


def test_a_removal_begun_earlier_is_not_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes may be gone: the record stays `removing`, whatever storage says."""
    world.volumes.creation.create("v", {})

    def away(*_: object, **_more: object) -> None:
        raise StoreError("the cluster does not answer")

    with monkeypatch.context() as patched, pytest.raises(StoreError):
        patched.setattr(world.catalogue, "delete", away)
        world.volumes.removal.remove("v")
    assert world.disk == {}
    world.backend.before = failing("remove")
    with pytest.raises(BackendError):
        world.volumes.removal.remove("v")
    assert world.catalogue.heads()[0].phase == "removing"
    world.backend.before = lambda _operation, _volume: None
    world.volumes.reconciler.run_once()
    assert world.catalogue.heads() == []


@pytest.mark.parametrize("transient", [False, True])
def test_a_creation_is_not_forgotten_while_storage_is_away(
    world: World, *, transient: bool
) -> None:
    """What there is of it would come back as a volume that nobody has asked for."""
    leave_creation(world, "v")

    def away(name: str, _volume: Volume) -> None:
        if name == "remove":
            error = BackendError("it does not answer")
            error.transient = transient
            raise error

    world.backend.before = away
    world.backend.fault = "" if transient else "the disk is not mounted"
    with pytest.raises(BackendError, match="does not answer"):
        world.volumes.removal.remove("v")
    assert world.catalogue.heads()[0].phase == "creating"
    world.backend.before, world.backend.fault = (lambda _operation, _volume: None), ""
    world.volumes.removal.remove("v")
    assert (world.catalogue.heads(), world.disk) == ([], {})


def test_repair_leaves_alone_what_is_made_to_the_end_meanwhile(world: World) -> None:
    for name in ("a", "b", "c"):
        leave_creation(world, name)
    found = {each.name: each.id for each in world.catalogue.heads()}

    def before(operation: str, volume: Volume) -> None:
        if (operation, volume.name) == ("remove", "a"):
            world.volumes.creation.create("b", {})  # as the engine does again
            stored = world.catalogue.find("c")
            assert stored is not None
            set_phase(world.catalogue, stored, "ready", stored.record.node)

    world.backend.before = before
    # All were listed before the first of them was undone.
    assert world.volumes.adoption.adopt(dry_run=False)["undone"] == ["a"]
    left = {each.name: (each.id, each.phase) for each in world.catalogue.heads()}
    assert left["c"] == (found["c"], "ready")
    assert left["b"][0] != found["b"]
    assert set(world.disk) == {each for each, _ in left.values()}


def leave_creation(world: World, name: str) -> None:
    """Leave a volume as a crash does that comes before its record is `ready`."""
    world.volumes.creation.create(name, {})
    stored = world.catalogue.find(name)
    assert stored is not None
    set_phase(world.catalogue, stored, "creating", stored.record.node)
