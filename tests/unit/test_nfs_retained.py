"""Directories that removals have left are their volumes' again, and nobody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.nfs_agent import Node
from tests.unit.test_nfs_catalogue import refused


@pytest.fixture
def nodes(tmp_path: Path) -> tuple[Node, Node]:
    """Return two nodes of one share."""
    return Node(tmp_path, "a"), Node(tmp_path, "b")


def test_what_a_removal_has_left_is_the_volumes_again(
    nodes: tuple[Node, Node],
) -> None:
    """`docker compose down --volumes` and `up`, with owner and mode as they were."""
    a, b = nodes
    for _ in range(2):
        marker = a.create("v")
        (a.root / "v").chmod(0o711)
        (a.root / "v/file").write_text("precious")
        assert a.remove(marker, "retain") == "retained"
        marker = b.create("v")
        assert (a.root / "v/file").read_text() == "precious"
        assert (a.root / "v").stat().st_mode & 0o777 == 0o711
        assert a.left("retained") == []
        b.remove(marker)
    a.remove(a.create("v"), "retain")
    text = refused("EXISTS", lambda: a.create("w", subdir="v"))
    assert "was left by volume 'v', removed at 20" in text
    assert a.left("volumes") == a.left("claims") == []
    a.create("w", subdir="v", adopt=True)
    assert a.left("retained") == []


def test_what_has_taken_the_place_of_what_was_left_is_nobodys(
    nodes: tuple[Node, Node],
) -> None:
    a, _ = nodes
    assert a.remove(a.create("v"), "retain") == "retained"
    (a.root / "v").rename(a.root / "away")
    (a.root / "v").mkdir()
    refused("EXISTS", lambda: a.create("v"))
    (a.root / "v").rmdir()
    a.create("v")
    assert (a.root / "v").stat().st_mode & 0o777 == 0o750


def test_what_was_left_is_known_by_more_than_a_number(nodes: tuple[Node, Node]) -> None:
    """A marker of an older version has the number alone; another may get that."""
    a, _ = nodes
    marker = a.create("v")
    a.forge(marker, identity=marker["identity"].partition("-")[0])
    assert a.remove(marker, "retain") == "retained"
    noted = a.catalogue.read("retained", *a.left("retained"))
    assert noted is not None
    assert noted["identity"] == marker["identity"]
