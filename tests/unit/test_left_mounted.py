"""Each exclusive volume that is mounted at the start is guarded, whatever is spoilt."""

from __future__ import annotations

import uuid

import msgspec
import pytest

from plugin.daemon import left_mounted as module
from plugin.daemon.left_mounted import left_mounted
from plugin.model import VolumeRecord
from plugin.ownership.heads import put_head
from plugin.ownership.state import Head
from plugin.store.base import Delete, Put
from tests.support.world import World

ID = str(uuid.uuid4())
HEAD = put_head(ID, Head(epoch=3, owner="own", phase="owned"))
RECORD = VolumeRecord(
    id=ID,
    name="db",
    backend="rsync",
    requested={},
    options={},
    created_at="",
    phase="ready",
)
FIELDS = msgspec.to_builtins(RECORD)
SPOILT = {
    "nothing": msgspec.json.encode(FIELDS),
    "an option": msgspec.json.encode({**FIELDS, "options": {"replicas": 3}}),
    "a newer phase": msgspec.json.encode({**FIELDS, "phase": "frozen"}),
    "a newer backend": msgspec.json.encode({**FIELDS, "backend": "zfs"}),
    "all": b"{",
}


@pytest.fixture(autouse=True)
def mounted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the volume, and what is none, be mounted in the mount directory."""
    points = [world.directory / "mounts" / each for each in (ID, "other")]
    monkeypatch.setattr(
        module.mounts, "mounted", lambda: dict.fromkeys(map(str, points))
    )


def left(world: World) -> list[VolumeRecord]:
    found = left_mounted(world.directory / "mounts", world.catalogue, world.ownership)
    assert all(target.name == each for each, (_, target) in found.items())
    return [record for record, _ in found.values()]


@pytest.mark.parametrize("head", [HEAD, Put(HEAD.key, b"{")], ids=["head", "no head"])
@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_cannot_be_read_is_guarded(world: World, spoilt: str, head: Put) -> None:
    world.store.transact([], [Put("volumes/db", SPOILT[spoilt]), head])
    (record,) = left(world)
    assert (record.id, record.name) == (
        ID,
        ID if spoilt in ("all", "a newer backend") else "db",
    )


def test_what_nobody_ever_owned_is_not(world: World) -> None:
    world.store.transact([], [Put("volumes/db", b"{"), Delete(HEAD.key)])
    assert left(world) == []


def test_what_many_nodes_may_have_mounted_is_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.backend, "exclusive", lambda _: False)
    world.store.transact([], [Put("volumes/db", SPOILT["nothing"]), HEAD])
    assert left(world) == []


def test_without_members_nobody_speaks_for_it(world: World) -> None:
    """An exclusive NFS volume has none: its owner would agree with itself."""
    world.store.transact([], [Put("volumes/db", b"{"), HEAD])
    assert [each.backend for each in left(world)] == ["nfs"]
    kept = Head(epoch=3, owner="own", phase="owned", members=("own",))
    world.store.transact([], [put_head(ID, kept)])
    assert [each.backend for each in left(world)] == ["rsync"]
