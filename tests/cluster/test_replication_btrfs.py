"""The data follows the container where pools lie on btrfs: commits are snapshots."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.protocol.node import wait_until
from tests.support.copies import live, wait_same
from tests.support.journal_trees import make_everything, shape
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.owners import WAIT_S, Owner, Records, pair_on

NAME = "data"
_SUBVOLUME_INODE = 256


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    enter_private_mounts()
    with loop_filesystem(tmp_path_factory.mktemp("disk"), "btrfs", size="1G") as disk:
        yield disk


@pytest.fixture
def pair(
    disk: Path, tmp_path: Path, make_owner: Callable[..., Owner]
) -> tuple[Owner, Owner]:
    """Return two nodes of one cluster with pools on btrfs."""
    return pair_on(disk, tmp_path.name, make_owner)


def create(alpha: Owner, beta: Owner) -> str:
    """Return the id of a new volume that both nodes know."""
    volume_id = alpha.create(NAME, interval="1s")
    beta.wait_known(NAME)
    return volume_id


def snapshots(owner: Owner, volume_id: str) -> list[str]:
    """Return the commits of which the node has a snapshot."""
    found = (owner.copy(volume_id) / "commits").glob("*")
    return [each.name for each in found if each.stat().st_ino == _SUBVOLUME_INODE]


def wait_published(records: Records, volume_id: str, quality: str) -> str:
    """Return the newest commit when both have it and it is of *quality*."""

    def published() -> bool:
        head = records.head(volume_id)
        return len(head.holders) == 2 and head.quality == quality

    wait_until(published, f"a commit of quality {quality}", timeout_s=WAIT_S)
    return str(records.head(volume_id).committed)


def is_empty(owner: Owner) -> bool:
    """Return whether the node's pool has no volume, removed or not."""
    return not [*owner.pool.glob("volumes/*"), *owner.pool.glob("trash/*")]


def test_commits_are_snapshots_on_both_sides(
    pair: tuple[Owner, Owner], records: Records
) -> None:
    alpha, beta = pair
    volume_id = create(alpha, beta)
    alpha.mount_at_last(NAME)
    target = live(alpha, volume_id)
    make_everything(target)
    wait_published(records, volume_id, "snapshot")
    wait_same(alpha, beta, volume_id)
    status = alpha.get(NAME)["Status"]
    assert (status["engine"], status["quality"]) == ("btrfs", "snapshot")
    assert snapshots(alpha, volume_id) == snapshots(beta, volume_id)
    (target / "deep-").write_text("changed")
    (target / "program").rename(target / "empty/program")
    wait_same(alpha, beta, volume_id)
    alpha.unmount(NAME)
    last = wait_published(records, volume_id, "quiesced")
    # The outbox goes when all has been sent, shortly after that.
    wait_until(
        lambda: not (alpha.copy(volume_id) / "outbox").exists(),
        "nothing is sent any more",
        timeout_s=WAIT_S,
    )
    assert snapshots(alpha, volume_id) == snapshots(beta, volume_id) == [last]
    before = shape(target)
    beta.mount_at_last(NAME)
    assert shape(live(beta, volume_id)) == before
    (live(beta, volume_id) / "back").write_text("and back again")
    beta.unmount(NAME)
    wait_published(records, volume_id, "quiesced")
    wait_same(alpha, beta, volume_id)


@pytest.mark.parametrize("victim", [0, 1], ids=["owner", "member"])
def test_a_daemon_that_is_killed_goes_on(
    pair: tuple[Owner, Owner], records: Records, victim: int
) -> None:
    alpha, beta = pair
    volume_id = create(alpha, beta)
    alpha.mount_at_last(NAME)
    target = live(alpha, volume_id)
    for number in range(3):
        for each in range(200):
            (target / f"{number}-{each}").write_text(f"{number}" * 1000)
        wait_until(
            lambda: any(pair[victim].copy(volume_id).glob("commits/*/*")),
            "a commit was made",
            timeout_s=WAIT_S,
        )
        pair[victim].kill()
        pair[victim].start()
        pair[victim].wait_member()
    wait_same(alpha, beta, volume_id)
    wait_published(records, volume_id, "snapshot")


def test_a_failover_begins_with_the_snapshot_and_removal_leaves_nothing(
    pair: tuple[Owner, Owner], records: Records
) -> None:
    alpha, beta = pair
    volume_id = create(alpha, beta)
    alpha.mount_at_last(NAME)
    (live(alpha, volume_id) / "kept").write_text("kept")
    wait_same(alpha, beta, volume_id)
    wait_published(records, volume_id, "snapshot")
    alpha.kill()
    beta.mount_at_last(NAME)
    assert (live(beta, volume_id) / "kept").read_text() == "kept"
    assert not beta.logged("a commit that is fuzzy")
    beta.unmount(NAME)
    alpha.start()
    alpha.wait_member()
    wait_published(records, volume_id, "quiesced")
    wait_same(alpha, beta, volume_id)
    # What the killed daemon's containers may have written was set apart, as it was.
    assert live(alpha, volume_id).stat().st_ino == _SUBVOLUME_INODE
    (apart,) = (alpha.copy(volume_id) / "quarantine").iterdir()
    assert (apart / "kept").read_text() == "kept"
    shutil.rmtree(apart)
    wait_until(
        lambda: not beta.control_ok("GET", "/v1/quarantine"),
        "beta knows that nothing is set apart",
        timeout_s=WAIT_S,
    )
    beta.ok("Remove", Name=NAME)
    for owner in pair:
        wait_until(partial(is_empty, owner), "nothing is left", timeout_s=WAIT_S)
