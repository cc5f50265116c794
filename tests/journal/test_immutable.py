"""What a container has made immutable on a copy hinders no commit: chattr +i, +a."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.system import btrfs
from tests.support.incapable import incapable
from tests.support.journal_trees import VOLUME, carry, replicate, shape
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.watching import make_root

LARGE_BYTES = 5 * 2**20
# What is set on the member's copy, by path; the root comes last.
FLAGS = {
    "replaced": "+i",
    "deleted": "+i",
    "attributes": "+i",
    "large": "+i",
    "grows": "+a",
    "below/directory/deep": "+i",
    "below/directory": "+a",
    "below": "+i",
    "gone/with/file": "+i",
    "gone": "+i",
    ".": "+i",
}


@pytest.fixture(scope="module", params=["ext4", "xfs", "btrfs"])
def disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    enter_private_mounts()
    directory = tmp_path_factory.mktemp("disk")
    with loop_filesystem(directory, request.param) as found:
        yield found


@pytest.fixture
def copies(disk: Path, tmp_path: Path) -> Iterator[tuple[Journal, Journal]]:
    """Yield the copies of an owner and a member, alike; the member's has flags."""
    homes = [disk / f"{tmp_path.name}-{name}" for name in ("owner", "member")]
    for home in homes:
        home.mkdir()
        make_root(home / "live")
    owner, member = (Journal(home, VOLUME) for home in homes)
    fill(owner.live)
    replicate(owner, member)
    for path, flag in FLAGS.items():
        subprocess.run(["chattr", flag, member.live / path], check=True)
    yield owner, member
    owner.close()
    member.close()
    # Whatever has failed, the disk has to be emptied.
    subprocess.run(["chattr", "-R", "-f", "-i", "-a", *homes], check=False)


def fill(root: Path) -> None:
    for path in FLAGS:
        if path not in (".", "below", "below/directory", "gone"):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text("first")
    (root / "large").write_bytes(os.urandom(LARGE_BYTES))


def change(root: Path) -> None:
    """Change each thing in its own way."""
    for path in ("replaced", "grows", "below/directory/deep", "below/new"):
        (root / path).write_text("second, and longer")
    (root / "deleted").unlink()
    (root / "attributes").chmod(0o600)
    with (root / "large").open("r+b") as file:
        file.seek(LARGE_BYTES // 2)
        file.write(b"a range")
    (root / "gone/with/file").unlink()
    (root / "gone/with").rmdir()
    (root / "gone").rmdir()


def test_a_commit_is_applied(copies: tuple[Journal, Journal]) -> None:
    owner, member = copies
    change(owner.live)
    replicate(owner, member)
    assert shape(member.live) == shape(owner.live)
    assert member.commit() == owner.commit()
    # It leads on from there.
    (owner.live / "replaced").write_text("third")
    replicate(owner, member)
    assert shape(member.live) == shape(owner.live)


def test_who_may_not_change_it_is_told_which_and_what_to_do(
    copies: tuple[Journal, Journal],
) -> None:
    owner, member = copies
    change(owner.live)
    owner.record(owner.look(EVERYTHING), (1, 2))
    base = member.commit()
    missing = list[bytes]()
    while missing := carry(owner.pack(base, only=missing), member):
        pass
    with pytest.raises(BackendError) as caught:
        incapable(member.apply)
    assert "it is immutable, or only grows (chattr -i -a)" in str(caught.value)
    assert "lacks CAP_LINUX_IMMUTABLE" in str(caught.value)
    assert str(member.live) in str(caught.value)
    member.apply()
    assert shape(member.live) == shape(owner.live)


def test_a_copy_whose_root_is_immutable_is_set_apart(
    copies: tuple[Journal, Journal],
) -> None:
    _, member = copies
    apart = member.keep_apart("1.1")
    assert (apart / "replaced").read_text() == "first"
    assert not member.live.exists()


def test_an_owner_goes_on_with_commits(copies: tuple[Journal, Journal]) -> None:
    """On btrfs a snapshot has the flags of what it was taken of."""
    _, owner = copies
    subprocess.run(["chattr", "-i", owner.live], check=True)
    (owner.live / "new").touch()
    subprocess.run(["chattr", "+i", owner.live], check=True)
    owner.record(owner.look(EVERYTHING), (2, 1))
    assert owner.commit() == (2, 1)
    if btrfs.subvolume(owner.live):
        names = [each.name for each in (owner.home / "commits").iterdir()]
        assert names == ["2.1"]
