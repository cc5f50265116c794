"""
A share that somebody has filled with markers, and things that are none.

The agent runs as it does on a node, on a directory that stands for the control mount.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.base import Snapshot
from backends.nfs.agent import main as agent_main
from backends.nfs.agent import markers, snapshots
from backends.nfs.agent.catalogue import Refused, key_of
from backends.nfs.identity import NothingKnown
from backends.nfs.options import Export
from backends.nfs.share import Share
from backends.system import regular_files
from backends.system.clock import Deadline
from backends.system.programs import own_program
from backends.system.run import Helper
from tests.support.leases import leased
from tests.support.nfs_agent import Node
from tests.support.peers import COMMAND_DEADLINE_S

# Whoever reads them all reads several pages.
MANY = 100
LARGE = "x" * 60_000


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Return a node on a share with one volume that is whole."""
    made = Node(tmp_path, "node")
    made.create("mine")
    return made


@pytest.fixture
def agent(node: Node) -> Iterator[Helper]:
    helper = Helper(own_program(agent_main, str(node.root), "node"))
    yield helper
    helper.end()


def fill(node: Node, number: int = MANY) -> None:
    [mine] = node.catalogue.scan()
    for each in range(number):
        name = f"v{each}"
        forged = {**mine, "id": str(uuid.uuid4()), "name": name, "subdir": name}
        forged |= {"adopt": False, "node": "node", "padding": LARGE}
        (node.root / ".dvol/volumes" / key_of(name)).write_text(json.dumps(forged))


def ask(agent: Helper, op: str, **request: Any) -> tuple[dict[str, Any], int]:
    """Return the agent's answer, and how long it is."""
    line = agent.ask(
        json.dumps({"op": op, **request}), deadline=Deadline(COMMAND_DEADLINE_S)
    )
    return json.loads(line), len(line)


def test_large_markers_come_page_by_page(node: Node, agent: Helper) -> None:
    """And the padding of none comes at all."""
    fill(node)
    names: list[str] = []
    answers = 0
    more = True
    while more:
        answer, size = ask(agent, "survey", held=[], first=answers == 0)
        found = answer["result"]
        assert size < MANY * 1000
        assert len(found["markers"]) * len(LARGE) < 3 << 20
        names += [each["name"] for each in found["markers"]]
        more, answers = found["more"], answers + 1
        # Others have their turn between two pages, with a look of their own.
        assert ask(agent, "find", name="mine")[0]["result"]["name"] == "mine"
        assert ask(agent, "repair", tokens=["none"])[0]["result"] == 0
    assert answers > 2
    assert sorted(names) == sorted(["mine", *(f"v{each}" for each in range(MANY))])


def test_the_daemon_puts_the_pages_together(
    node: Node, agent: Helper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(node)
    export = Export("192.0.2.1", "/x", "4", "")
    share = Share(export, tmp_path, node="node", copying=set(), known=NothingKnown())

    def call(_: Share, op: str, *, deadline: Deadline, **request: Any) -> Any:
        held = sorted(request.pop("held", tuple)())
        answer = ask(agent, op, **request, held=held)[0]
        return answer["result"]

    monkeypatch.setattr(Share, "_require_life", lambda _: None)
    monkeypatch.setattr(Share, "call", call)
    share.survey()
    assert share.state.error == ""
    assert len(share.state.markers or ()) == MANY + 1


def test_more_than_can_be_looked_at_is_told(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One volume's own marker is found all the same; a new one might be in another."""
    fill(node)
    monkeypatch.setattr(markers, "PAGES_MAX", 1)
    found, more = node.catalogue.markers.page(is_first=True)
    assert not more
    assert node.catalogue.markers.is_cut
    assert len(found) < MANY
    assert node.catalogue.marker("v1") is not None
    with pytest.raises(Refused, match=r"more than the .* remove from .dvol/volumes"):
        node.create("new")
    for each in range(MANY):
        (node.root / ".dvol/volumes" / key_of(f"v{each}")).unlink()
    assert node.create("new")["state"] == "ready"


def test_what_is_damaged_is_read_once(node: Node) -> None:
    path = node.root / ".dvol/volumes" / key_of("mine")
    whole, shown = path.read_text(), path.stat()
    path.write_text("{half")
    assert node.names() == []
    damaged = path.stat()
    # It would be a marker now, if it were read.
    path.write_text(whole)
    os.utime(path, ns=(damaged.st_atime_ns, damaged.st_mtime_ns))
    assert node.names() == []
    os.utime(path, ns=(shown.st_atime_ns, shown.st_mtime_ns))
    assert node.names() == ["mine"]


def test_snapshots_of_one_volume_are_told_in_an_answer_that_ends(
    node: Node, agent: Helper, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = node.catalogue.marker("mine")
    assert mine is not None
    place = node.root / ".dvol/snapshots" / key_of("mine").removesuffix(".json")
    for number in range(20):
        (place / f"s{number}").mkdir(parents=True)
        facts = {"files": 7, "padding": LARGE if number % 2 else ""}
        (place / f"s{number}/snapshot.json").write_text(json.dumps(facts))
    request = {"name": "mine", "id": mine["id"]}
    answer, size = ask(agent, "snapshots", **request)
    assert size < 20 * 200
    listed = [Snapshot.of_facts(each["name"], each) for each in answer["result"]]
    assert sorted(each.files for each in listed) == [0] * 10 + [7] * 10
    monkeypatch.setattr(snapshots, "_LISTED_MAX", 5)
    assert len(snapshots.listed(node.catalogue, request)) == 5


def test_a_marker_that_could_not_be_read_is_read_again_and_may_be_of_a_volume(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only if its directory changed it was read again, and nobody missed it."""
    monkeypatch.setattr(regular_files, "_LEASE_PATIENCE_S", 0.0)
    monkeypatch.setattr(markers, "_TIMESTAMP_GRAIN_S", -1.0)
    other, third = node.create("other"), Node(node.root, "third")
    marker = node.root / ".dvol/volumes" / key_of("mine")
    with leased(marker, kept=True):
        assert third.names() == ["other"]
    assert third.names() == ["mine", "other"]
    with leased(marker, kept=True):
        assert Node(node.root, "fourth").remove(other, "delete") == "archive"
