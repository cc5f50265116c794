"""Ranges lead on every member that has a commit, whatever its filesystem refuses."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.rsync.journal.entries import WRITE_NS
from backends.rsync.journal.journal import EVERYTHING, Journal
from tests.support.file_fates import PART, SIZE
from tests.support.journal_trees import VOLUME, carry, replicate, send, shape
from tests.support.large_files import make_home, mounted, settle, write_at
from tests.support.namespaces import enter_private_mounts, loop_filesystem

pytestmark = pytest.mark.usefixtures("small_is_large")
KINDS = ("ext4", "xfs", "btrfs")


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with mounted(tmp_path_factory, *KINDS) as made:
        yield made


def copies(*places: tuple[Path, str]) -> list[Journal]:
    """Return three copies at most; of the first two's large file ranges are known."""
    made = [Journal(make_home(*place), VOLUME) for place in places]
    (made[0].live / "db").write_bytes(os.urandom(SIZE))
    replicate(*made[:2])
    settle(*made[:2])
    return made


def led_on(owner: Journal, member: Journal) -> bool:
    """Bring the commit over as a redo file; return whether both are the same."""
    package = owner.pack(member.commit())
    assert package.names == b"delta\0redo/db\0"
    assert carry(package, member) == []
    owner.unpack()
    member.apply()
    return (member.live / "db").read_bytes() == (owner.live / "db").read_bytes()


def commit(owner: Journal) -> None:
    time.sleep(0.15)  # the times of its files are believed
    epoch, number = owner.commit()
    owner.record(owner.look(EVERYTHING), (epoch, number + 1))


def test_what_a_new_owner_undoes_is_sent(disks: dict[str, Path]) -> None:
    """It compares with a clone that is older than the commit of the member."""
    first, second = copies(*[(disks["xfs"], "xfs")] * 2)
    before = (first.live / "db").read_bytes()[PART : PART + 9000]
    write_at(first.live / "db", PART, os.urandom(9000))
    commit(first)
    assert led_on(first, second)
    write_at(second.live / "db", PART, before)
    write_at(second.live / "db", 3 * PART, b"new")
    second.record(second.look(EVERYTHING), (2, 1))
    assert led_on(second, first)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_what_was_cut_off_between_two_bases_is_sent(
    kind: str, disks: dict[str, Path]
) -> None:
    """The redo file is made for the older one, and the file was cut since."""
    first, second, third = copies(*[(disks[kind], kind)] * 3)
    first.pack(None, only=[b"db", b""])
    assert carry(first.repack(None), third) == []
    first.unpack()
    third.apply()
    os.truncate(first.live / "db", SIZE - PART)
    commit(first)
    assert led_on(first, second)
    write_at(first.live / "db", PART, os.urandom(5000))
    commit(first)
    first.pack(second.commit(), third.commit())
    assert carry(first.repack(second.commit()), second) == []
    first.unpack()
    second.apply()
    os.truncate(second.live / "db", SIZE)
    second.record(second.look(EVERYTHING), (2, 1))
    assert led_on(second, third)


@pytest.mark.parametrize("kind", KINDS)
def test_what_only_a_member_that_was_filled_has_is_searched(
    kind: str, disks: dict[str, Path]
) -> None:
    """Its files were sent as they lay there, and no other member was due."""
    owner, _, filled = copies(*[(disks[kind], kind)] * 3)
    before = (owner.live / "db").read_bytes()[PART : PART + 9000]
    write_at(owner.live / "db", PART, os.urandom(9000))
    time.sleep(WRITE_NS / 10**9)  # the time of the file is believed
    commit(owner)
    package = owner.pack(None)
    assert package.names == b"delta\0"
    send(owner.home, filled.staging.tree(), [b"live/./db"])
    assert carry(package, filled) == []
    owner.unpack()
    filled.apply()
    write_at(owner.live / "db", PART, before)
    commit(owner)
    assert led_on(owner, filled)


def test_attributes_that_trade_sizes(disks: dict[str, Path]) -> None:
    """All of them have one block: neither new one fits beside an old one."""
    owner, member = copies(*[(disks["ext4"], "ext4")] * 2)
    block_bytes = os.statvfs(owner.live).f_bsize
    for small, large in ("ab", "ba"):
        os.setxattr(owner.live / "db", f"user.{small}", bytes(100))
        os.setxattr(owner.live / "db", f"user.{large}", bytes(block_bytes * 3 // 4))
        write_at(owner.live / "db", PART, large.encode())
        commit(owner)
        assert led_on(owner, member)
        assert shape(member.live) == shape(owner.live)


def test_an_attribute_that_does_not_fit(disks: dict[str, Path]) -> None:
    """The whole file comes twice, and then its ranges, as if there were none."""
    places = [(disks["xfs"], "xfs"), (disks["ext4"], "ext4")]
    owner, member = (Journal(make_home(*place), VOLUME) for place in places)
    (owner.live / "db").write_bytes(os.urandom(SIZE))
    os.setxattr(owner.live / "db", "user.large", bytes(5000))
    replicate(owner, member)
    settle(owner, member)
    write_at(owner.live / "db", PART, b"changed")
    commit(owner)
    assert led_on(owner, member)


def test_a_file_whose_blocks_are_never_copied_on_write(disks: dict[str, Path]) -> None:
    """It was made so at the node that owned the volume before."""
    first, second = (Journal(make_home(disks["btrfs"], "btrfs"), VOLUME) for _ in "12")
    (first.live / "db").touch()
    subprocess.run(["chattr", "+C", first.live / "db"], check=True, timeout=10)
    (first.live / "db").write_bytes(os.urandom(SIZE))
    replicate(first, second)
    settle(first, second)
    write_at(second.live / "db", PART, b"new")
    second.record(second.look(EVERYTHING), (2, 1))
    assert led_on(second, first)


def test_a_limit_where_files_share_no_blocks(tmp_path: Path) -> None:
    """Until xfsprogs 5.1 filesystems were made so."""
    enter_private_mounts()
    made_with = ("-m", "reflink=0")
    with loop_filesystem(tmp_path, "xfs", made_with=made_with) as disk:
        homes = [make_home(disk, "xfs") for _ in range(2)]
        command = ["chattr", "-p", "70001", "+P", homes[1] / "live"]
        subprocess.run(command, check=True, timeout=10)
        owner, member = (Journal(home, VOLUME) for home in homes)
        (owner.live / "db").write_bytes(os.urandom(SIZE))
        replicate(owner, member)
        settle(owner, member)
        write_at(owner.live / "db", PART, b"changed")
        commit(owner)
        assert led_on(owner, member)
        for each in (owner, member):
            each.close()


def test_a_file_that_nobody_may_write_to(disks: dict[str, Path]) -> None:
    """A program that runs, for instance, or what fs-verity protects: it is replaced."""
    owner, member = (Journal(make_home(disks["ext4"], "ext4"), VOLUME) for _ in "12")
    program = Path("/bin/sleep").read_bytes()
    (owner.live / "db").write_bytes(program.ljust(SIZE))
    (owner.live / "db").chmod(0o755)
    for number in range(3):
        if number == 2:
            running = subprocess.Popen([member.live / "db", "60"])
        write_at(owner.live / "db", SIZE - PART, bytes([number]))
        replicate(owner, member)
    running.kill()
    running.wait(timeout=10)
    assert shape(member.live) == shape(owner.live)
