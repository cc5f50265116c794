"""What a look at shared storage makes of volumes that it should not have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from backends.base import Volume
from backends.nfs.backend import NfsBackend
from backends.nfs.share import Share, ShareState
from backends.registry import Registry
from plugin.daemon.node import Node
from plugin.model import VolumeRecord
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.discovery import Discovery
from plugin.volumes.operations import VolumeLocks
from tests.support.memory_store import MemoryStore

OPTIONS = {"server": "192.0.2.1", "share": "/x", "nfsvers": "4", "mountMode": "subdir"}
OTHER = "192.0.2.2"
Markers = dict[str, dict[str, dict[str, Any]]]


def number(last: int) -> str:
    return f"11111111-1111-4111-8111-{last:012}"


def record(name: str, last: int, backend: str = "nfs") -> VolumeRecord:
    volume = Volume(id=number(last), name=name, options=OPTIONS, created_at="")
    return VolumeRecord.of(volume, backend=backend)


@dataclass
class World:
    catalogue: Catalogue
    discovery: Discovery
    markers: Markers

    def put(self, name: str, last: int, *, server: str = OPTIONS["server"]) -> None:
        self.markers[server][name] = {
            "state": "ready",
            "id": number(last),
            "name": name,
            "options": OPTIONS,
            "requested": {},
            "created_at": "",
        }

    def look(self) -> list[str]:
        """Look at the shares; return the names of all records."""
        for share in self.discovery.registry.all()["nfs"]._shares.watched():  # type: ignore[attr-defined]
            markers = [*self.markers[share.export.server].values()]
            share.state = ShareState(state="ok", markers=markers)
        self.discovery.synchronise()
        return [head.name for head in self.catalogue.heads()]

    def records(self) -> list[VolumeRecord]:
        return self.catalogue.of_ids([head.id for head in self.catalogue.heads()])


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Yield a node with two shares, whose servers are not asked."""
    markers: Markers = {OPTIONS["server"]: {}, OTHER: {}}

    def call(share: Share, _: str, *, name: str, **__: Any) -> dict[str, Any] | None:
        return markers[share.export.server].get(name)

    monkeypatch.setattr(Share, "start", lambda _: None)
    monkeypatch.setattr(Share, "call", call)
    backend = NfsBackend(tmp_path / "state", node="node")
    for server in markers:
        backend.watch({**OPTIONS, "server": server})
    node = Node(tmp_path)
    catalogue = Catalogue(MemoryStore())
    discovery = Discovery(
        catalogue, Registry([backend]), node.references, VolumeLocks()
    )
    yield World(catalogue, discovery, markers)
    node.close()


def test_what_cannot_be_looked_at_ends_the_look_at_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = NfsBackend.find

    def stumble(self: NfsBackend, name: str, **asked: Any) -> Volume | None:
        if name.startswith("bad"):
            raise KeyError(name)
        return find(self, name, **asked)

    monkeypatch.setattr(NfsBackend, "find", stumble)
    for last, name in enumerate(("bad-record", "gone")):
        world.catalogue.insert(record(name, last))
    world.put("bad-marker", 3)
    world.put("good", 4)
    assert world.look() == ["bad-record", "good"]


def test_a_marker_with_the_id_of_another_volume_is_passed_over(world: World) -> None:
    """References, mounts and owners go by the id: they would be taken for its."""
    world.catalogue.insert(record("db", 1, backend="rsync"))
    world.catalogue.insert(record("mine", 2))
    world.put("zz", 1)
    world.put("mine", 1)  # another one was made under the name, as it says
    world.put("good", 4)
    assert world.look() == ["db", "good", "mine"]
    world.discovery.look_for("zz")
    assert world.look() == ["db", "good", "mine"]
    assert world.catalogue.names()[number(1)] == "db"
    assert world.catalogue.names()[number(2)] == "mine"


def test_another_share_has_no_say_in_a_volume(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever could write to one export took over the volumes of all others."""
    for name, last in (("db", 1), ("gone", 2), ("again", 3)):
        world.catalogue.insert(record(name, last))
    world.put("db", 1)
    world.put("again", 4)  # it was removed there, and another one made
    for name, last in (("db", 11), ("gone", 2), ("again", 3)):
        world.put(name, last, server=OTHER)
    assert world.look() == ["again", "db"]
    del world.markers[OTHER]["gone"]  # whose name is free now
    assert world.look() == ["again", "db"]
    assert [*world.catalogue.names()] == [number(4), number(1)]
    assert {each.options["server"] for each in world.records()} == {OPTIONS["server"]}
    assert sum("192.0.2.1:/x: not that on 192.0.2.2" in x for x in caplog.messages) == 2


def test_a_name_that_two_shares_have_is_nobodys(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for last, server in enumerate(world.markers):
        world.put("db", last, server=server)
    world.put("web", 3, server=OTHER)
    for _ in range(2):
        assert world.look() == ["web"]
    [line] = [each for each in caplog.messages if "'db' is on 192.0.2.1:/x" in each]
    assert "192.0.2.2:/x: passed over" in line
    world.discovery.look_for("db")
    assert [head.name for head in world.catalogue.heads()] == ["web"]
    [each] = world.records()
    assert each.options["server"] == OTHER
