"""A server whose disk is not mounted, or another machine, answers for a share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.protocol.command import caller
from tests.protocol.node import Node, wait_until
from tests.support.bound_share import BoundShare
from tests.support.tuning import tuned


@pytest.fixture
def share() -> Iterator[BoundShare]:
    """Yield a share for which two servers can answer."""
    made = BoundShare("disk", "root")
    yield made
    made.close()


def test_an_empty_share_in_place_of_the_known_one_loses_nothing(
    share: BoundShare,
    make_node: Callable[..., Node],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    node = make_node()
    share.show(node, "disk")
    node.start(tuned(reconcile_interval_s=0.2))
    node.create("db", **share.options)
    at = Path(node.ok("Mount", Name="db", ID="a")["Mountpoint"])
    node.path(at).joinpath("rows").write_text("of years")
    node.ok("Unmount", Name="db", ID="a")

    share.show(node, "root")
    told = [
        node.refused("Mount", Name="db", ID="b"),
        node.refused("Create", Name="new", Opts=share.options),
        node.refused("Remove", Name="db"),
    ]
    assert all(each.startswith("NFS-OTHER: what answers has no ") for each in told)
    assert node.names() == ["db"]
    assert list((share.directory / "root").iterdir()) == []

    share.show(node, "disk")
    at = Path(node.ok("Mount", Name="db", ID="c")["Mountpoint"])
    assert node.path(at).joinpath("rows").read_text() == "of years"
    node.ok("Unmount", Name="db", ID="c")

    share.show(node, "root")
    remora = caller(node, monkeypatch, capsys)
    error = remora("share", "accept", "nas:/x", "--force").error
    assert error.startswith("invalid-request: no share 'nas:/x' is used here")
    accepted = remora("share", "accept", "127.0.0.1:/x", "--force")
    identity = json.loads((share.directory / "root/.dvol/share.json").read_text())
    assert accepted.out == f"{identity['id']}\n", accepted
    wait_until(lambda: node.names() == [], "what is not on it is forgotten")
    node.create("db", **share.options)
