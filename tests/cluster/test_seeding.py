"""The first copies of a volume: one soon, and the owner's line is used once for all."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from mmap import mmap
from pathlib import Path
from typing import Any

import pytest

from tests.protocol.node import wait_until
from tests.support.copies import wait_same
from tests.support.owners import WAIT_S, Owner, Records

Make = Callable[..., Owner]
NAME = "data"
FILES, FILE_SIZE = 30, 100_000
SIZE = FILES * FILE_SIZE
SLOW = '[replication]\nbandwidth_limit = "64KiB"'
LIMIT = '[replication]\nbandwidth_limit = "512KiB"'


@pytest.fixture
def owners(make_owner: Make) -> list[Owner]:
    """Return three nodes; the line of the last two is slow."""
    first = make_owner("alpha")
    return [first, *(make_owner(name, profiles=LIMIT) for name in ("beta", "gamma"))]


def mount(owners: list[Owner]) -> str:
    """Return the id of a full volume that is mounted at the first, kept by all."""
    first = owners[0]
    volume_id = first.create(NAME, interval="1s", members="alpha,beta,gamma")
    for each in owners:
        each.wait_known(NAME)
    for number in range(FILES):
        (first.copy(volume_id) / f"live/{number}").write_bytes(os.urandom(FILE_SIZE))
    first.mount(NAME)
    return volume_id


def wait_holders(records: Records, volume_id: str, count: int) -> list[str]:
    """Return the nodes that have the newest commit, once they are so many."""
    wait_until(
        lambda: len(records.head(volume_id).holders) == count,
        f"{count} have it",
        timeout_s=WAIT_S,
    )
    return [*records.head(volume_id).holders]


def filled(owners: list[Owner], records: Records, volume_id: str) -> Owner:
    """Return who has the second copy, as soon as there is one."""
    holders = wait_holders(records, volume_id, 2)
    (found,) = [each for each in owners[1:] if each.id in holders]
    return found


def test_who_has_a_copy_fills_the_next_one(
    owners: list[Owner], records: Records
) -> None:
    volume_id = mount(owners)
    second = filled(owners, records, volume_id)
    # That one's line is slow.
    (third,) = [each for each in owners[1:] if each is not second]
    assert not third.events("received", NAME)
    wait_holders(records, volume_id, 3)
    for each in owners[1:]:
        wait_same(owners[0], each, volume_id)
    assert SIZE <= owners[0].sent_bytes() < 1.5 * SIZE
    assert SIZE <= second.sent_bytes() < 1.5 * SIZE
    assert third.sent_bytes() == 0


def test_others_get_their_commits_while_a_member_is_filled(
    owners: list[Owner], records: Records
) -> None:
    volume_id = mount(owners)
    second = filled(owners, records, volume_id)
    (third,) = [each for each in owners[1:] if each is not second]
    (owners[0].copy(volume_id) / "live/later").write_text("later")
    copy = second.copy(volume_id) / "live/later"
    wait_until(copy.exists, "the second has it", timeout_s=WAIT_S)
    assert not third.events("received", NAME)
    wait_holders(records, volume_id, 3)
    assert (third.copy(volume_id) / "live/later").read_text() == "later"


def test_who_was_to_fill_the_next_one_dies(
    owners: list[Owner], records: Records
) -> None:
    """The owner goes on from where it was."""
    volume_id = mount(owners)
    second = filled(owners, records, volume_id)
    (third,) = [each for each in owners[1:] if each is not second]
    staging = third.copy(volume_id) / "staging/tree"
    wait_until(
        lambda: staging.exists() and any(staging.iterdir()),
        "it comes",
        timeout_s=WAIT_S,
    )
    second.kill()
    wait_until(lambda: bool(third.events("received", NAME)), "third", timeout_s=WAIT_S)
    wait_same(owners[0], third, volume_id)
    assert owners[0].sent_bytes() > 1.2 * SIZE


def test_a_member_whose_manifest_is_lost_is_filled_while_containers_write(
    make_owner: Make, records: Records
) -> None:
    """Rounds do not end its filling, which takes longer than their interval."""
    alpha, beta = make_owner("alpha", profiles=SLOW), make_owner("beta")
    volume_id = alpha.create(NAME, interval="1s", members="alpha,beta")
    beta.wait_known(NAME)
    live = alpha.copy(volume_id) / "live"
    for _ in range(1000):
        (live / os.urandom(100).hex()).touch()
    alpha.mount(NAME)
    wait_holders(records, volume_id, 2)
    beta.kill()
    (beta.copy(volume_id) / "manifest.db").unlink()
    before = beta.replica(volume_id).commit
    beta.start()
    with writing(live / "stamp"):
        wait_until(
            lambda: beta.replica(volume_id).commit > before,
            "it is filled",
            timeout_s=WAIT_S,
        )


def test_a_store_into_a_page_that_was_dirty_as_a_member_was_filled_is_sent(
    make_owner: Make, records: Records
) -> None:
    """It changes no time of the file, unless the page was flushed before."""
    alpha = make_owner("alpha", profiles=LIMIT, daemon={"disk": True})
    beta = make_owner("beta")
    volume_id = alpha.create(NAME, interval="1s", members="alpha,beta")
    beta.wait_known(NAME)
    beta.stop()
    alpha.mount(NAME)
    live, copy = alpha.path(alpha.copy(volume_id) / "live"), beta.copy(volume_id)
    (live / "mapped").write_bytes(bytes(8192))
    (live / "then").write_bytes(os.urandom(2 * 2**20))
    alpha.run("sync", "-f", str(alpha.copy(volume_id)))
    with (live / "mapped").open("r+b") as file, mmap(file.fileno(), 8192) as mapped:
        mapped[0:3] = b"one"
        beta.start()
        came = copy / "staging/tree/mapped"
        wait_until(came.exists, "it comes", timeout_s=WAIT_S)
        mapped[0:3] = b"two"
        wait_holders(records, volume_id, 2)
    alpha.unmount(NAME)
    wait_holders(records, volume_id, 2)
    assert (copy / "live/mapped").read_bytes().startswith(b"two")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside the block, write another content to *path* again and again."""
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(0.3):
            path.write_text(os.urandom(8).hex())

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_holder_does_not_disturb_what_the_owner_sends(
    make_owner: Make, records: Records, tmp_path: Path
) -> None:
    alpha = make_owner("alpha", profiles=LIMIT)
    beta, gamma = make_owner("beta"), make_owner("gamma")
    volume_id = alpha.create(NAME, interval="1s", members="alpha,beta,gamma")
    for each in (beta, gamma):
        each.wait_known(NAME)
    alpha.mount(NAME)
    wait_holders(records, volume_id, 3)
    (tmp_path / "file").write_text("worthless")
    about: dict[str, Any] = {"volume": volume_id, "commit": (1, 0)}
    # Nothing is sent now: it may, and what has come is no part of any commit.
    assert beta.send_files(gamma, tmp_path, **about).returncode == 0
    (alpha.copy(volume_id) / "live/large").write_bytes(os.urandom(SIZE))
    staging = gamma.copy(volume_id) / "staging"
    wait_until(
        lambda: any(staging.glob("tree/.remora.unfinished/large.*")),
        "it comes",
        timeout_s=WAIT_S,
    )
    sent = beta.send_files(gamma, tmp_path, **about)
    assert sent.returncode != 0
    assert f"is sending volume {volume_id}" in sent.stderr.decode()
    live = gamma.copy(volume_id) / "live"
    # What came ahead is there for a moment: an empty copy takes all, then deletes it.
    wait_until(
        lambda: [each.name for each in live.iterdir()] == ["large"],
        "it is there, and nothing else",
        timeout_s=WAIT_S,
    )
