"""Whatever was packed in vain, members have the bytes of the commit that they get."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from backends.rsync.journal import large_files
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.outbox import unpack_all
from backends.rsync.journal.packing import OUTBOX_NAME
from tests.support.file_fates import FATES, LARGE, SIZE, written
from tests.support.journal_trees import VOLUME, carry, replicate, shape
from tests.support.large_files import make_home
from tests.support.written_files import pool

STEPS = int(os.environ.get("REMORA_ABANDONED_STEPS", "10"))
SEEDS = int(os.environ.get("REMORA_ABANDONED_SEEDS", "1"))
ACTS = [*FATES, *[written] * len(FATES) * 2]
BELIEVED_S = 0.12
DIES_WITHIN_S = 0.08


@pytest.fixture(scope="module", params=["xfs", "xfs with blocks of 1 KiB"])
def disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    with pool(tmp_path_factory.mktemp("disk"), request.param, size="600M") as disk:
        yield disk


def record(owner: Journal) -> None:
    owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))


def died(owner: Journal, bases: set[tuple[int, int]], chance: random.Random) -> Journal:
    """Return the owner's copy after a kill at any time while a commit was packed."""
    owner.close()
    if not (child := os.fork()):
        with suppress(BaseException):
            anew = Journal(owner.home, VOLUME)
            record(anew)
            anew.pack(*bases)
        os._exit(0)
    time.sleep(chance.random() * DIES_WITHIN_S)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    unpack_all(owner.home / OUTBOX_NAME)  # as a start does
    return Journal(owner.home, VOLUME)


@contextmanager
def written_to(path: Path, chance: random.Random) -> Iterator[None]:
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            written(path, chance)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def led_on(owner: Journal, members: list[Journal], *, is_written: bool) -> None:
    """Bring one commit to *members*: the same bytes to each; then all that there is."""
    time.sleep(BELIEVED_S)
    record(owner)
    path, chance = owner.live / "db", random.Random(owner.commit()[1])
    with written_to(path, chance) if is_written else nullcontext():
        owner.pack(*{each.commit() for each in members})
    had = set()
    for each in members:
        if not carry(owner.repack(each.commit()), each):
            each.apply()
            had.add((each.live / "db").read_bytes())
    owner.unpack()
    assert len(had) < 2
    time.sleep(BELIEVED_S)
    for each in members:
        replicate(owner, each)
        assert shape(each.live) == shape(owner.live)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_members_have_the_bytes_whatever_was_packed_in_vain(
    seed: int, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_files, "LARGE_BYTES", LARGE)
    chance = random.Random(seed)
    owner, *members = (Journal(make_home(disk, "xfs"), VOLUME) for _ in "123")
    (owner.live / "db").write_bytes(chance.randbytes(SIZE))
    for each in members:
        replicate(owner, each)
    for _ in range(STEPS):
        bases = {each.commit() for each in members}
        for _ in range(chance.randrange(3)):
            chance.choice(ACTS)(owner.live / "db", chance)
        match chance.randrange(9):
            case 0:
                owner = died(owner, bases, chance)
            case 1:  # one number twice
                record(owner)
                for _ in range(2):
                    owner.pack(*bases)
                    owner.unpack()
                    chance.choice(ACTS)(owner.live / "db", chance)
            case 2:
                record(owner)
            case _:
                due = members[: chance.randrange(1, 3)]
                led_on(owner, due, is_written=chance.random() < 0.2)
                if chance.random() < 0.2:  # a new owner, who got the last one
                    at = len(due) - 1
                    owner, members[at] = members[at], owner
                chance.shuffle(members)
    led_on(owner, members, is_written=False)
    for each in (owner, *members):
        each.close()
