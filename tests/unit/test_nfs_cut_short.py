"""What a daemon that ended has left half-done on a share, and what goes on there."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.nfs.agent import snapshots, volumes
from tests.support.nfs_agent import Node


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[Node, Node]:
    """Return two nodes of one share."""
    return Node(tmp_path, "a"), Node(tmp_path, "b")


TOKEN = "0123456789abcdef"


def begun(node: Node) -> list[str]:
    found: list[str] = volumes.survey(node.catalogue, {"first": True, "held": []})[
        "begun"
    ]
    return found


def test_only_copies_that_were_cut_short_are_thrown_away(
    nodes: tuple[Node, Node],
) -> None:
    a, b = nodes
    for each, token in ((a, "old"), (a, "young"), (b, "foreign")):
        request = {"token": token, "uid": 0, "gid": 0}
        path = snapshots.begin_copy(each.catalogue, request)["path"]
        (a.root / path / "file").write_text(token)
    assert begun(a) == [
        "old",
        "young",
    ]
    # It may be gone when the answer comes.
    request = {"tokens": ["gone", "old"]}
    assert snapshots.repair(a.catalogue, request) == 1
    assert a.left("copies", "a") == ["young"]
    assert a.left("copies", "b") == ["foreign"]
    assert a.left("trash") == ["old"]


@pytest.mark.parametrize("noted", ["its handle", "its number"])
def test_a_swap_is_finished_once_its_daemon_has_ended(
    nodes: tuple[Node, Node], noted: str
) -> None:
    a, b = nodes
    marker = a.create("v")
    if noted == "its number":
        marker["identity"] = marker["identity"].partition("-")[0]
    (a.root / "v/file").write_text("before")
    request = {"token": TOKEN, "uid": 0, "gid": 0}
    path = snapshots.begin_copy(a.catalogue, request)["path"]
    (a.root / path / "file").write_text("after")
    copy = str(Path(path).parent)
    a.forge(marker, swap={"copy": copy, "keep_as": "kept", "node": "a"})
    assert begun(b) == []
    assert begun(a) == [TOKEN]
    assert (a.root / "v/file").read_text() == "before"
    snapshots.repair(a.catalogue, {"tokens": [TOKEN]})
    assert (a.root / "v/file").read_text() == "after"
    marker = a.catalogue.marker("v") or {}
    assert marker["identity"] == a.catalogue.identity("v")
    assert begun(a) == []
