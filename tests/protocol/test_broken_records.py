"""
Records that can no longer be read, while the daemon runs.

For Get any answer without a volume means "it is gone", and the engine forgets the
volume's labels, options and references: then silence is the only right answer.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from plugin.model import VolumeRecord
from plugin.store.base import Compare, Put
from plugin.store.sqlite import SqliteStore
from tests.protocol import client
from tests.protocol.node import Node, wait_until

pytestmark = pytest.mark.xdist_group("protocol-storage")


@contextmanager
def broken(node: Node, column: str = "value") -> Iterator[None]:
    """Rename a column of the records, as nothing but damage would; then mend it."""

    def rename(old: str, new: str) -> None:
        database = sqlite3.connect(node.state_dir / "store.db", timeout=20)
        database.execute(f"ALTER TABLE records RENAME COLUMN {old} TO {new}")
        database.close()

    rename(column, "damaged")
    try:
        yield
    finally:
        rename("damaged", column)


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    """Return a node with two volumes, one of them mounted."""
    node = make_node()
    node.start()
    node.create("kept")
    node.create("used")
    node.ok("Mount", Name="used", ID="a")
    return node


def test_get_is_left_unanswered(node: Node) -> None:
    request = client.engine_request("VolumeDriver.Get", b'{"Name":"kept"}\n')
    with broken(node):
        for _ in range(5):
            assert node.send(request) == b""
    assert node.get("kept")["Name"] == "kept"


def test_every_other_call_says_so_in_one_line(node: Node) -> None:
    with broken(node):
        for call in ("Create", "Remove", "Mount", "Unmount", "Path"):
            error = node.refused(call, Name="kept", ID="a")
            assert error.startswith("store-unavailable: "), call
        assert node.refused("List").startswith("store-unavailable: ")
        assert node.call("Capabilities").error == ""
        activation = node.send(client.engine_request("Plugin.Activate", b""))
        assert client.parse(activation).json() == {"Implements": ["VolumeDriver"]}
    assert node.names() == ["kept", "used"]
    assert len(node.stored()) == 2


def test_nothing_is_unmounted_or_removed_meanwhile(node: Node) -> None:
    used = node.get("used")["Status"]["id"]
    with broken(node):
        node.refused("Unmount", Name="used", ID="a")
        node.refused("Remove", Name="used")
        node.refused("Remove", Name="kept")
        assert node.mounts() == [used]
        assert len(node.stored()) == 2
        assert node.control("GET", "/metrics").status == 200
    assert node.references("used") == (1, 0)
    node.ok("Unmount", Name="used", ID="a")
    assert node.mounts() == []


def test_one_damaged_record_does_not_take_the_others_with_it(node: Node) -> None:
    database = sqlite3.connect(node.state_dir / "store.db", timeout=20)
    database.execute("UPDATE records SET value = 'x' WHERE key = 'volumes/kept'")
    database.commit()
    database.close()
    request = client.engine_request("VolumeDriver.Get", b'{"Name":"kept"}\n')
    assert node.send(request) == b""
    assert node.get("used")["Name"] == "used"
    node.ok("Unmount", Name="used", ID="a")
    node.ok("Remove", Name="used")
    assert len(node.stored()) == 1


def test_a_damaged_head_does_not_hide_the_others(node: Node) -> None:
    damaged = node.get("used")["Status"]["id"]
    database = sqlite3.connect(node.state_dir / "store.db", timeout=20)
    key = f"v/{damaged}/head"
    database.execute("UPDATE records SET value = 'x' WHERE key = ?", (key,))
    database.commit()
    database.close()
    rows = {each["name"]: each for each in node.control("GET", "/v1/volumes").json()}
    assert rows["kept"]["health"] == "ok"
    assert rows["used"]["health"] == "error"
    assert f"record {key} cannot be read" in rows["used"]["error"]


def test_what_can_never_be_made_leaves_no_record(node: Node) -> None:
    for name in ("y", "y"):
        error = node.refused("Create", Name=name, Opts={"backend": "nfs"})
        assert error.startswith("invalid-request: backend 'nfs' needs the option 'ser")
    assert [each["name"] for each in node.control("GET", "/v1/volumes").json()] == [
        "kept",
        "used",
    ]
    node.create("y")


def test_a_record_of_it_that_an_older_version_left_goes(node: Node) -> None:
    record = VolumeRecord(
        id=str(uuid.uuid4()),
        name="y",
        backend="nfs",
        requested={"backend": "nfs"},
        options={},
        created_at="2026-01-02T03:04:05Z",
        phase="creating",
    )
    store = SqliteStore(node.state_dir / "store.db")
    try:
        put = Put("volumes/y", msgspec.json.encode(record))
        assert store.transact([Compare("volumes/y", 0)], [put]).succeeded
        wait_until(lambda: store.get("volumes/y") is None, "it is undone", timeout_s=60)
    finally:
        store.close()
    assert not node.control("GET", "/v1/status").json()["left_over"]
    node.create("y")
