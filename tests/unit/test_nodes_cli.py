"""`remora node` against the control API of a member, over a real socket."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from flask import Flask

from backends.system.clock import Deadline
from plugin.api.admin.http import _error
from plugin.api.admin.nodes import add_nodes, node_status
from plugin.api.calls import observe_calls
from plugin.api.metrics import Metrics
from plugin.daemon.node import Node
from plugin.daemon.server import Server
from plugin.daemon.sockets import bind_socket
from tests.protocol.command import Cli, Done, caller
from tests.support.members import Members
from tests.support.memory_store import Memory, MemoryStore
from tests.support.world import World

pytestmark = [
    pytest.mark.xdist_group("unit-cli"),
    # Elsewhere a call of main() is a process, whose end closes its sockets.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def members() -> Iterator[Members]:
    memory = Memory()
    made = Members(lambda: MemoryStore(memory), ttl_s=60.0)
    yield made
    made.close()


@pytest.fixture
def cli(
    members: Members,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Cli]:
    """Return the command; the daemon that answers it is node alpha."""
    alpha = members.started("alpha", addresses=("10.0.0.1", "fd00::1"))
    app = Flask("control")
    volumes, owning = world.volumes, world.ownership
    metrics = Metrics(
        volumes.views, owning.registry, world.node.references, owning.quarantine_records
    )
    observe_calls(app, metrics, socket="control", render=_error)
    add_nodes(app, alpha, alpha.directory)
    path = tmp_path / "control.sock"
    config = tmp_path / "remora.toml"
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    config.write_text(
        f'[daemon]\ncontrol_socket = "{path}"\nstate_dir = "{state_dir}"\n'
    )
    server = Server(app, bind_socket(path), name="control", threads=2)
    server.start()
    yield caller(SimpleNamespace(config=config), monkeypatch, capsys)
    gc.collect()  # here, where unclosed sockets are expected
    server.stop_accepting()
    assert server.drain(Deadline(20))


def test_the_nodes_are_listed(cli: Cli, members: Members) -> None:
    beta = members.started("beta", addresses=("10.0.0.2",))
    gamma = members.started("gamma")
    members.crash(gamma)
    members.store.revoke_lease(gamma.lease)
    assert cli("node", "drain", "beta") == Done(0, "beta\n", "")
    rows = [line.split() for line in cli("node", "ls").out.splitlines()]
    version = rows[1][3]
    capacity = ["1000", "B", "/", "600", "B"]
    assert rows == [
        ["NAME", "STATE", "ADDRESS", "VERSION", "CAPACITY/FREE", "CLOCK"],
        ["alpha*", "ready", "10.0.0.1", version, *capacity, "+0.0", "s"],
        ["beta", "drained", "10.0.0.2", version, *capacity, "-"],
        ["gamma", "down", "-", version, *capacity, "-"],
    ]
    assert cli("node", "undrain", beta.own.id) == Done(0, "beta\n", "")
    states = {
        each["name"]: each["state"] for each in cli("node", "ls", "--json").json()
    }
    assert states == {"alpha": "ready", "beta": "ready", "gamma": "down"}


def test_one_node_is_shown(cli: Cli, members: Members) -> None:
    found = cli("node", "inspect", "alpha", "--json").json()
    assert found["this_node"]
    assert found["addresses"] == ["10.0.0.1", "fd00::1"]
    assert found["public_key"] == "ssh-ed25519 BBBB"
    assert found == cli("node", "inspect", found["id"], "--json").json()
    shown = cli("node", "inspect", "alpha").out.splitlines()
    assert "addresses: 10.0.0.1, fd00::1" in shown
    assert "pool available bytes: 600 B" in shown


def test_a_node_that_is_not_there(cli: Cli, members: Members) -> None:
    members.started("beta")
    for verb in ("inspect", "drain", "undrain", "rm"):
        for name in ("gamma", "a b"):
            assert cli("node", verb, name).code == 25
    assert cli("node", "inspect", "gamma").error == (
        "node-not-found: there is no node 'gamma' (hint: the nodes are: alpha, beta)"
    )


def test_removing_nodes(cli: Cli, members: Members) -> None:
    beta = members.started("beta")
    done = cli("node", "rm", "beta", "--force")
    assert done.code == 27
    assert done.error.startswith("node-conflict: node 'beta' is alive (hint: stop")
    members.crash(beta)
    members.store.revoke_lease(beta.lease)
    members.only_on[beta.own.id] = {"all of": ["db"], "snapshots of": ["rows"]}
    refused = cli("node", "rm", "beta")
    assert refused.code == 27
    assert "that no other node has: all of db; snapshots of rows (" in refused.error
    assert cli("node", "rm", "beta", "--force", "--json").json() == {"removed": "beta"}
    assert [each["name"] for each in cli("node", "ls", "--json").json()] == ["alpha"]


def test_a_clock_far_off_is_told(cli: Cli, members: Members) -> None:
    beta = members.started("beta")
    [alpha] = [each for each in members.all_members() if each.own.name == "alpha"]
    alpha.directory.note_clock(beta.own.id, 0.25)
    assert cli("node", "ls").out.splitlines()[2].endswith("+0.2 s")
    alpha.directory.note_clock(beta.own.id, -90.0)
    listed = cli("node", "ls")
    assert listed.out.splitlines()[2].endswith("-90.0 s")
    warning = "the clock of node 'beta' is 90 s behind this node's"
    assert listed.err == f"warning: {warning}\n"
    assert node_status(alpha, alpha.directory) == {
        "name": "alpha",
        "id": alpha.own.id,
        "cluster": True,
        "health": "ok",
        "warnings": [warning],
    }


def test_a_new_identity(cli: Cli, tmp_path: Path) -> None:
    node = Node(tmp_path / "state")
    node.close()
    assert cli("node", "new-identity") == Done(0, f"{node.id}\n", "")
    again = Node(tmp_path / "state")
    again.close()
    assert again.id != node.id
