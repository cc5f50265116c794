"""Another node's change comes between what a node reads and what it writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from backends.base import Volume
from backends.errors import VolumeBusyError
from backends.system.clock import Deadline
from plugin.errors import ChangedError, NotOwnerError
from plugin.ownership import rules
from plugin.ownership.heads import drop_lock
from plugin.ownership.state import Commit
from plugin.store.base import Compare, Operation, Outcome, Put
from tests.fault.two_nodes import World
from tests.support.world import set_phase


class Meddler:
    """Writes what a change depends on, just before it is made, *times* times."""

    def __init__(self, world: World) -> None:
        self.store = world.store
        self._transact = world.store.transact
        self.key, self.times = "", 0
        self.store.transact = self.transact  # type: ignore[method-assign]

    def meddle(self, key: str, times: int) -> None:
        self.key, self.times = key, times

    def transact(
        self, conditions: Sequence[Compare], operations: Sequence[Operation]
    ) -> Outcome:
        keys = [each.key for each in conditions if each.key.startswith(self.key)]
        if self.key and keys and self.times:
            self.times -= 1
            for key in keys:
                if found := self.store.get(key):
                    self._transact([], [Put(key, found.value, found.lease)])
        return self._transact(conditions, operations)


@pytest.fixture
def world(disk: Path) -> Iterator[World]:
    made = World(disk, "alpha")
    yield made
    made.close()


def released(world: World) -> str:
    """Return the id of a volume that was written to."""
    world.volumes.creation.create("v", {})
    (world.mount() / "file").write_text("bytes")
    return world.volumes.views.existing("v").record.id


@pytest.mark.parametrize("key", ["v/", "volumes/"])
def test_a_volume_is_removed_although_others_change_it(world: World, key: str) -> None:
    released(world)
    world.volumes.unmounting.unmount("v", "engine")
    meddler = Meddler(world)
    meddler.meddle(key, 2)
    world.volumes.removal.remove("v")
    assert not meddler.times
    assert world.catalogue.find("v") is None
    assert world.store.prefix("v/")[0] == []


def test_a_volume_that_changes_all_the_time_stays_whole(world: World) -> None:
    released(world)
    world.volumes.unmounting.unmount("v", "engine")
    meddler = Meddler(world)
    meddler.meddle("volumes/", 1000)
    with pytest.raises(ChangedError, match="'v' was changed by another node"):
        world.volumes.removal.remove("v")
    assert 990 < meddler.times < 1000
    assert world.volumes.views.existing("v").record.phase == "ready"
    assert world.content() == "bytes"
    meddler.meddle("", 0)
    world.volumes.removal.remove("v")


def test_a_volume_is_let_go_although_others_change_it(world: World) -> None:
    volume_id = released(world)
    meddler = Meddler(world)
    meddler.meddle("v/", 2)
    world.volumes.unmounting.unmount("v", "engine")
    assert not meddler.times
    state = world.ownership.heads.read(volume_id)
    assert state.head is not None
    assert (state.head.phase, state.locked_by) == ("idle", "")
    assert state.head.committed == Commit(1, 1)


def test_a_volume_that_was_made_anew_meanwhile_is_not_removed(world: World) -> None:
    released(world)
    world.volumes.unmounting.unmount("v", "engine")
    seen = world.volumes.views.existing("v").record
    world.volumes.removal.remove("v")
    world.volumes.creation.create("v", {})
    world.volumes.removal.remove_seen(seen, Deadline(5))
    assert world.volumes.views.existing("v").record.phase == "ready"


def test_a_creation_is_not_taken_back_from_its_namesake(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    released(world)
    world.volumes.unmounting.unmount("v", "engine")
    seen = world.volumes.views.existing("v").record
    world.volumes.removal.remove("v")
    world.volumes.creation.create("v", {})
    # It was made anew after all records were looked through.
    monkeypatch.setattr(world.catalogue, "of_ids", lambda _: [seen])
    world.volumes.removal.discard(seen.id)
    assert world.volumes.views.existing("v").record.phase == "ready"


def test_a_removal_that_another_node_has_begun_is_not_joined(world: World) -> None:
    released(world)
    world.volumes.unmounting.unmount("v", "engine")
    stored = world.volumes.views.existing("v")
    set_phase(world.catalogue, stored, "removing", "another")
    with pytest.raises(VolumeBusyError, match="being removed on another node"):
        world.volumes.removal.remove_seen(stored.record, Deadline(5))
    assert world.volumes.views.existing("v").record.phase == "removing"


def test_a_lock_whose_lease_the_store_forgets_hinders_nobody(
    world: World, disk: Path
) -> None:
    volume_id = released(world)
    lease = world.ownership.heads.read(volume_id).lock_lease
    beta = World(disk, "beta")
    try:
        beta.ownership.heads.refresh(1)
        with pytest.raises(NotOwnerError, match="is in use on node 'alpha'"):
            beta.mount()
        beta.store.forgotten = frozenset({lease})
        with pytest.raises(NotOwnerError, match="is on node"):
            beta.mount()
        assert beta.ownership.heads.read(volume_id).locked_by == ""
    finally:
        beta.close()


def test_an_acquisition_that_was_given_up_is_no_release(world: World) -> None:
    """The last owner may still write: its members are asked as after a crash."""
    volume_id = released(world)
    record = world.volumes.views.existing("v").record
    heads, acquisition = world.ownership.heads, world.volumes.mounting.acquisition
    state = heads.read(volume_id)
    assert state.head is not None
    raised = rules.acquire(state.head, locked_by="", node="other", boot_id="boot")
    idle = rules.abandon(raised, node="other", epoch=raised.epoch)
    assert heads.change(state, idle, drop_lock(volume_id)) is not None
    _, orderly = acquisition._raise_epoch(record, Deadline(5))
    assert not orderly


def test_an_acquisition_that_was_given_up_ends_no_release(world: World) -> None:
    """Who gave up has written nothing: the newest bytes are where they were."""
    volume_id = released(world)
    world.volumes.unmounting.unmount("v", "engine")
    record = world.volumes.views.existing("v").record
    heads = world.ownership.heads
    state = heads.read(volume_id)
    assert state.head is not None
    raised = rules.acquire(state.head, locked_by="", node="other", boot_id="boot")
    idle = rules.abandon(raised, node="other", epoch=raised.epoch)
    assert heads.change(state, idle) is not None
    world.volumes.creation.newest.require_here(record, command="remora clone v w")


def test_a_release_is_orderly(world: World) -> None:
    released(world)
    world.volumes.unmounting.unmount("v", "engine")
    record = world.volumes.views.existing("v").record
    _, orderly = world.volumes.mounting.acquisition._raise_epoch(record, Deadline(5))
    assert orderly


def test_what_another_nodes_commit_came_into_is_not_read(world: World) -> None:
    released(world)
    world.volumes.unmounting.unmount("v", "engine")
    record = world.volumes.views.existing("v").record
    ownership, newest = world.ownership, world.volumes.creation.newest
    with newest.reading(record, command="remora clone v w"):
        (world.mount() / "file").write_text("of this node")
        world.volumes.unmounting.unmount("v", "engine")
    copy = ownership.copy_state(record)
    assert copy is not None
    later = msgspec.structs.replace(copy, commit=Commit(copy.commit.epoch + 2, 1))
    with (
        pytest.raises(VolumeBusyError, match="was brought up to date meanwhile"),
        newest.reading(record, command="remora clone v w"),
    ):
        ownership.copy_states.write(record.id, later)


def test_nodes_are_drained_and_removed_although_others_change_them(
    world: World, disk: Path
) -> None:
    beta = World(disk, "beta")
    beta.close()
    [alive] = [
        each
        for each in world.store.prefix("alive/")[0]
        if each.key.endswith(beta.node.id)
    ]
    world.store.revoke_lease(alive.lease)
    meddler = Meddler(world)
    meddler.meddle("nodes/", 3)
    assert world.nodes.set_drained("beta", drained=True).record.drained
    assert not meddler.times
    meddler.meddle("nodes/", 3)
    world.membership.remove("beta")
    assert not meddler.times
    assert [each.record.name for each in world.nodes.all()] == ["alpha"]


def test_an_epoch_in_which_containers_run_here_is_taken_again_and_not_raised(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock went with a lease, and the keeper could not have it back yet."""
    released(world)
    record = world.volumes.views.existing("v").record
    acquisition, heads = world.volumes.mounting.acquisition, world.ownership.heads
    world.store.transact([], [drop_lock(record.id)])

    def change_once_another_has(_: object) -> bool:
        monkeypatch.undo()
        return False

    monkeypatch.setattr(heads, "change_together", change_once_another_has)
    assert acquisition.acquire(record, Deadline(5)) == 1
    assert (world.head().epoch, world.head().phase) == (1, "owned")
    assert heads.read(record.id).locked_by == world.node.id
    # Whatever it may be that fails, the epoch stays.
    world.store.transact([], [drop_lock(record.id)])
    monkeypatch.setattr(heads, "change_together", lambda _: False)
    with pytest.raises(NotOwnerError, match="changes hands all the time"):
        acquisition.acquire(record, Deadline(5))
    assert (world.head().epoch, world.head().phase) == (1, "owned")


def test_a_removal_that_another_node_goes_on_with_is_not_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its copy would be gone, and the volume ready."""
    released(world)
    world.volumes.unmounting.unmount("v", "engine")
    removal = world.volumes.removal
    set_phase(world.catalogue, world.volumes.views.existing("v"), "removing", "another")
    begun = world.volumes.views.existing("v")
    remove = world.pool.remove

    def remove_while_it_is_taken_back(volume: Volume, *, deadline_s: float) -> None:
        with pytest.raises(ChangedError):
            removal._cancel(begun, "another")
        remove(volume, deadline_s=deadline_s)

    monkeypatch.setattr(world.pool, "remove", remove_while_it_is_taken_back)
    removal.remove("v")
    assert world.catalogue.find("v") is None
