"""By what a volume's directory is known, as agents of several versions noted it."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.nfs.agent import snapshots
from backends.nfs.agent.catalogue import Refused
from tests.support.nfs_agent import Node


def test_an_empty_directory_in_place_of_the_volumes_own_is_not_mounted(
    tmp_path: Path,
) -> None:
    """What is mounted there on the server is not; one with bytes is somebody's will."""
    a = Node(tmp_path, "a")
    marker = a.create("v")
    (a.root / "v").rename(a.root / "not-mounted")
    (a.root / "v").mkdir()
    with pytest.raises(Refused, match="is empty, and not the one that was created"):
        a.hold(marker)
    assert a.catalogue.count("leases", marker["id"]) == 0
    (a.root / "v/restored").touch()
    a.hold(marker)
    a.release(marker)
    (a.root / "v").rename(a.root / "another")
    (a.root / "not-mounted").rename(a.root / "v")
    a.hold(marker)


def test_a_directory_that_may_be_another_is_used_and_not_deleted(
    tmp_path: Path,
) -> None:
    """Some agents noted the inode number alone; what replaced it may have that."""
    a, b = Node(tmp_path, "a"), Node(tmp_path, "b")
    marker = a.create("v")
    (a.root / "v/file").write_text("whose?")
    inode = marker["identity"].partition("-")[0]
    request = {"name": "v", "id": marker["id"], "snapshot": ""}
    a.forge(marker, identity=f"{inode}1")
    with pytest.raises(Refused, match="is not the one that was created"):
        snapshots.locate(b.catalogue, request)
    with pytest.raises(Refused, match="is not the one that was created"):
        b.remove(marker)
    a.forge(marker, identity=inode)
    assert snapshots.locate(b.catalogue, request) == "v"
    assert b.hold(marker)["identity"] == inode
    b.release(marker)
    assert b.remove(marker, "delete") == "archive"
    [place] = a.left("archived")
    assert (a.root / ".dvol/archived" / place / "file").read_text() == "whose?"
    assert a.left("trash") == b.names() == []
