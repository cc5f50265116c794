"""A member whose filesystem cannot hold all of a commit takes the rest, and says so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.protocol.node import wait_until
from tests.support.copies import live
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.owners import WAIT_S, Owner

NAME = "data"


@pytest.fixture
def pair(tmp_path: Path, make_owner: Callable[..., Owner]) -> Iterator[list[Owner]]:
    """Yield a node with its pool on XFS, and one on ext4."""
    enter_private_mounts()
    with ExitStack() as stack:
        made = []
        for name, kind in (("alpha", "xfs"), ("beta", "ext4")):
            disk = stack.enter_context(loop_filesystem(tmp_path, kind))
            owner = make_owner(name, start=False, daemon={"pool": str(disk / "pool")})
            owner.pool = disk / "pool"
            owner.start()
            owner.wait_member()
            made.append(owner)
        yield made
        for owner in made:
            owner.kill()


def test_one_file_keeps_no_others_back(pair: list[Owner]) -> None:
    alpha, beta = pair
    volume_id = alpha.create(NAME, interval="1s")
    beta.wait_known(NAME)
    alpha.mount(NAME)
    source, copy = live(alpha, volume_id), live(beta, volume_id)
    (source / "stream").write_text("content")
    os.setxattr(source / "stream", "user.DosStream.x", b"z" * 5000)
    (source / "other").write_text("content")
    wait_until(
        lambda: (copy / "other").exists() and (copy / "stream").exists(),
        "both are there",
        timeout_s=WAIT_S,
    )

    def lacks() -> dict[str, str]:
        found = alpha.control_ok("GET", f"/v1/volumes/{NAME}/replicas")
        return {each["node"]: each["lacks"] for each in found}

    wait_until(lambda: "stream" in lacks()["beta"], "it is told", timeout_s=WAIT_S)
    assert lacks()["alpha"] == ""
    (source / "other").write_text("changed")
    wait_until(
        lambda: (copy / "other").read_text() == "changed",
        "it follows",
        timeout_s=WAIT_S,
    )
    os.removexattr(source / "stream", "user.DosStream.x")
    wait_until(lambda: lacks()["beta"] == "", "it lacks nothing", timeout_s=WAIT_S)
