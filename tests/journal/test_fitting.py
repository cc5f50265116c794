"""What does not fit on a member's filesystem keeps nothing else of the commit back."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from backends.rsync.journal import fitting
from backends.rsync.journal.entries import Entry
from backends.rsync.journal.fitting import Fitting, Unfit, read_unfit, unfit_of
from backends.rsync.journal.journal import EVERYTHING, Journal
from tests.support.journal_trees import VOLUME, carry, replicate, shape
from tests.support.namespaces import enter_private_mounts, loop_filesystem

# Its inodes have no fractions of a second, and no year after 2038.
OLD_EXT4 = ("-I", "128")
# Small directories are in their inodes, beside attributes.
INLINE = ("-b", "4096", "-O", "inline_data")
LARGE = b"z" * 5000
BLOCK = b"z" * 4030
FILE = Entry(b"file", "file", 0o644, 0, 0, 10**18)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    enter_private_mounts()
    kinds = {"xfs": (), "ext4": (), "old ext4": OLD_EXT4, "inline ext4": INLINE}
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                loop_filesystem(
                    tmp_path_factory.mktemp("disk"),
                    name.rpartition(" ")[2],
                    made_with=options,
                )
            )
            for name, options in kinds.items()
        }


numbers = itertools.count()


@contextmanager
def journals(owner: Path, member: Path) -> Iterator[tuple[Journal, Journal]]:
    made = []
    for disk in (owner, member):
        home = disk / f"volume{next(numbers)}"
        (home / "live").mkdir(parents=True)
        made.append(Journal(home, VOLUME))
    with closing(made[0]), closing(made[1]):
        yield made[0], made[1]


@pytest.mark.parametrize("name", ["file", "below"])
def test_an_attribute_that_does_not_fit(disks: dict[str, Path], name: str) -> None:
    """Of a file, or a directory: all else comes, and what is lacking is named."""
    with journals(disks["xfs"], disks["ext4"]) as (owner, member):
        (owner.live / "below").mkdir()
        for each in ("file", "below/other"):
            (owner.live / each).write_text("content")
        time.sleep(0.15)  # what is younger counts as changed once more
        replicate(owner, member)
        os.setxattr(owner.live / name, "user.stream", LARGE)
        os.setxattr(owner.live / name, "user.small", b"fits")
        (owner.live / "below/other").write_text("changed")
        replicate(owner, member)
        assert (member.live / "below/other").read_text() == "changed"
        assert os.listxattr(member.live / name) == ["user.small"]
        assert read_unfit(member.home) == [Unfit(os.fsencode(name), "attributes")]
        assert name in unfit_of(member.home)
        # The same again, with all names: it is known what does not fit.
        owner.record(owner.look(EVERYTHING), (2, 1))
        assert carry(owner.pack(None), member) == []
        member.apply()
        assert read_unfit(member.home) == [Unfit(os.fsencode(name), "attributes")]
        os.removexattr(owner.live / name, "user.stream")
        owner.record(owner.look(EVERYTHING), (2, 2))
        assert carry(owner.pack((2, 1)), member) == []
        member.apply()
        assert shape(member.live) == shape(owner.live)
        assert unfit_of(member.home) == ""


def test_an_attribute_that_fits_only_where_it_came(disks: dict[str, Path]) -> None:
    """It is found once the commit is the member's: all else comes to its place."""
    with journals(disks["xfs"], disks["inline ext4"]) as (owner, member):
        (owner.live / "below").mkdir()
        for number in range(5):
            (owner.live / f"below/name{number}").touch()
        time.sleep(0.15)  # what is younger counts as changed once more
        replicate(owner, member)
        os.setxattr(owner.live / "below", "user.small", b"s" * 20)
        os.setxattr(owner.live / "below", "user.stream", BLOCK)
        (owner.live / "below/name0").write_text("changed")
        replicate(owner, member)
        assert (member.live / "below/name0").read_text() == "changed"
        assert read_unfit(member.home) == [Unfit(b"below", "attributes")]
        os.removexattr(owner.live / "below", "user.stream")
        replicate(owner, member)
        assert shape(member.live) == shape(owner.live)
        assert unfit_of(member.home) == ""


def test_a_file_whose_attributes_have_not_come_is_sent_again(
    disks: dict[str, Path],
) -> None:
    """Once is not enough: another transfer may have left it."""
    with journals(disks["xfs"], disks["ext4"]) as (owner, member):
        (owner.live / "file").write_text("content")
        os.setxattr(owner.live / "file", "user.stream", LARGE)
        owner.record(owner.look(EVERYTHING), (1, 1))
        refused: dict[bytes, str] = {}
        package = owner.pack(None, only=[b"file"])
        for missing in ([b"file"], []):
            assert carry(package, member, refused) == missing


@pytest.mark.parametrize("year", [2100, 2500])
def test_a_time_that_does_not_fit(disks: dict[str, Path], year: int) -> None:
    """Fractions that the filesystem does not have are nothing to tell of."""
    time_s = (year - 1970) * 31_556_952
    with journals(disks["xfs"], disks["old ext4"]) as (owner, member):
        (owner.live / "late").write_text("content")
        (owner.live / "usual").write_text("content")
        (owner.live / "below").mkdir()
        for name in ("late", "below"):
            os.utime(owner.live / name, (time_s, time_s))
        held = (owner.live / "late").stat().st_mtime
        replicate(owner, member)
        assert (member.live / "late").stat().st_mtime < held
        assert read_unfit(member.home) == [
            Unfit(b"below", "time"),
            Unfit(b"late", "time"),
        ]
        assert int((member.live / "usual").stat().st_mtime) == int(
            (owner.live / "usual").stat().st_mtime
        )
        (owner.live / "usual").write_text("changed")
        replicate(owner, member)
        assert (member.live / "usual").read_text() == "changed"
        assert len(read_unfit(member.home)) == 2
        (owner.live / "late").unlink()
        replicate(owner, member)
        assert read_unfit(member.home) == [Unfit(b"below", "time")]


def test_a_wrong_time_is_not_taken_for_one_that_does_not_fit(tmp_path: Path) -> None:
    other = Entry(b"file", "file", 0o644, 0, 0, 10**18 + 1)
    assert not Fitting(tmp_path).comes(FILE, other)
    assert Fitting(tmp_path).comes(FILE, FILE)


def test_no_more_is_taken_without_its_attributes_than_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "UNFIT_MAX", 1)
    refused: dict[bytes, str] = {}
    one, two = (
        Entry(path, "file", 0o644, 0, 0, 10**18, attributes="large")
        for path in (b"a", b"b")
    )
    found = {
        each.path: Entry(each.path, "file", 0o644, 0, 0, 10**18) for each in (one, two)
    }
    tried = Fitting(tmp_path, refused)
    assert not tried.comes(one, found[b"a"])
    tried = Fitting(tmp_path, refused)
    assert tried.comes(one, found[b"a"])
    assert not tried.comes(two, found[b"b"])
    assert not tried.comes(two, found[b"b"])


def test_who_writes_the_volume_lacks_nothing(disks: dict[str, Path]) -> None:
    with journals(disks["xfs"], disks["old ext4"]) as (owner, member):
        (owner.live / "late").write_text("content")
        os.utime(owner.live / "late", (2**32, 2**32))
        replicate(owner, member)
        assert unfit_of(member.home)
        member.record(member.look(EVERYTHING), (2, 1))
        assert unfit_of(member.home) == ""
