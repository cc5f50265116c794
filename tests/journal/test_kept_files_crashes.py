"""Attributes alone, whatever happens to files and processes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.rsync.journal.journal import Journal
from tests.support.changing import Changing
from tests.support.journal_deaths import applying_dies, packing_dies
from tests.support.journal_trees import VOLUME, carry, replicate, shape
from tests.support.large_files import make_home, mounted
from tests.support.small_files import (
    KINDS,
    copies,
    path,
    record,
    sent,
)

ROUNDS = 12


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with mounted(tmp_path_factory, *KINDS) as made:
        yield made


@pytest.fixture(params=KINDS)
def pair(
    request: pytest.FixtureRequest, disks: dict[str, Path]
) -> Iterator[tuple[Journal, Journal]]:
    with copies(disks[request.param], request.param) as made:
        yield made


@pytest.mark.parametrize(
    "kinds", [*((k, k) for k in KINDS), ("xfs", "ext4")], ids="-".join
)
@pytest.mark.parametrize("seed", range(int(os.environ.get("REMORA_KEPT_SEEDS", "2"))))
def test_members_have_the_bytes_whatever_happens(
    kinds: tuple[str, str], seed: int, disks: dict[str, Path]
) -> None:
    """One member is always led on, one now and then."""
    chance = random.Random(f"{kinds}{seed}")
    homes = (make_home(disks[kind], kind) for kind in (*kinds, kinds[1]))
    owner, near, far = (Journal(home, VOLUME) for home in homes)
    changing = Changing(owner.live, seed)
    for _ in range(60):
        changing.change()
    for each in (near, far):
        replicate(owner, each)
    for number in range(ROUNDS):
        for _ in range(chance.randrange(1, 9)):
            changing.change()
        wanted = [near, *([far] if chance.random() < 0.3 else [])]
        record(owner)
        missing = list[bytes]()
        owner.pack(*dict.fromkeys(each.commit() for each in wanted))
        for each in wanted:
            missing += carry(owner.repack(each.commit()), each)
            if not missing:
                each.apply()
                assert shape(each.live) == shape(owner.live), number
        for _ in range(3):
            left = [each for each in wanted if each.commit() != owner.commit()]
            if not left:
                break
            owner.pack(*dict.fromkeys(each.commit() for each in left), only=missing)
            missing = []
            for each in left:
                missing += (lacks := carry(owner.repack(each.commit()), each))
                if not lacks:
                    each.apply()
                    assert shape(each.live) == shape(owner.live), number
        assert near.commit() == owner.commit()
        owner.unpack()
    for each in (owner, near, far):
        each.close()


@pytest.mark.parametrize("pair", ["ext4", "btrfs"], indirect=True)
def test_a_kill_at_any_step_of_giving_attributes_changes_nothing(
    pair: tuple[Journal, Journal],
) -> None:
    def send_some(owner: Journal, member: Journal, step: int) -> None:
        for number in range(2):
            os.chown(path(owner, number), 1 + step % 7, 2)
            path(owner, number).chmod(0o600 + step % 64)
        os.setxattr(path(owner, 1), f"user.{step % 2}", os.urandom(100 + step % 9))
        if step % 3 == 0:
            os.removexattr(path(owner, 1), f"user.{step % 2}")
        names, _ = sent(owner, member.commit())
        assert b"tree/" not in b"".join(names)
        assert carry(owner.repack(member.commit()), member) == []

    applying_dies(pair, send_some)


@pytest.mark.parametrize("pair", ["ext4"], indirect=True)
def test_a_kill_at_any_step_of_packing_loses_no_change(
    pair: tuple[Journal, Journal],
) -> None:
    def change(owner: Journal, step: int) -> None:
        os.chown(path(owner, 1), 1 + step % 7, 2)
        os.setxattr(path(owner, 1), "user.remark", b"%d" % step)

    packing_dies(pair, change)
