"""`remora snapshot` and `remora clone` against a real daemon."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.protocol.command import Cli, Done, caller
from tests.protocol.node import Node, running
from tests.unit.test_cli_import import serving

pytestmark = [
    pytest.mark.xdist_group("unit-cli"),
    # Elsewhere a call of main() is a process, whose end closes its sockets.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with running() as found:
        yield found


@pytest.fixture
def cli(
    node: Node, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    """Return a function that calls the command as a shell does."""
    yield caller(node, monkeypatch, capsys)
    for name in node.names():
        node.ok("Remove", Name=name)
    gc.collect()  # here, where unclosed sockets are expected


def test_snapshots_and_clones(cli: Cli, node: Node) -> None:
    assert node.create("db", mode="0750")
    live = Path(node.get("db")["Status"]["path"])
    (live / "file").write_text("monday")
    assert cli("snapshot", "create", "db", "monday") == Done(0, "db@monday\n", "")
    done = cli("snapshot", "create", "db", "monday")
    assert done.code == 21
    assert done.error.startswith("snapshot-exists: ")
    unnamed = cli("snapshot", "create", "db").out.strip()
    assert re.fullmatch(r"db@\d{8}T\d{6}Z", unnamed)
    (live / "file").write_text("tuesday")
    [heading, *rows] = cli("snapshot", "ls", "db").out.splitlines()
    assert heading.split() == ["NAME", "NODE", "FILES", "SIZE", "CREATED"]
    shown = f"{node.control('GET', '/v1/status').json()['node']['name']}*"
    assert ["monday", shown, "1", "6", "B"] in [row.split()[:5] for row in rows]
    assert cli("clone", "db@monday", "old", "-o", "mode=0700").out == "old\n"
    options = node.get("old")["Status"]["options"]
    assert (options["from"], options["mode"]) == ("db@monday", "0700")
    copy = Path(node.get("old")["Status"]["path"])
    assert (copy / "file").read_text() == "monday"
    assert copy.stat().st_mode & 0o7777 == 0o700
    assert cli("clone", "db", "old").code == 18
    assert cli("clone", "db@none", "new").code == 22
    assert cli("clone", "nothing", "new").code == 11
    assert cli("clone", "db@", "new").code == 10
    done = cli("snapshot", "restore", "db", "monday")
    assert done.out == "db is db@monday again\n"
    kept = done.err.strip().rpartition("@")[2]
    assert (live / "file").read_text() == "monday"
    assert cli("rm", "db", "--force").code == 15
    names = ("monday", unnamed.partition("@")[2], kept)
    assert cli("snapshot", "rm", "db", *names).code == 0
    assert cli("snapshot", "ls", "db", "--json").json() == []
    assert cli("snapshot", "rm", "db", "monday").code == 22
    assert cli("snapshot", "create", "db", "../x").code == 10


def test_what_is_in_use_is_not_restored(cli: Cli, node: Node) -> None:
    assert node.create("db")
    assert cli("snapshot", "create", "db", "s").code == 0
    node.ok("Mount", Name="db", ID="a")
    assert cli("snapshot", "restore", "db", "s").code == 12
    node.ok("Unmount", Name="db", ID="a")
    assert cli("snapshot", "rm", "db", "s").code == 0


def test_a_container_that_cannot_be_paused_is_told_and_nothing_is_copied(
    cli: Cli, node: Node
) -> None:
    assert node.create("db")
    path = node.directory / "docker.sock"
    query = quote(json.dumps({"volume": ["db"], "status": ["running"]}))
    with serving(path) as engine:
        engine.answers[f"GET /containers/json?filters={query}"] = (
            200,
            [{"Id": "one"}, {"Id": "two"}],
        )
        engine.answers["POST /containers/one/pause"] = (204, b"")
        engine.answers["POST /containers/one/unpause"] = (204, b"")
        engine.answers["POST /containers/two/pause"] = (500, {"message": "no freezer"})
        host = f"unix://{path}"
        done = cli("snapshot", "create", "db", "s", "--pause", DOCKER_HOST=host)
        assert (done.code, done.error) == (20, "engine: no freezer")
        assert engine.calls[-1] == "POST /containers/one/unpause"
        assert engine.calls.count("POST /containers/two/pause") == 5
        assert cli("snapshot", "ls", "db", "--json").json() == []
        engine.answers["POST /containers/two/pause"] = (204, b"")
        engine.answers["POST /containers/two/unpause"] = (204, b"")
        assert cli("snapshot", "create", "db", "s", "--pause", DOCKER_HOST=host).out
        assert {*engine.calls[-2:]} == {
            "POST /containers/one/unpause",
            "POST /containers/two/unpause",
        }
    assert cli("snapshot", "rm", "db", "s").code == 0
