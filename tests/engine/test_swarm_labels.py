"""Labels of a swarm's nodes follow the volumes: a real manager, records in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import pytest

from plugin.engine.engine_api import EngineApi
from plugin.errors import EngineError
from plugin.membership.directory import NodeDirectory
from plugin.membership.nodes import NODES, NodeRecord
from plugin.membership.quarantine_records import QuarantineRecords
from plugin.model import VolumeRecord
from plugin.ownership.heads import Heads, put_head
from plugin.ownership.state import Head
from plugin.store.base import Delete, Put
from plugin.swarm.labels import SwarmLabels
from tests.support.daemon import Machine
from tests.support.engine import SOCKET
from tests.support.host import wait_until
from tests.support.ids import id_of
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.xdist_group("engine-swarm-labels")
OURS, OTHER = "node-1", "node-2"


class World:
    """The records of a cluster whose node `OURS` is beside a manager."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.store = MemoryStore()
        self.records: list[VolumeRecord] = []
        self.engine = EngineApi(machine.host.path(SOCKET), timeout_s=20)
        heads = Heads(self.store, QuarantineRecords(self.store))
        self.labels = SwarmLabels(
            self.engine,
            store=self.store,
            heads=heads,
            nodes=NodeDirectory(self.store, data_only_on=lambda _: {}),
            own_id=OURS,
            records=lambda: self.records,
            driver="remora",
        )
        self.node(OURS)

    def node(self, node_id: str) -> None:
        record = NodeRecord(
            id=node_id,
            name=node_id,
            peer_port=7424,
            version="1",
            protocol=1,
            protocol_oldest=1,
            machine_id="m",
            boot_id="b",
            host_key="",
            public_key="",
            joined_at="",
        )
        self.store.transact([], [Put(NODES + node_id, msgspec.json.encode(record))])

    def volume(self, name: str, owner: str, *members: str) -> None:
        """Write that *owner* has the volume, and *members* have copies."""
        if name not in [each.name for each in self.records]:
            self.records.append(_record(name))
        head = Head(epoch=1, owner=owner, phase="owned", members=(owner, *members))
        self.store.transact([], [put_head(id_of(name), head)])

    def spec(self) -> dict[str, Any]:
        (node,) = self.engine.call("GET", "/nodes")
        return node["Spec"]

    def shown(self) -> Mapping[str, str]:
        return self.spec()["Labels"] or {}


def _record(name: str) -> VolumeRecord:
    return VolumeRecord(
        id=id_of(name),
        name=name,
        backend="rsync",
        requested={},
        options={},
        created_at="",
        phase="ready",
    )


@pytest.fixture(scope="module")
def shared_machine(_requirements: None) -> Iterator[Machine]:
    """Return a machine whose daemon asks the engine nothing meanwhile."""
    machine = Machine(reconcile_interval_s=100)
    yield machine
    machine.close()


@pytest.fixture
def world(machine: Machine) -> Iterator[World]:
    """Yield the world; its engine is in no swarm before and afterwards."""
    yield World(machine)
    machine.engine.docker("swarm", "leave", "--force", check=False)


@pytest.fixture
def swarm(world: World) -> World:
    """Return the world with its engine as the leader of a swarm."""
    world.machine.engine.docker(
        *("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr"),
        "127.0.0.1:2377",
    )
    return world


def test_labels_follow_the_heads(swarm: World) -> None:
    swarm.machine.engine.docker("node", "update", "--label-add", "zone=1", "node-a")
    swarm.labels.run_once()
    assert swarm.shown() == {"zone": "1"}
    swarm.volume("db", OURS, OTHER)
    swarm.volume("pages", OTHER, OURS)
    swarm.volume("logs", OTHER)
    swarm.labels.run_once()
    assert swarm.shown() == {
        "zone": "1",
        "remora.volume.db": "owner",
        "remora.volume.pages": "replica",
        "remora.volume.logs": "none",
    }
    swarm.volume("db", OTHER, OURS)
    del swarm.records[1]
    swarm.labels.run_once()
    assert swarm.shown() == {
        "zone": "1",
        "remora.volume.db": "replica",
        "remora.volume.logs": "none",
    }
    assert swarm.spec()["Availability"] == "active"


def test_nothing_is_written_that_is_there(swarm: World) -> None:
    swarm.volume("db", OURS)
    swarm.labels.run_once()
    (before,) = swarm.engine.call("GET", "/nodes")
    swarm.labels.run_once()
    (after,) = swarm.engine.call("GET", "/nodes")
    assert before["Version"] == after["Version"]


def test_a_conflict_is_left_to_the_next_round(
    swarm: World, caplog: pytest.LogCaptureFixture
) -> None:
    swarm.labels.run_once()
    stale = swarm.engine.call("GET", "/nodes")
    swarm.machine.engine.docker("node", "update", "--label-add", "zone=1", "node-a")
    swarm.volume("db", OURS)
    with caplog.at_level("INFO"):
        swarm.labels._write(stale)
    assert "out of sequence" in caplog.text
    assert swarm.shown() == {"zone": "1"}
    swarm.labels.run_once()
    assert swarm.shown() == {"zone": "1", "remora.volume.db": "owner"}


def test_a_node_that_was_removed_loses_its_labels(swarm: World) -> None:
    swarm.volume("db", OURS)
    swarm.labels.run_once()
    assert swarm.store.get(f"swarm/{OURS}") is not None
    swarm.store.transact([], [Delete(NODES + OURS)])
    swarm.labels.run_once()
    assert swarm.shown() == {}
    assert swarm.store.get(f"swarm/{OURS}") is None


def test_the_engine_meets_the_plugin(swarm: World) -> None:
    engine = swarm.machine.engine
    engine.restart()
    form = "{{.Plugins.Volume}}"
    assert "remora" not in engine.out("info", "--format", form)
    swarm.labels.run_once()
    assert "remora" in engine.out("info", "--format", form)


def test_without_a_swarm_it_says_so_once_and_goes_on(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugin.swarm.labels.SWARM_RETRY_S", 0.1)
    with pytest.raises(EngineError, match="in no swarm"):
        world.labels.run_once()
    world.volume("db", OURS)
    world.labels.start()
    try:
        time.sleep(1)
        world.machine.engine.docker("swarm", "init", "--advertise-addr", "127.0.0.1")
        wait_until(_labelled(world), timeout_s=30, what="the node has its label")
    finally:
        world.labels.stop()
    assert caplog.text.count("in no swarm") == 1


def _labelled(world: World) -> Callable[[], bool]:
    return lambda: world.shown() == {"remora.volume.db": "owner"}


def test_an_engine_that_is_not_there(machine: Machine) -> None:
    api = EngineApi(machine.host.path("/run/none.sock"), timeout_s=1)
    with pytest.raises(EngineError, match="is not at"):
        api.call("GET", "/info")
