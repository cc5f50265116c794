"""
The data follows the container: two or three daemons, real sshd, rsync, etcd.

See `tests/support/owners.py` for the nodes. What one copy goes through is in
`tests/journal`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.protocol.node import wait_until
from tests.support.copies import live, wait_held, wait_same
from tests.support.journal_trees import make_everything, shape
from tests.support.owners import WAIT_S, Owner, Records, Writer

Make = Callable[..., Owner]
NAME = "data"


@pytest.fixture
def pair(make_owner: Make) -> tuple[Owner, Owner]:
    """Return two nodes of one cluster."""
    return make_owner("alpha"), make_owner("beta")


def create(owner: Owner, other: Owner, **options: str) -> str:
    """Return the id of a new volume that both nodes know."""
    volume_id = owner.create(NAME, interval="1s", **options)
    other.wait_known(NAME)
    return volume_id


def mount(owner: Owner, volume_id: str) -> Path:
    """Mount the volume, if need be later; return what its containers see."""
    owner.mount_at_last(NAME)
    return live(owner, volume_id)


def test_an_orderly_move_brings_everything(
    pair: tuple[Owner, Owner], records: Records
) -> None:
    alpha, beta = pair
    volume_id = create(alpha, beta)
    target = mount(alpha, volume_id)
    make_everything(target)
    before = shape(target)
    alpha.unmount(NAME)
    wait_held(records, volume_id, alpha, beta)
    assert shape(live(beta, volume_id)) == before
    moved = mount(beta, volume_id)
    assert shape(moved) == before
    beta.unmount(NAME)


def test_while_it_is_mounted_the_member_follows(
    pair: tuple[Owner, Owner], records: Records
) -> None:
    alpha, beta = pair
    volume_id = create(alpha, beta)
    target = mount(alpha, volume_id)
    (target / "directory").mkdir()
    (target / "directory/file").write_text("one")
    wait_same(alpha, beta, volume_id)
    wait_held(records, volume_id, alpha, beta)
    (target / "directory/file").write_text("two")
    (target / "new").write_text("new")
    wait_same(alpha, beta, volume_id)
    (target / "directory/file").unlink()
    (target / "directory").rmdir()
    wait_same(alpha, beta, volume_id)
    alpha.unmount(NAME)


def test_there_and_back_again(pair: tuple[Owner, Owner], records: Records) -> None:
    """Each move leads on from the commit before; nothing is sent twice."""
    volume_id = create(*pair)
    for number in range(6):
        here, there = pair[number % 2], pair[1 - number % 2]
        target = mount(here, volume_id)
        assert sorted(each.name for each in target.iterdir()) == [
            f"{each}" for each in range(number)
        ]
        (target / f"{number}").write_text("x" * 10_000)
        here.unmount(NAME)
        wait_held(records, volume_id, here, there)
        there.wait_known(NAME, ownership="idle")
    assert shape(live(pair[0], volume_id)) == shape(live(pair[1], volume_id))


def test_a_killed_owner_is_followed_from_its_last_commit(
    pair: tuple[Owner, Owner], records: Records
) -> None:
    alpha, beta = pair
    volume_id = create(alpha, beta)
    target = mount(alpha, volume_id)
    (target / "kept").write_text("kept")
    wait_same(alpha, beta, volume_id)
    wait_held(records, volume_id, alpha, beta)
    alpha.kill()
    assert (mount(beta, volume_id) / "kept").read_text() == "kept"
    # Either: the last commit may not have been published yet.
    assert beta.logged("a commit that is fuzzy") or beta.logged("of unknown quality")


def test_a_writer_loses_nothing_in_a_move(
    pair: tuple[Owner, Owner], records: Records
) -> None:
    alpha, beta = pair
    volume_id = create(alpha, beta)
    writer = Writer(alpha, alpha.mount(NAME))
    wait_held(records, volume_id, alpha, beta)
    time.sleep(3)
    writer.end()
    written = writer.stamps()
    alpha.unmount(NAME)
    moved = mount(beta, volume_id)
    lines = (moved / "stamps").read_text().splitlines()
    assert [float(line) for line in lines] == written
    assert len(written) > 50


def test_the_newest_commit_is_fetched_where_it_is(
    pair: tuple[Owner, Owner], records: Records
) -> None:
    """With one copy nothing was sent before; a Mount elsewhere takes it over."""
    alpha, beta = pair
    volume_id = create(alpha, beta, replicas="1")
    target = mount(alpha, volume_id)
    make_everything(target)
    before = shape(target)
    alpha.unmount(NAME)
    beta.wait_known(NAME, ownership="idle")
    assert not beta.copy(volume_id).exists()
    moved = mount(beta, volume_id)
    assert shape(moved) == before
    # One copy was asked for: that of the node where it was goes.
    wait_held(records, volume_id, beta)
    wait_until(
        lambda: not alpha.copy(volume_id).exists(),
        "alpha lets its copy go",
        timeout_s=WAIT_S,
    )


@pytest.mark.parametrize("node", ["alpha", "beta"])
def test_a_daemon_that_is_killed_in_a_sync_goes_on(
    pair: tuple[Owner, Owner], records: Records, node: str
) -> None:
    alpha, beta = pair
    volume_id = create(alpha, beta)
    target = mount(alpha, volume_id)
    victim = alpha if node == "alpha" else beta
    for number in range(4):
        for each in range(200):
            (target / f"{number}-{each}").write_text("x" * 1000)
        time.sleep(0.7 + 0.3 * number)
        victim.kill()
        victim.start()
        victim.wait_member()
    wait_same(alpha, beta, volume_id)
    wait_held(records, volume_id, alpha, beta)
