"""What is repaired in the background, by order, and after losses."""

from __future__ import annotations

import dataclasses
import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.base import Traits, Volume
from backends.errors import BackendError, VolumeBusyError
from backends.system.clock import Deadline
from backends.system.mounts import VolumeUser
from plugin.errors import StoreError
from plugin.model import VolumeRecord
from plugin.store.base import Outcome, Put
from plugin.store.etcd.errors import UnknownOutcomeError
from plugin.volumes.options import Resolved
from plugin.volumes.references import Count
from tests.support.host import wait_until
from tests.support.world import World, failing, set_phase


def test_inherited_references_go_on_proof_of_disuse_only(world: World) -> None:
    world.volumes.creation.create("v", {})
    volume_id = world.volume_id("v")
    world.volumes.mounting.mount("v", "a")
    world.restart()
    world.backend.mounted[(world.directory / "mounts") / volume_id] = volume_id
    world.backend.used_by[volume_id] = [VolumeUser(1, "sh", "/d")]
    world.volumes.reconciler.run_once()
    assert world.count("v") == Count(inherited=1)
    world.backend.before = failing("users")
    world.volumes.reconciler.run_once()
    assert world.count("v") == Count(inherited=1)
    world.backend.before = lambda _operation, _volume: None
    world.backend.used_by.clear()
    world.volumes.reconciler.run_once()
    assert not world.count("v")
    assert not world.is_mounted()


def test_nothing_inherited_is_dropped_within_the_grace(tmp_path: Path) -> None:
    world = World(tmp_path, grace_s=3600)
    world.volumes.creation.create("v", {})
    world.volumes.mounting.mount("v", "a")
    world.volumes.mounting.engine_activated()
    world.volumes.reconciler.run_once()
    assert world.count("v") == Count(inherited=1)
    assert world.is_mounted()
    # Its own Unmount needs no proof.
    world.volumes.unmounting.unmount("v", "a")
    assert not world.is_mounted()


def test_an_unmount_of_what_a_container_uses_waits_for_its_end(world: World) -> None:
    world.volumes.creation.create("v", {})
    volume_id = world.volume_id("v")
    world.volumes.mounting.mount("v", "container")
    world.backend.used_by[volume_id] = [VolumeUser(1, "sh", "/d")]
    # After a docker cp that failed, the engine unmounts with the container's own id.
    world.volumes.unmounting.unmount("v", "container")
    assert world.is_mounted()
    assert world.count("v") == Count(inherited=1)
    world.volumes.reconciler.run_once()
    assert world.is_mounted()
    world.backend.used_by.clear()
    world.volumes.reconciler.run_once()
    assert not world.is_mounted()
    assert not world.count("v")


def test_live_references_are_never_dropped_but_by_order(world: World) -> None:
    world.volumes.creation.create("v", {})
    world.volumes.mounting.mount("v", "a")
    world.volumes.reconciler.run_once()
    assert world.count("v") == Count(live=1)
    assert world.volumes.reconciler.release_forgotten() == ["v"]
    assert not world.is_mounted()


def test_an_order_to_release_spares_what_is_used(world: World) -> None:
    world.volumes.creation.create("v", {})
    world.volumes.mounting.mount("v", "a")
    world.backend.used_by[world.volume_id("v")] = [VolumeUser(1, "sh", "/d")]
    assert world.volumes.reconciler.release_forgotten() == []
    assert world.count("v") == Count(live=1)


def test_an_unmount_that_storage_refuses_is_tried_again(world: World) -> None:
    world.volumes.creation.create("v", {})
    target = world.volumes.mounting.mount("v", "a")
    world.backend.working.add(target)
    with pytest.raises(VolumeBusyError):
        world.volumes.unmounting.unmount("v", "a")
    assert world.is_mounted()
    world.backend.working.clear()
    world.volumes.mounting.mount("v", "b")
    world.volumes.unmounting.unmount("v", "b")
    assert not world.is_mounted()


def test_a_reboot_ends_every_reference(world: World) -> None:
    world.volumes.creation.create("v", {})
    world.volumes.mounting.mount("v", "a")
    world.node.set_fact("boot_id", "another boot")
    world.restart()
    assert not world.count("v")


def test_get_and_list_answer_while_storage_is_broken(world: World) -> None:
    world.volumes.creation.create("v", {})

    def broken(_name: str, _volume: Volume) -> None:
        raise BackendError("storage is gone")

    world.backend.before = broken
    assert world.volumes.views.get("v").record.name == "v"
    assert [each.name for each in world.volumes.views.all()] == ["v"]
    assert world.volumes.views.path("v")
    with pytest.raises(BackendError):
        world.volumes.removal.remove("v")
    assert world.volumes.views.get("v").status()["phase"] == "ready"


def test_a_broken_store_is_no_absent_volume(world: World) -> None:
    world.volumes.creation.create("v", {})
    world.store.close()
    with pytest.raises(StoreError):
        world.volumes.views.get("v")


def test_eight_creations_of_one_name_make_one_volume(world: World) -> None:
    threads = [
        threading.Thread(target=world.volumes.creation.create, args=("v", {}))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(world.disk) == 1


@pytest.mark.parametrize("everywhere", [True, False])
def test_scope_is_global_only_if_every_node_reaches_every_volume(
    world: World, everywhere: bool
) -> None:
    world.backend.traits = Traits(reachable_from_every_node=everywhere)
    assert world.volumes.creation.scope() == ("global" if everywhere else "local")


def test_volumes_of_a_lost_store_are_adopted(world: World, tmp_path: Path) -> None:
    world.volumes.creation.create("v", {"mode": "0700"})
    world.volumes.creation.create("w", {})
    lost_id = world.volume_id("v")
    world.store.close()
    for file in tmp_path.glob("store.db*"):
        file.unlink()
    world.restart()
    assert world.volumes.views.all() == []
    world.volumes.creation.create("w", {"mode": "0700"})
    planned = world.volumes.adoption.adopt(dry_run=True)
    assert planned["adopted"] == ["v"]
    assert [each.name for each in world.volumes.views.all()] == ["w"]
    report = world.volumes.adoption.adopt(dry_run=False)
    assert report["adopted"] == ["v"]
    assert "the name belongs to volume" in report["refused"][0]
    assert world.volume_id("v") == lost_id
    assert world.volumes.views.get("v").status()["options"] == {"mode": "0700"}
    world.volumes.creation.create("v", {"mode": "0700"})
    assert world.volumes.adoption.adopt(dry_run=False)["adopted"] == []


def test_the_trash_is_emptied_in_the_background(world: World) -> None:
    world.volumes.creation.create("v", {})
    world.volumes.removal.remove("v")
    assert world.backend.trash
    world.volumes.reconciler.run_once()
    assert not world.backend.trash


@pytest.fixture
def hanging() -> Iterator[threading.Event]:
    """Yield what ends the hanging of storage."""
    release = threading.Event()
    yield release
    release.set()


def unused(world: World, *names: str) -> None:
    """Make volumes that are mounted though nothing uses them."""
    for name in names:
        world.volumes.creation.create(name, {})
        world.volumes.mounting.mount(name, "lost")
    world.volumes.mounting.engine_activated()


def mounted(world: World) -> set[str]:
    ids = set(world.backend.mounted.values())
    return {each.name for each in world.catalogue.heads() if each.id in ids}


def test_a_volume_that_hangs_holds_up_no_other(
    world: World, hanging: threading.Event
) -> None:
    unused(world, "a", "b")
    world.volumes.creation.create("gone", {})
    world.volumes.removal.remove("gone")
    hung_id = world.volume_id("a")

    def hang(operation: str, volume: Volume) -> None:
        if operation == "unmount" and volume.id == hung_id:
            hanging.wait()

    world.backend.before = hang
    world.volumes.reconciler.run_once(patience_s=0.5)
    assert mounted(world) == {"a"}
    assert not world.backend.trash
    # It is not begun again, and the next pass does not wait for it.
    world.volumes.reconciler.run_once(patience_s=60)
    hanging.set()
    wait_until(lambda: not mounted(world), timeout_s=20, what="it has ended")


def test_a_volume_that_fails_in_an_unknown_way_is_passed_over(world: World) -> None:
    unused(world, "a", "b")
    failing_id = world.volume_id("a")

    def fail(operation: str, volume: Volume) -> None:
        if volume.id == failing_id:
            raise OSError(errno.EIO, "the disk")

    world.backend.before = fail
    world.volumes.reconciler.run_once()
    assert mounted(world) == {"a"}


def test_trash_that_hangs_holds_up_no_release(
    world: World, hanging: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collect_garbage(*, deadline_s: float) -> int:
        hanging.wait(deadline_s)
        return 0

    monkeypatch.setattr(world.backend, "collect_garbage", collect_garbage)
    world.volumes.reconciler.run_once(patience_s=0.5)
    unused(world, "a")
    world.volumes.reconciler.run_once(patience_s=60)
    assert not mounted(world)


class Keeper:
    """One volume was lost to another node, and its writers are dead."""

    def __init__(self, record: VolumeRecord) -> None:
        self.record = record
        self.dropped = False

    def lost(self) -> list[VolumeRecord]:
        return [] if self.dropped else [self.record]

    def drop(self, record: VolumeRecord) -> None:
        assert record == self.record
        self.dropped = True


def test_a_lost_volume_is_unmounted_under_its_lock(world: World) -> None:
    world.volumes.creation.create("v", {})
    world.volumes.mounting.mount("v", "killed")
    keeper = Keeper(world.volumes.views.existing("v").record)
    reconciler = world.volumes.reconciler
    reconciler._unmounting = dataclasses.replace(
        reconciler._unmounting,
        keeper=keeper,  # type: ignore[arg-type]
    )
    with world.volumes.operations.locks.hold("v", Deadline(5)):
        reconciler.run_once()
        assert mounted(world) == {"v"}
    reconciler.run_once()
    assert not mounted(world)
    assert keeper.dropped


def test_a_removal_that_is_taken_back_leaves_the_record_as_it_was(world: World) -> None:
    """Else who made the volume is forgotten, and its bytes count as none."""
    world.volumes.creation.create("v", {})
    stored = world.catalogue.find("v")
    assert stored is not None
    made = msgspec.structs.replace(stored.record, node="of-another-node")
    world.catalogue.replace(stored, made)
    world.backend.before = failing("remove")
    with pytest.raises(BackendError):
        world.volumes.removal.remove("v")
    found = world.catalogue.find("v")
    assert found is not None
    assert found.record == made


def test_a_volume_that_may_be_ready_keeps_its_bytes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store does what it is asked, and its answer is lost."""
    transact = world.store.transact

    def silent(*asked: Any) -> Outcome:
        outcome = transact(*asked)
        if any(b'"ready"' in each.value for each in asked[1] if isinstance(each, Put)):
            raise UnknownOutcomeError("no answer")
        return outcome

    with monkeypatch.context() as patched:
        patched.setattr(world.store, "transact", silent)
        with pytest.raises(UnknownOutcomeError):
            world.volumes.creation.create("v", {})
    world.volumes.reconciler.run_once()
    world.volumes.creation.create("v", {})
    assert world.volume_id("v") in world.disk


def test_a_creation_that_is_undone_is_not_made_ready_late(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store does what it was asked when nobody expects it any more."""
    transact = world.store.transact
    late: list[Any] = []

    def slow(*asked: Any) -> Outcome:
        if any(b'"ready"' in each.value for each in asked[1] if isinstance(each, Put)):
            late.append(asked)
            raise UnknownOutcomeError("no answer")
        return transact(*asked)

    def remove(name: str, _volume: Volume) -> None:
        if name == "remove":
            assert not transact(*late.pop()).succeeded

    world.backend.before = remove
    monkeypatch.setattr(world.store, "transact", slow)
    with pytest.raises(UnknownOutcomeError):
        world.volumes.creation.create("v", {})
    assert world.catalogue.find("v") is None
    assert (world.disk, late) == ({}, [])


def test_create_ends_a_removal_first(world: World) -> None:
    world.volumes.creation.create("v", {})
    before = world.volume_id("v")
    stored = world.catalogue.find("v")
    assert stored is not None
    set_phase(world.catalogue, stored, "removing", stored.record.node)
    world.volumes.creation.create("v", {})
    assert world.volume_id("v") != before
    assert set(world.disk) == {world.volume_id("v")}
    world.volumes.mounting.mount("v", "a")


def test_a_copy_is_never_made_empty(world: World) -> None:
    """It was there when the request was read, so that nothing was to be copied."""
    asked = {"backend": "rsync", "from": "source"}
    resolved = Resolved(world.backend, asked, {"mode": "0755"}, asked)
    with pytest.raises(VolumeBusyError, match="removed meanwhile"):
        world.volumes.creation._begin("v", resolved, Deadline(5), filled=False)
    assert world.catalogue.find("v") is None
