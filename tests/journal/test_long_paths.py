"""The longest path that a commit can have is one that rsync carries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.scan import PATH_MAX_BYTES
from backends.system.beneath import Beneath
from tests.support.journal_trees import VOLUME, replicate
from tests.support.namespaces import enter_private_mounts, loop_filesystem


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Journal, Journal]]:
    enter_private_mounts()
    with loop_filesystem(tmp_path, "xfs", size="320M") as disk:
        homes = [disk / "owner", disk / "member"]
        for home in homes:
            (home / "live").mkdir(parents=True)
        with (
            closing(Journal(homes[0], VOLUME)) as owner,
            closing(Journal(homes[1], VOLUME)) as member,
        ):
            yield owner, member


def long_path(length: int) -> bytes:
    above = b"/".join([b"d" * 250] * 16)
    return above + b"/" + b"f" * (length - len(above) - 1)


def change(journal: Journal, path: bytes, *, owner: int) -> None:
    """Have the file *path*, with an attribute and of *owner*; its content stays."""
    with Beneath(journal.live) as tree:
        directory, name = tree.at(path, make=True)
        file = os.open(name, os.O_RDWR | os.O_CREAT, dir_fd=directory)
        if not os.fstat(file).st_size:
            os.write(file, b"x" * 9000)
        os.setxattr(file, "user.remark", b"kept")
        os.fchown(file, owner, owner)
        os.close(file)


def test_the_longest_path_comes_whole_and_with_attributes_alone(
    pair: tuple[Journal, Journal],
) -> None:
    """The name that would bring its attributes is too long, so it is sent."""
    owner, member = pair
    path = long_path(PATH_MAX_BYTES)
    for user in (5, 6):
        change(owner, path, owner=user)
        replicate(owner, member)
        with Beneath(member.live) as tree:
            status = tree.status(path)
        assert status is not None
        assert (status.st_uid, status.st_size) == (user, 9000)


def test_a_longer_one_is_an_error_and_no_commit(pair: tuple[Journal, Journal]) -> None:
    owner, _ = pair
    change(owner, long_path(PATH_MAX_BYTES + 1), owner=5)
    with pytest.raises(BackendError, match="too long"):
        owner.look(EVERYTHING)
