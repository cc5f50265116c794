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


def number(last: int) -> str:
    return f"11111111-1111-4111-8111-{last:012}"


def record(name: str, last: int, backend: str = "nfs") -> VolumeRecord:
    volume = Volume(id=number(last), name=name, options=OPTIONS, created_at="")
    return VolumeRecord.of(volume, backend=backend)


@dataclass
class World:
    catalogue: Catalogue
    discovery: Discovery
    markers: dict[str, dict[str, Any]]

    def put(self, name: str, last: int) -> None:
        self.markers[name] = {
            "state": "ready",
            "id": number(last),
            "name": name,
            "options": OPTIONS,
            "requested": {},
            "created_at": "",
        }

    def look(self) -> list[str]:
        """Look at the share; return the names of all records."""
        [share] = self.discovery.registry.all()["nfs"]._shares.watched()  # type: ignore[attr-defined]
        share.state = ShareState(state="ok", markers=[*self.markers.values()])
        self.discovery.synchronise()
        return [head.name for head in self.catalogue.heads()]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Yield a node with one share, whose server is not asked."""
    markers: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(Share, "start", lambda _: None)
    monkeypatch.setattr(Share, "call", lambda _, __, name, **___: markers.get(name))
    backend = NfsBackend(tmp_path / "state", node="node")
    backend.watch(OPTIONS)
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

    def stumble(self: NfsBackend, name: str, *, deadline_s: float) -> Volume | None:
        if name.startswith("bad"):
            raise KeyError(name)
        return find(self, name, deadline_s=deadline_s)

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
