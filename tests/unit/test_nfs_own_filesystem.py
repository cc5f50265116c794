"""A volume's directory that is a filesystem of its own on the server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.nfs.agent import snapshots, volumes
from tests.support.namespaces import enter_private_mounts
from tests.support.nfs_agent import Json, Node
from tests.unit.test_nfs_catalogue import refused

TOKEN = "0123456789abcdef"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Yield a node on whose share `v` is another filesystem."""
    enter_private_mounts()
    (tmp_path / "v").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "v"], check=True)
    try:
        yield Node(tmp_path, "a")
    finally:
        subprocess.run(["umount", tmp_path / "v"], check=True)


def restored(node: Node, marker: Json) -> None:
    request = {"name": marker["name"], "id": marker["id"], "token": TOKEN}
    at = snapshots.begin_copy(node.catalogue, request)["path"]
    (node.root / at / "file").write_text("older")
    snapshots.swap(node.catalogue, {**request, "keep_as": "before", "facts": {}})


def test_it_is_not_exchanged_and_stays_usable(node: Node) -> None:
    marker = node.create("v", adopt=True)
    (node.root / "v/file").write_text("newer")
    other = node.create("other")
    text = refused("FILESYSTEM", lambda: restored(node, marker))
    assert "is a filesystem of its own" in text
    assert node.hold(marker) == marker
    node.release(marker)
    assert (node.root / "v/file").read_text() == "newer"
    restored(node, other)
    assert (node.root / "other/file").read_text() == "older"
    assert volumes.survey(node.catalogue, {"held": [], "first": True})["markers"]


@pytest.mark.parametrize("on_delete", ["archive", "delete"])
def test_its_removal_keeps_it(node: Node, on_delete: str) -> None:
    marker = node.create("v", adopt=True)
    (node.root / "v/file").write_text("precious")
    assert node.remove(marker, on_delete) == "retained"
    assert node.names() == []
    assert (node.root / "v/file").read_text() == "precious"
    node.create("v")
    assert node.names() == ["v"]


def test_a_swap_that_an_older_version_has_begun_is_taken_back(node: Node) -> None:
    marker = node.create("v", adopt=True)
    other = node.create("other")
    copy = f".dvol/copies/a/{TOKEN}"
    (node.root / copy / "new").mkdir(parents=True)
    node.forge(marker, swap={"copy": copy, "keep_as": "before", "node": "a"})
    assert snapshots.repair(node.catalogue, {"tokens": [TOKEN]}) >= 0
    assert node.hold(other) == other
    assert node.hold(marker) == marker
    assert sorted(node.names()) == ["other", "v"]
