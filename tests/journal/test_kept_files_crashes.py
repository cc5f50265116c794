"""Attributes alone, whatever happens to files and processes."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.outbox import unpack_all
from backends.rsync.journal.packing import OUTBOX_NAME
from backends.rsync.journal.staging import Staging
from tests.support.changing import Changing
from tests.support.fuse import NEVER, STEPS_MAX, live
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
    owner, member = pair
    for step in range(1, STEPS_MAX):
        for number in range(2):
            os.chown(path(owner, number), 1 + step % 7, 2)
            path(owner, number).chmod(0o600 + step % 64)
        os.setxattr(path(owner, 1), f"user.{step % 2}", os.urandom(100 + step % 9))
        if step % 3 == 0:
            os.removexattr(path(owner, 1), f"user.{step % 2}")
        names, _ = sent(owner, member.commit())
        assert b"tree/" not in b"".join(names)
        assert carry(owner.repack(member.commit()), member) == []
        member.manifest.close()

        def apply(_: None, home: Path = member.home) -> None:
            Journal(home, VOLUME).apply()

        died = live(lambda: None, apply, fatal_step=step).died
        if died and Staging(member.home).marked() is not None:
            live(lambda: None, apply, fatal_step=step // 2 + 1)
            assert not live(lambda: None, apply, fatal_step=NEVER).died
        member = Journal(member.home, VOLUME)
        assert member.staging.marked() is None
        assert member.commit() == owner.commit()
        assert shape(member.live) == shape(owner.live)
        if not died:
            assert step > 10
            member.close()
            return
    pytest.fail(f"still dying at step {STEPS_MAX}")


def pack_anew(
    _: None, home: Path, commit: tuple[int, int], base: tuple[int, int]
) -> None:
    """Make what has changed *commit*, and pack it, in a process of its own."""
    journal = Journal(home, VOLUME)
    journal.record(journal.look(EVERYTHING), commit)
    journal.pack(base)


@pytest.mark.parametrize("pair", ["ext4"], indirect=True)
def test_a_kill_at_any_step_of_packing_loses_no_change(
    pair: tuple[Journal, Journal],
) -> None:
    owner, member = pair
    for step in range(1, STEPS_MAX):
        os.chown(path(owner, 1), 1 + step % 7, 2)
        os.setxattr(path(owner, 1), "user.remark", b"%d" % step)
        commit, base = (1, owner.commit()[1] + 1), member.commit()
        owner.close()
        pack = partial(pack_anew, home=owner.home, commit=commit, base=base)
        died = live(lambda: None, pack, fatal_step=step).died
        unpack_all(owner.home / OUTBOX_NAME)  # as a start does
        owner = Journal(owner.home, VOLUME)
        # The number that was used up is not used again.
        owner.record(owner.look(EVERYTHING), (1, commit[1] + 1))
        assert carry(owner.pack(base), member) == []
        owner.unpack()
        member.apply()
        assert shape(member.live) == shape(owner.live)
        if not died:
            assert step > 10
            return
    pytest.fail(f"still dying at step {STEPS_MAX}")
