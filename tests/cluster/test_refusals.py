"""
What is refused in a cluster, with the node to go to, and that it has changed nothing.

The rules are in `tests/unit/test_replication_rules.py`.
"""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from tests.protocol.command import Cli, caller
from tests.protocol.node import wait_until
from tests.support.owners import WAIT_S, Owner, Records


@pytest.fixture
def name() -> str:
    """Return the name of a volume that no other test has."""
    return f"v-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def volume_id(alpha: Owner, beta: Owner, name: str) -> str:
    """Return the id of a volume whose bytes, and a snapshot `s`, are on alpha alone."""
    made = alpha.create(name, replicas="1")
    target = alpha.mount(name)
    alpha.run("sh", "-c", f"echo precious > {target}/file")
    alpha.unmount(name)
    alpha.control_ok("POST", f"/v1/volumes/{name}/snapshots", {"snapshot": "s"})
    beta.wait_known(name, ownership="idle", holders=["alpha"])
    wait_until(
        lambda: len(beta.control_ok("GET", f"/v1/volumes/{name}/snapshots")) == 1,
        "beta knows of the snapshot",
        timeout_s=WAIT_S,
    )
    return made


@pytest.fixture
def cli(
    alpha: Owner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Cli:
    return caller(alpha, monkeypatch, capsys)


def test_a_refused_removal_leaves_the_volume_as_it_was(
    alpha: Owner, beta: Owner, name: str, volume_id: str, shared_records: Records
) -> None:
    before = shared_records.heads.read(volume_id)
    assert "has snapshots" in alpha.refused("Remove", Name=name)
    assert "has snapshots on node 'alpha'" in beta.refused("Remove", Name=name)
    assert shared_records.heads.read(volume_id) == before
    for owner in (alpha, beta):
        assert owner.get(name)["Status"]["phase"] == "ready"
    # What counts as let go orderly can have another copy, and leave a drained node.
    alpha.control_ok("POST", f"/v1/volumes/{name}/replicas", {"node": "beta"})
    wait_until(
        lambda: {*shared_records.head(volume_id).holders} == {alpha.id, beta.id},
        "beta has a copy",
        timeout_s=WAIT_S,
    )
    alpha.control_ok("DELETE", f"/v1/volumes/{name}/snapshots/s")
    wait_until(
        lambda: not beta.call("Remove", {"Name": name}).error,
        "beta knows that there is no snapshot",
        timeout_s=WAIT_S,
    )


def test_a_snapshot_is_known_on_every_node_and_used_on_its_own(
    alpha: Owner, beta: Owner, name: str, volume_id: str, cli: Cli
) -> None:
    there = {"REMORA_CONFIG": str(beta.config)}
    for settings, node in (({}, "alpha*"), (there, "alpha")):
        [_, row] = cli("snapshot", "ls", name, **settings).out.splitlines()
        assert row.split()[:3] == ["s", node, "1"]
    for verb, command in (
        ("rm", ("snapshot", "rm", name, "s")),
        ("restore", ("snapshot", "restore", name, "s")),
        ("clone", ("clone", f"{name}@s", f"{name}-new")),
    ):
        done = cli(*command, **there)
        assert done.code == 14, verb
        assert f"snapshot 's' of '{name}' is on node 'alpha'" in done.error
        assert f"(hint: there: remora {' '.join(command)})" in done.error
    assert cli("snapshot", "rm", name, "never", **there).code == 22
    assert not beta.copy(volume_id).exists()
    assert f"{name}-new" not in str(beta.control_ok("GET", "/v1/volumes"))
    assert cli("clone", f"{name}@s", f"{name}-new").code == 0
    path = Path(alpha.get(f"{name}-new")["Status"]["path"])
    assert (path / "file").read_text() == "precious\n"
    assert cli("snapshot", "rm", name, "s").code == 0
    wait_until(
        lambda: not beta.control_ok("GET", f"/v1/volumes/{name}/snapshots"),
        "beta knows that it has gone",
        timeout_s=WAIT_S,
    )


def test_bytes_are_copied_where_the_newest_are(
    alpha: Owner, beta: Owner, name: str, volume_id: str
) -> None:
    def refusals() -> list[str]:
        target = f"/v1/volumes/{name}/snapshots"
        clone = {"name": f"{name}-new", "source": name, "options": {}}
        options = {"from": name}
        return [
            beta.control_refused("POST", target, {"snapshot": "t"}),
            beta.control_refused("POST", "/v1/clone", clone),
            beta.refused("Create", Name=f"{name}-new", Opts=options),
        ]

    expected = f"the newest bytes of '{name}' are on node 'alpha'"
    assert all(expected in each for each in refusals())
    alpha.control_ok("POST", f"/v1/volumes/{name}/replicas", {"node": "beta"})
    beta.wait_known(name, replication="2 of 2 copies")
    # Now beta has them, too, until a container writes on alpha.
    beta.control_ok("POST", f"/v1/volumes/{name}/snapshots", {"snapshot": "t"})
    alpha.mount(name)
    beta.wait_known(name, owner="alpha")
    assert all(expected in each for each in refusals())
    alpha.unmount(name)
    assert volume_id in alpha.stored()


def test_members_must_be_nodes_and_too_many_copies_are_told(
    alpha: Owner, name: str
) -> None:
    refused = alpha.refused("Create", Name=name, Opts={"members": "alpha,delta"})
    assert refused == (
        "node-not-found: there is no node 'delta' (hint: the nodes are: alpha, beta)"
    )
    assert name not in str(alpha.control_ok("GET", "/v1/volumes"))
    alpha.create(name, replicas="9")
    status = alpha.get(name)["Status"]
    assert status["warnings"] == ["9 copies are asked for, and the cluster has 2 nodes"]
    alpha.mount(name)
    alpha.wait_known(name, replication="2 of 9 copies")
    alpha.unmount(name)
