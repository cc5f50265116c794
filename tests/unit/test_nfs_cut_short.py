"""What a daemon that ended has left half-done on a share, and what goes on there."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from backends.nfs.agent import snapshots, volumes
from backends.nfs.agent.below import Below
from backends.nfs.agent.catalogue import Catalogue
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


class PowerError(BaseException):
    """The node's power fails."""


@pytest.mark.parametrize("renames", range(7))
def test_a_swap_is_finished_by_a_node_to_which_the_server_shows_other_handles(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """It took the old bytes, still in their place, for the new ones."""
    a, b = nodes
    marker = a.create("v")
    (a.root / "v/file").write_text("before")
    volume = {"name": "v", "id": marker["id"]}
    path = snapshots.begin_copy(a.catalogue, {"token": TOKEN})["path"]
    (a.root / path / "file").write_text("after")
    left, rename = iter(range(renames)), Below.rename

    def failing(share: Below, old: str, new: str) -> None:
        if next(left, None) is None:
            raise PowerError
        rename(share, old, new)

    with monkeypatch.context() as patched:
        patched.setattr(Below, "rename", failing)
        with suppress(PowerError):
            request = {**volume, "token": TOKEN, "keep_as": "kept", "facts": {}}
            snapshots.swap(a.catalogue, request)
    is_begun = "swap" in (a.catalogue.marker("v") or {})
    identity = Catalogue.identity
    monkeypatch.setattr(Catalogue, "identity", lambda *at: f"9{identity(*at)}")
    snapshots.swap_finished(b.catalogue, marker)
    assert (a.root / "v/file").read_text() == ("after" if is_begun else "before")
    if is_begun:
        kept = snapshots.locate(b.catalogue, {**volume, "snapshot": "kept"})
        assert (a.root / kept / "file").read_text() == "before"
