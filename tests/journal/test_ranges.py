"""Large files travel as what changed in them, and members have the commit's bytes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.rsync.journal.entries import WRITE_NS
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.system import btrfs
from tests.support.file_fates import FATES, PART, SIZE
from tests.support.journal_deaths import applying_dies, packing_dies
from tests.support.journal_trees import VOLUME, carry, replicate, send, shape
from tests.support.large_files import make_home, mounted, settle, write_at
from tests.support.leases import leased

pytestmark = pytest.mark.usefixtures("small_is_large")
KINDS = ("ext4", "xfs", "btrfs")


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with mounted(tmp_path_factory, *KINDS) as made:
        yield made


@pytest.fixture(params=KINDS)
def pair(
    request: pytest.FixtureRequest, disks: dict[str, Path]
) -> Iterator[tuple[Journal, Journal]]:
    """Yield an owner's copy and a member's, which have one large file."""
    kind = request.param
    homes = [make_home(disks[kind], kind) for _ in range(2)]
    owner, member = (Journal(home, VOLUME) for home in homes)
    (owner.live / "db").write_bytes(os.urandom(SIZE))
    (owner.live / "directory").mkdir()
    replicate(owner, member)
    settle(owner, member)
    yield owner, member
    for each in (owner, member):
        each.close()
    for home in homes:
        btrfs.delete(home / "live")
        for snapshot in (home / "commits").glob("*"):
            btrfs.delete(snapshot)
        subprocess.run(["rm", "-rf", home], check=True, timeout=60)


def anew(journal: Journal) -> Journal:
    """Return the copy as another process opens it."""
    journal.close()
    return Journal(journal.home, VOLUME)


def sent(owner: Journal, *bases: tuple[int, int]) -> tuple[list[bytes], int]:
    """Return the names in the next commit's package for the first base; its size."""
    owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))
    package = owner.pack(*bases)
    return package.names.rstrip(b"\0").split(b"\0"), package.size_bytes


def test_what_changed_is_all_that_is_sent(pair: tuple[Journal, Journal]) -> None:
    owner, member = pair
    for number in range(10):
        write_at(owner.live / "db", number * 35_000, os.urandom(4096))
    names, size_bytes = sent(owner, member.commit())
    assert names == [b"delta", b"redo/db"]
    assert size_bytes < 10 * 2 * 4096 + 8192
    assert carry(owner.repack(member.commit()), member) == []
    assert not (member.staging.tree() / "db").exists()
    member.apply()
    assert shape(member.live) == shape(owner.live)


@pytest.mark.parametrize("is_kept", [True, False])
def test_what_was_packed_and_given_up_is_known(
    pair: tuple[Journal, Journal], is_kept: bool
) -> None:
    """As when a container stops while its volume is packed, or a crash follows."""
    owner, member = pair
    bases = [*(owner.home / "bases").glob("*")]
    write_at(owner.live / "db", 4096, os.urandom(4096))
    owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))
    with pytest.raises(BackendError, match="changed hands"):
        owner.pack(member.commit(), valid=lambda: False)
    for each in () if is_kept else (owner.home / "bases").glob("*"):
        each.unlink()
    write_at(owner.live / "db", 40_960, os.urandom(4096))
    names, _ = sent(owner, member.commit())
    if owner.by_snapshot or (is_kept and bases):
        assert names == [b"delta", b"redo/db"]
    finish(owner, member)


def test_a_base_of_an_older_commit_serves(pair: tuple[Journal, Journal]) -> None:
    """A crash has left it: what is noted to have changed since is sent again."""
    owner, member = pair
    path = owner.live / "db"
    before = path.read_bytes()[4096:8192]
    older = {each: each.read_bytes() for each in (owner.home / "bases").glob("*")}
    write_at(path, 4096, os.urandom(4096))
    replicate(owner, member)
    settle(owner, member)
    for each in (owner.home / "bases").glob("*"):
        each.unlink()
    for each, content in older.items():
        each.write_bytes(content)
    # The base has the same here, and the member has not.
    write_at(path, 4096, before)
    write_at(path, 40_960, os.urandom(4096))
    names, _ = sent(owner, member.commit())
    if owner.by_snapshot or older:
        assert names == [b"delta", b"redo/db"]
    finish(owner, member)


def finish(owner: Journal, member: Journal) -> None:
    """Bring what was packed to the member; it has the owner's bytes then."""
    missing = carry(owner.repack(member.commit()), member)
    assert not missing or carry(owner.pack(member.commit(), only=missing), member) == []
    member.apply()
    assert shape(member.live) == shape(owner.live)


def test_attributes_cost_no_bytes(pair: tuple[Journal, Journal]) -> None:
    owner, member = pair
    path = owner.live / "db"
    os.setxattr(path, "user.old", b"1")
    replicate(owner, member)
    os.removexattr(path, "user.old")
    os.setxattr(path, "user.new", b"2")
    os.chown(path, 7, 8)
    path.chmod(0o4711)
    names, size_bytes = sent(owner, member.commit())
    assert names == [b"delta", b"redo/db"]
    assert size_bytes < 1024
    assert carry(owner.repack(member.commit()), member) == []
    member.apply()
    assert shape(member.live) == shape(owner.live)


def test_a_member_that_was_away_gets_what_it_missed(
    pair: tuple[Journal, Journal],
) -> None:
    owner, member = pair
    path, away = owner.live / "db", member.commit()
    for number in range(20):
        write_at(path, number * 15_000, os.urandom(5000))
        owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))
        if number % 3:  # for somebody else
            owner.pack((1, owner.commit()[1] - 1))
            owner.unpack()
    # Cut off and grown again: what was there meanwhile are zeros.
    os.truncate(path, 4 * PART)
    owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))
    owner.pack((1, owner.commit()[1] - 1))
    os.truncate(path, 5 * PART)
    names, size_bytes = sent(owner, (1, owner.commit()[1]), away)
    assert names == [b"delta", b"redo/db"]
    assert size_bytes < SIZE
    assert carry(owner.repack(away), member) == []
    member.apply()
    assert shape(member.live) == shape(owner.live)


def test_a_file_that_was_touched_at_the_member_comes_whole(
    pair: tuple[Journal, Journal],
) -> None:
    owner, member = pair
    write_at(member.live / "db", 1000, b"not of the commit")
    write_at(owner.live / "db", PART, b"changed")
    sent(owner, member.commit())
    package = owner.repack(member.commit())
    assert carry(package, member) == [b"db"]
    replicate(owner, member)
    assert shape(member.live) == shape(owner.live)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "of another path"])
def test_a_damaged_redo_file_is_not_taken(
    damage: str, pair: tuple[Journal, Journal]
) -> None:
    owner, member = pair
    (owner.live / "other").write_bytes(bytes(SIZE))
    replicate(owner, member)
    settle(owner, member)
    for name in ("db", "other"):
        write_at(owner.live / name, PART, os.urandom(10_000))
    sent(owner, member.commit())
    assert carry(owner.repack(member.commit()), member) == []
    member.staging.unmark()
    redo = member.staging.redo / "db"
    content = bytearray(redo.read_bytes())
    if damage == "flipped":
        content[5000] ^= 1
    elif damage == "of another path":
        content[:] = (member.staging.redo / "other").read_bytes()
    else:
        del content[9000 if damage == "cut" else 0 :]
    status = redo.stat()
    redo.write_bytes(content)
    os.utime(redo, ns=(status.st_atime_ns, status.st_mtime_ns))
    with member.staged() as delta:
        assert member.staging.missing(delta, member.manifest) == [b"db"]
    replicate(owner, member)
    assert shape(member.live) == shape(owner.live)


def test_a_search_that_cannot_be_made_costs_bytes_and_no_commit(
    disks: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A program that is missing, for instance: where it is needed, all is sent."""
    homes = [make_home(disks["ext4"], "ext4") for _ in range(2)]
    owner, member = (Journal(home, VOLUME) for home in homes)
    (owner.live / "db").write_bytes(os.urandom(SIZE))
    replicate(owner, member)
    settle(owner, member)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    for _ in range(2):
        write_at(owner.live / "db", PART, os.urandom(100))
        names, _ = sent(owner, member.commit())
        assert names == [b"delta", b"tree/db"]
        assert carry(owner.repack(member.commit()), member) == []
        member.apply()
        assert shape(member.live) == shape(owner.live)
    for each in (owner, member):
        each.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_that_was_filled_is_led_on_from_the_first_change(
    kind: str, disks: dict[str, Path]
) -> None:
    """No copy was made for it, so nothing else has looked at the file."""
    owner, member = (Journal(make_home(disks[kind], kind), VOLUME) for _ in range(2))
    (owner.live / "db").write_bytes(os.urandom(SIZE))
    time.sleep(WRITE_NS / 10**9)  # the time of the file is believed
    owner.record(owner.look(EVERYTHING), (1, 1))
    package = owner.pack(None)
    assert package.names == b"delta\0"
    send(owner.home, member.staging.tree(), [b"live/./db"])
    assert carry(package, member) == []
    member.apply()
    for number in range(2):
        write_at(owner.live / "db", PART * number, os.urandom(100))
        names, size_bytes = sent(owner, member.commit())
        assert names == [b"delta", b"redo/db"]
        assert size_bytes < 2 * 4096 + 1024
        assert carry(owner.repack(member.commit()), member) == []
        member.apply()
        assert shape(member.live) == shape(owner.live)
    for each in (owner, member):
        each.close()


def test_what_cannot_be_kept_of_a_large_file_keeps_no_commit_back(
    disks: dict[str, Path],
) -> None:
    """A lease on one that has not changed, or no place for what is known of it."""
    homes = [make_home(disks["xfs"], "xfs") for _ in range(2)]
    owner, member = (Journal(home, VOLUME) for home in homes)
    (owner.live / "db").write_bytes(os.urandom(SIZE))
    time.sleep(0.15)
    owner.record(owner.look(EVERYTHING), (1, 1))
    with leased(owner.live / "db", kept=True):
        assert owner.pack(None).names == b"delta\0"
    for home in homes:
        for name in ("ranges", "bases"):  # a file is no directory
            (home / name).write_text("in the way")
    for number in range(2):
        write_at(owner.live / "db", PART * number, os.urandom(100))
        replicate(owner, member)
        assert shape(member.live) == shape(owner.live)
    for each in (owner, member):
        each.close()


ROUNDS = int(os.environ.get("REMORA_RANGE_ROUNDS", "12"))


@pytest.mark.parametrize(
    "kinds",
    [*((kind, kind) for kind in KINDS), ("ext4", "xfs"), ("xfs", "btrfs")],
    ids="-".join,
)
@pytest.mark.parametrize("seed", range(int(os.environ.get("REMORA_RANGE_SEEDS", "1"))))
def test_members_have_the_bytes_however_they_were_written(
    kinds: tuple[str, str], seed: int, disks: dict[str, Path]
) -> None:
    """One member is always led on, one now and then; sometimes a member takes over."""
    chance = random.Random(f"{kinds}{seed}")
    homes = (make_home(disks[kind], kind) for kind in (*kinds, kinds[1]))
    copies = [Journal(home, VOLUME) for home in homes]
    (copies[0].live / "db").write_bytes(os.urandom(SIZE))
    for each in copies[1:]:
        replicate(copies[0], each)
    for number in range(ROUNDS):
        owner, near, far = copies
        for _ in range(chance.randrange(1, 4)):
            chance.choice(FATES)(owner.live / "db", chance)
        wanted = [near, *([far] if chance.random() < 0.3 else [])]
        owner.record(owner.look(EVERYTHING), (1, owner.commit()[1] + 1))
        owner.pack(*dict.fromkeys(each.commit() for each in wanted))
        for each in wanted:
            missing = carry(owner.repack(each.commit()), each)
            if not missing:
                each.apply()
                assert shape(each.live) == shape(owner.live), number
        owner.unpack()
        if chance.random() < 0.1 and near.commit() == owner.commit():
            copies = [near, owner, far]
        elif chance.random() < 0.2:
            copies = [anew(each) for each in copies]
    for each in copies:
        each.close()


@pytest.mark.parametrize("pair", ["ext4", "btrfs"], indirect=True)
def test_a_kill_at_any_step_of_writing_in_place_changes_nothing(
    pair: tuple[Journal, Journal],
) -> None:
    def send_some(owner: Journal, member: Journal, step: int) -> None:
        path = owner.live / "db"
        write_at(path, (step * 77_777) % SIZE, os.urandom(9000))
        os.truncate(path, SIZE + step)
        path.chmod(0o600 + step % 64)
        sent(owner, member.commit())
        assert carry(owner.repack(member.commit()), member) == []

    applying_dies(pair, send_some)


@pytest.mark.parametrize("pair", ["ext4", "xfs"], indirect=True)
def test_a_kill_at_any_step_of_packing_loses_no_change(
    pair: tuple[Journal, Journal],
) -> None:
    def change(owner: Journal, step: int) -> None:
        write_at(owner.live / "db", (step * 77_777) % SIZE, os.urandom(9000))

    packing_dies(pair, change)
