"""Which share is the right one, told by agents on several and by records of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from backends.base import Volume
from backends.nfs.agent import main
from backends.nfs.agent.catalogue import Refused
from backends.nfs.errors import NfsError
from backends.nfs.identity import Identified
from backends.system.clock import Deadline
from plugin.model import VolumeRecord
from plugin.store.base import Record
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.shares import ShareRecords
from tests.support.memory_store import MemoryStore
from tests.support.nfs_agent import Node

OPTIONS = {"server": "nas", "share": "/x", "mountMode": "subdir"}


class World:
    """One cluster's records, and two servers that can answer as `nas`."""

    def __init__(self, directory: Path) -> None:
        self.catalogue = Catalogue(MemoryStore())
        self.records = ShareRecords(self.catalogue._store, self.catalogue)
        self.servers = {}
        for name in ("right", "wrong"):
            (directory / name).mkdir()
            self.servers[name] = Node(directory / name, "n")

    def call(self, server: str, operation: str, **request: Any) -> Any:
        """Return the answer to a node for which *server* answers."""
        return self._node(server).call(operation, deadline=Deadline(9), **request)

    def accept(self, server: str) -> str:
        return self._node(server).accept(Deadline(9))

    def refused(
        self, server: str, operation: str, code: str = "NFS-OTHER", **request: Any
    ) -> None:
        before = sorted(self.servers[server].root.rglob("*"))
        with pytest.raises(NfsError) as caught:
            self.call(server, operation, **request)
        assert caught.value.code == code
        assert sorted(self.servers[server].root.rglob("*")) == before

    def create(self, server: str, name: str) -> dict[str, Any]:
        request = Node.creation(name)
        made: dict[str, Any] = self.call(server, "create", **request)
        self.note(made)
        return made

    def note(self, marker: dict[str, Any]) -> None:
        volume = Volume(marker["id"], marker["name"], OPTIONS, created_at="")
        assert self.catalogue.insert(VolumeRecord.of(volume, backend="nfs"))

    def _node(self, server: str) -> Identified:
        catalogue = self.servers[server].catalogue

        def ask(operation: str, *, deadline: Deadline, **request: Any) -> Any:
            del deadline
            try:
                return main._act(catalogue, {"op": operation, **request})
            except Refused as refusal:
                raise NfsError(refusal.code, str(refusal), "nas:/x") from None

        return Identified("nas:/x", self.records, ask)


OTHER = "4f6f2c1e-0000-4000-8000-000000000001"
SURVEY = {"first": True, "held": []}
COPY = {"token": "0123456789abcdef"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def asked_of(marker: dict[str, Any]) -> dict[str, Any]:
    return {"name": marker["name"], "id": marker["id"], "on_delete": "delete"}


def test_a_share_is_left_as_it_is_until_a_volume_is_made_on_it(world: World) -> None:
    assert world.call("right", "survey", **SURVEY)["markers"] == []
    assert list(world.servers["right"].root.iterdir()) == []
    assert world.records.identity("nas:/x") == ""


@pytest.mark.parametrize("other", ["empty", "has a catalogue", "lacks its identity"])
def test_nothing_is_concluded_from_another_share(world: World, other: str) -> None:
    """One node of two sees it, or both."""
    marker = world.create("right", "db")
    if other != "empty":
        world.servers["wrong"].create("of-others")
        main._act(
            world.servers["wrong"].catalogue,
            {"op": "identify", "volumes": [], "begin": other == "has a catalogue"},
        )
    if other == "lacks its identity":
        (world.servers["wrong"].root / ".dvol/share.json").unlink()
    for operation in ("find", "hold", "remove", "release", "discard", "snapshots"):
        world.refused("wrong", operation, **asked_of(marker))
    world.refused("wrong", "survey", **SURVEY)
    world.refused("wrong", "begin_copy", **COPY)
    world.refused("wrong", "create", **Node.creation("new"))
    assert world.call("right", "find", name="db") == marker


def test_nothing_is_concluded_from_a_catalogue_that_has_lost_its_markers(
    world: World,
) -> None:
    marker = world.create("right", "db")
    shutil.rmtree(world.servers["right"].root / ".dvol/volumes")
    for operation in ("find", "hold", "remove"):
        world.refused("right", operation, "NFS-CATALOGUE", **asked_of(marker))
    world.refused("right", "survey", "NFS-CATALOGUE", **SURVEY)


def test_a_share_of_older_agents_is_known_by_a_volume_on_it(world: World) -> None:
    """While one of them answers whose disk is not mounted, nothing is known yet."""
    right = world.servers["right"]
    world.note(Node.creation("gone")["marker"])
    world.note(right.create("db"))
    world.refused("wrong", "survey", **SURVEY)
    world.refused("wrong", "create", **Node.creation("new"))
    assert world.records.identity("nas:/x") == ""
    assert len(world.call("right", "survey", **SURVEY)["markers"]) == 1
    assert world.records.identity("nas:/x")
    world.refused("wrong", "survey", **SURVEY)


def test_a_share_without_volumes_may_be_made_anew(world: World) -> None:
    marker = world.create("right", "db")
    [stored] = [world.catalogue.find("db")]
    assert stored is not None
    world.call("right", "remove", **asked_of(marker), time="now")
    world.catalogue.delete(stored)
    world.create("wrong", "db")
    world.refused("right", "survey", **SURVEY)


def test_people_can_say_that_it_was_replaced(world: World) -> None:
    marker = world.create("right", "db")
    identity = world.accept("wrong")
    assert world.records.identity("nas:/x") == identity
    assert world.call("wrong", "find", name="db") is None
    world.refused("right", "hold", **asked_of(marker))


def test_who_only_looks_lets_no_other_share_count(world: World) -> None:
    """The first volume may be made just now: its record is on its way."""
    identity = world.accept("right")
    main._act(
        world.servers["wrong"].catalogue,
        {"op": "identify", "volumes": [], "begin": True},
    )
    world.refused("wrong", "survey", **SURVEY)
    world.refused("wrong", "find", name="db")
    assert world.records.identity("nas:/x") == identity


def test_two_nodes_that_note_the_same_agree(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = world.accept("right")
    store, stale = world.records.store, [None]

    def get(key: str) -> Record | None:
        return stale.pop() if stale else MemoryStore.get(store, key)

    monkeypatch.setattr(store, "get", get)
    assert world.records.note("nas:/x", identity, instead_of="") == identity


def test_of_two_that_accept_another_share_one_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.accept("right")
    note = world.records.note

    def late(share: str, identity: str, *, instead_of: str) -> str:
        note(share, OTHER, instead_of=instead_of)
        return note(share, identity, instead_of=instead_of)

    monkeypatch.setattr(ShareRecords, "note", lambda _, *a, **k: late(*a, **k))
    with pytest.raises(NfsError, match="another node has accepted"):
        world.accept("wrong")
    assert world.records.identity("nas:/x") == OTHER != first
