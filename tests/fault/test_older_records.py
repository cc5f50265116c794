"""The store knows less than copies: it was lost, or restored from a backup."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from backends.system.clock import Deadline
from plugin.errors import NotOwnerError
from plugin.model import VolumeRecord
from plugin.ownership.copy_states import CopyStates
from plugin.ownership.state import Commit, CopyState
from plugin.store.base import Delete, Put, Store
from tests.fault.two_nodes import World
from tests.fault.world import World as Alone

# More than a restart policy needs to come past what copies have promised.
RETRIES = 6


@pytest.fixture
def alpha(disk: Path) -> Iterator[World]:
    with closing(World(disk, "alpha")) as made:
        yield made


@pytest.fixture
def beta(disk: Path, alpha: World) -> Iterator[World]:
    with closing(World(disk, "beta", mount_deadline_s=2)) as made:
        made.meet(alpha)
        yield made


def use(world: World | Alone, text: str) -> None:
    target = world.volumes.mounting.mount("v", "engine")
    (target / "file").write_text(text)
    world.volumes.unmounting.unmount("v", "engine")


def records_of(store: Store, volume_id: str) -> list[Put]:
    return [Put(each.key, each.value) for each in store.prefix(f"v/{volume_id}/")[0]]


def restore(store: Store, volume_id: str, records: list[Put]) -> None:
    now = {each.key for each in store.prefix(f"v/{volume_id}/")[0]}
    gone = sorted(now - {each.key for each in records})
    store.transact([], [*records, *map(Delete, gone)])


def make_member(world: World, other: World, commit: Commit) -> None:
    """Let *other* have a copy that holds *commit*, as if it had been sent."""
    record = world.volumes.views.existing("v").record
    state = world.ownership.heads.read(record.id)
    both = (world.node.id, other.node.id)
    assert state.head is not None
    head = msgspec.structs.replace(state.head, members=both, holders=both)
    assert world.ownership.heads.change(state, head) is not None
    other.ownership.copy_states.make(
        other.pool, record.volume(), promised=commit.epoch, deadline_s=5
    )
    copy = CopyState(promised=commit.epoch, commit=commit)
    states: CopyStates = other.ownership.copy_states
    states.write(record.id, copy)


@pytest.mark.parametrize("live", [False, True])
def test_what_a_copy_alone_knows_is_not_passed_over_however_often_one_tries(
    alpha: World, beta: World, live: bool
) -> None:
    """No Mount gets a number of an epoch that has begun, and no container ends."""
    alpha.volumes.creation.create("v", {})
    use(alpha, "old")
    volume_id = alpha.volumes.views.existing("v").record.id
    make_member(alpha, beta, Commit(1, 1))
    dumped = records_of(alpha.store, volume_id)
    use(alpha, "newer")
    if live:
        alpha.mount()
    ended: list[VolumeRecord] = []

    def stop_writers(record: VolumeRecord) -> bool:
        ended.append(record)
        return True

    alpha.witness._stop_writers = stop_writers
    restore(alpha.store, volume_id, dumped)
    before = alpha.ownership.copy_state(alpha.volumes.views.existing("v").record)
    for world in [beta] * RETRIES + [alpha]:
        with pytest.raises(NotOwnerError, match="the records know less of 'v'"):
            world.volumes.mounting.mount("v", "another")
    assert alpha.ownership.heads.lineage(volume_id).newest(99) == 1
    assert alpha.content() == "newer"
    assert not ended
    copy = alpha.ownership.copy_state(alpha.volumes.views.existing("v").record)
    assert copy == before


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("restored", [False, True])
def test_a_node_that_is_alone_knows_from_its_copy_what_its_store_has_lost(
    disk: Path, restored: bool, live: bool
) -> None:
    with closing(Alone(disk)) as world:
        world.volumes.creation.create("v", {})
        use(world, "old")
        record = world.volumes.views.existing("v").record
        dumped = records_of(world.store, record.id)
        use(world, "older")
        use(world, "newest")
        if live:  # The machine ends while a container runs.
            world.volumes.mounting.acquisition.acquire(record, Deadline(5))
        if restored:
            restore(world.store, record.id, dumped)
    if not restored:
        for path in disk.glob("store.db*"):
            path.unlink()
    with closing(Alone(disk)) as world:
        if not restored:
            assert world.volumes.adoption.adopt(dry_run=False)["adopted"] == ["v"]
        target = world.volumes.mounting.mount("v", "engine")
        assert (target / "file").read_text() == "newest"
        world.volumes.unmounting.unmount("v", "engine")
        use(world, "and on")
        head = world.ownership.heads.read(record.id).head
        assert head is not None
        assert head.committed.epoch == 5 + live


def test_what_was_promised_to_mounts_that_failed_hinders_nobody(
    alpha: World, beta: World
) -> None:
    """No byte is newer than the records; no number of an epoch is given twice."""
    alpha.volumes.creation.create("v", {})
    use(alpha, "old")
    record = alpha.volumes.views.existing("v").record
    make_member(alpha, beta, Commit(1, 1))
    dumped = records_of(alpha.store, record.id)
    # As if Mounts had failed after these promises.
    for world, promised in ((alpha, 4), (beta, 3)):
        states: CopyStates = world.ownership.copy_states
        copy = CopyState(promised=promised, commit=Commit(1, 1))
        states.write(record.id, copy)
    restore(alpha.store, record.id, dumped)
    use(alpha, "and on")
    assert alpha.ownership.heads.lineage(record.id).newest(99) == 5
