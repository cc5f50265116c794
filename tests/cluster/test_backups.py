"""A pool that comes back from a backup has not what the head says that its node has."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

from tests.cluster.test_replication_scenarios import (
    NAME,
    apart,
    begin,
    names,
)
from tests.protocol.node import wait_until
from tests.support.owners import WAIT_S, Owner, Records


def test_the_last_true_copy_stays_and_the_older_one_is_brought_in_step(
    make_owner: Callable[..., Owner], records: Records
) -> None:
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id = alpha.create("db", members="alpha,beta")
    home, backup = alpha.copy(volume_id), alpha.directory / "backup"

    def write(text: str) -> None:
        (alpha.path(alpha.mount("db")) / "file").write_text(text)
        alpha.unmount("db")

        def both() -> bool:
            head = records.head(volume_id)
            return head.phase == "idle" and len(head.holders) == 2

        wait_until(both, "both have it", timeout_s=WAIT_S)

    write("old")
    subprocess.run(["cp", "-a", home, backup], check=True)
    write("newest")
    shutil.rmtree(home)
    backup.rename(home)
    # Alpha itself looks when it starts: the head still says that both have it.
    refused = beta.control_refused("DELETE", "/v1/volumes/db/replicas/beta")
    assert "newest commit" in refused
    alpha.stop()
    alpha.start()
    wait_until(
        lambda: (home / "live/file").read_text() == "newest",
        "alpha is brought in step",
        timeout_s=WAIT_S,
    )
    assert (beta.copy(volume_id) / "live/file").read_text() == "newest"
    assert alpha.logged("older than the commit that it held")


def test_an_owner_whose_disk_went_back_takes_nothing_back(
    make_owner: Callable[..., Owner], records: Records
) -> None:
    """As a snapshot of the machine does that was taken while a container wrote."""
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id, _ = begin(records, alpha, beta)
    home, backup = alpha.copy(volume_id), alpha.directory / "backup"
    subprocess.run(["cp", "-a", home, backup], check=True)
    before = records.head(volume_id).committed

    def acknowledged() -> bool:
        head = records.head(volume_id)
        # A commit that was begun before has not got it.
        there = (beta.copy(volume_id) / "live/second").exists()
        held = beta.replica(volume_id).commit == head.committed > before
        return there and held and len(head.holders) == 2

    (home / "live/second").write_text("acknowledged by both")
    wait_until(acknowledged, "both have it", timeout_s=WAIT_S)
    alpha.kill()
    alpha.run("umount", str(alpha.mount_dir / volume_id))
    shutil.rmtree(home)
    backup.rename(home)
    alpha.start()
    alpha.wait_member()
    alpha.mount_at_last(NAME)
    assert names(home / "live") == ["first", "second"]
    assert [*apart(alpha, volume_id).values()] == [["first"]]
    assert alpha.events("owned", NAME)[-1]["lost"] == ""
