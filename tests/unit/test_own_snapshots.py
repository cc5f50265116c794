"""Which snapshots the cluster knows of: those that lie on the nodes' disks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.errors import InvalidRequestError, SnapshotNotFoundError
from backends.system import clock
from plugin.ownership.heads import put_tomb
from plugin.ownership.state import Tomb
from plugin.volumes import own_snapshots as module
from plugin.volumes.operations import never
from plugin.volumes.own_snapshots import OwnSnapshots
from tests.fault.two_nodes import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Yield a node of a cluster that has snapshot `monday` of volume `v`."""
    made = World(tmp_path, "alpha")
    made.volumes.creation.create("v", {})
    made.volumes.snapshots.create("v", "monday", caller_gone=never)
    yield made
    made.close()


def known(world: World) -> list[str]:
    """Return the snapshots of `v` that the cluster thinks this node has."""
    found = world.nodes.snapshots.of(world.volumes.views.existing("v").record.id)
    return [each.name for each in found.get(world.node.id, [])]


def snapshots(world: World) -> Path:
    volume_id = world.volumes.views.existing("v").record.id
    return world.home / "pool/volumes" / volume_id / "snapshots"


def test_a_pool_that_is_away_at_the_start_deletes_no_record(world: World) -> None:
    identity = world.home / "pool/pool.json"
    identity.rename(world.home / "away")
    started = OwnSnapshots(world.ownership)
    for _ in range(3):
        started.mend()
    assert known(world) == ["monday"]
    (world.home / "away").rename(identity)
    shutil.rmtree(snapshots(world) / "monday")
    started.mend()
    assert known(world) == []


@pytest.mark.parametrize("when", ["told", "looked at"])
def test_a_pool_that_goes_meanwhile_deletes_no_record(
    world: World, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    disk = world.pool.snapshots

    def gone(_volume: object) -> list[object]:
        (world.home / "pool/pool.json").unlink(missing_ok=True)
        return []

    monkeypatch.setattr(disk, "all", gone)
    if when == "told":
        world.volumes.snapshots.own.tell(world.volumes.views.existing("v").record)
    else:
        OwnSnapshots(world.ownership).mend()
    assert known(world) == ["monday"]


def test_the_disk_is_looked_at_now_and_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = world.volumes.snapshots.own
    own.mend()
    shutil.rmtree(snapshots(world) / "monday")
    own.mend()
    assert known(world) == ["monday"]
    later_s = clock.monotonic_s() + module._LOOK_EVERY_S
    monkeypatch.setattr(clock, "monotonic_s", lambda: later_s)
    own.mend()
    assert known(world) == []


def test_what_could_not_be_told_is_looked_at_in_the_next_pass(world: World) -> None:
    own = world.volumes.snapshots.own
    own.mend()
    shutil.rmtree(snapshots(world) / "monday")
    identity = world.home / "pool/pool.json"
    identity.rename(world.home / "away")
    own.tell(world.volumes.views.existing("v").record)
    assert known(world) == ["monday"]
    (world.home / "away").rename(identity)
    own.mend()
    assert known(world) == []


@pytest.mark.parametrize("verb", ["remove", "restore"])
def test_a_snapshot_that_went_unseen_is_not_found_and_others_are_told(
    world: World, verb: str
) -> None:
    world.volumes.snapshots.own.mend()
    shutil.rmtree(snapshots(world) / "monday")
    service = world.volumes.snapshots
    with pytest.raises(SnapshotNotFoundError):
        if verb == "remove":
            service.remove("v", "monday")
        else:
            service.restore("v", "monday", caller_gone=never)
    assert known(world) == []


def test_of_removed_volumes_of_one_name_the_id_says_which(world: World) -> None:
    """Each has a snapshot, which nothing but its name tells from the other's."""
    ids = []
    for name in ("v", "w"):
        if name != "v":
            world.volumes.creation.create(name, {})
            world.volumes.snapshots.create(name, "monday", caller_gone=never)
        stored = world.volumes.views.existing(name)
        tomb = Tomb(name="old", backend="rsync", removed_at="", pending=("other",))
        world.catalogue.delete(stored)
        world.store.transact([], [put_tomb(stored.record.id, tomb)])
        ids.append(stored.record.id)
    service = world.volumes.snapshots
    with pytest.raises(InvalidRequestError, match="several removed volumes") as refused:
        service.remove("old", "monday")
    assert all(each in refused.value.hint for each in ids)
    service.remove(ids[0], "monday")
    assert service.all(ids[0]) == []
    assert [row["name"] for row in service.all(ids[1])] == ["monday"]
