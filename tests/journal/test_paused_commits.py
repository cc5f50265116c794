"""Commits of one moment without snapshots: when there are some, and what is in them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends.errors import BackendError
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.moment import COPIED_BYTES_MAX, FILES_MAX
from backends.rsync.journal.packing import wanted
from backends.rsync.journal.range_log import RangeLog
from backends.rsync.journal.watch import Hints
from plugin.ownership.state import Commit
from plugin.replication.pauses import PauseFacts, Pauses
from plugin.replication.report import Report
from tests.support.journal_trees import VOLUME, carry, replicate, shape
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.pausing import OwnerProcess, control_group, joining, paused_owner


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    enter_private_mounts()
    directory = tmp_path_factory.mktemp("disks")
    with (
        loop_filesystem(directory, "xfs") as xfs,
        loop_filesystem(directory, "ext4") as ext4,
    ):
        yield {"xfs": xfs, "ext4": ext4}


@pytest.fixture
def members(tmp_path: Path) -> list[Path]:
    """Return the homes of two members."""
    homes = [tmp_path / "first", tmp_path / "second"]
    for each in homes:
        (each / "live").mkdir(parents=True)
    return homes


@contextmanager
def containers(owner: OwnerProcess) -> Iterator[None]:
    """Have something run that may write to the volume, in a group of its own."""
    with control_group() as group:
        command = joining(
            group, "sh", "-c", 'cd "$0"; echo; exec sleep 600', owner.mounted
        )
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            try:
                yield
            finally:
                process.kill()


@pytest.mark.parametrize(
    ("kind", "consistency", "quality"),
    [
        ("xfs", "", "snapshot"),
        ("xfs", "fuzzy", "fuzzy"),
        ("ext4", "", "fuzzy"),
        ("ext4", "pause", "snapshot"),
    ],
)
def test_where_containers_are_paused(
    disks: dict[str, Path],
    members: list[Path],
    kind: str,
    consistency: str,
    quality: str,
) -> None:
    disk = disks[kind] / f"as-{consistency}"
    disk.mkdir()
    with paused_owner(disk, consistency) as owner, containers(owner):
        owner.replicate(members[0])
        for number in range(3):
            (owner.mounted / "file").write_text(str(number))
            assert owner.replicate(members[0]) == quality
        assert (members[0] / "live/file").read_text() == "2"
        facts = owner.facts
    assert facts.missed == ""
    assert bool(facts.count) == (quality == "snapshot")


def test_without_a_container_it_is_as_ever_and_told(
    disks: dict[str, Path], members: list[Path]
) -> None:
    disk = disks["xfs"] / "without"
    disk.mkdir()
    with paused_owner(disk) as owner:
        (owner.mounted / "file").write_text("from nowhere")
        assert owner.replicate(members[0]) == "fuzzy"
        assert "no container is known" in owner.facts.missed
        assert (members[0] / "live/file").read_text() == "from nowhere"
        with containers(owner):
            (owner.mounted / "file").write_text("from a container")
            assert owner.replicate(members[0]) == "snapshot"
            assert owner.facts.missed == ""


# Both write to two files, again and again: with events, by the path in the pool, and
# with none, by that of the mount.
_BY_NAME = """
while True:
    for name in names:
        with open(name, "r+b") as file:
            file.write(b"%08d" % next(numbers))
"""
_MAPPED = """
files = [open(name, "r+b") for name in names]
maps = [mmap.mmap(file.fileno(), 4096) for file in files]
[file.close() for file in files]
while True:
    for each in maps:
        each[:8] = b"%08d" % next(numbers)
"""


@pytest.mark.parametrize(
    ("script", "why"),
    [(_BY_NAME, "somebody outside"), (_MAPPED, "no control group of its own")],
)
def test_who_else_writes_makes_it_fuzzy(
    disks: dict[str, Path], members: list[Path], script: str, why: str
) -> None:
    disk = disks["xfs"] / f"else-{len(script)}"
    disk.mkdir()
    with paused_owner(disk) as owner, containers(owner):
        for name in "ab":
            (owner.mounted / name).write_bytes(b"0" * 4096)
        live = disk / "alpha/pool/volumes" / owner.volume_id / "live"
        at = owner.mounted if script == _MAPPED else live
        names = [str(at / name) for name in "ab"]
        begin = f"import itertools, mmap; numbers = itertools.count(); names = {names}"
        program = f"{begin}; print(flush=True)\n{script}"
        with subprocess.Popen(
            [sys.executable, "-S", "-c", program], stdout=subprocess.PIPE, cwd="/"
        ) as other:
            assert other.stdout is not None
            other.stdout.readline()
            time.sleep(0.1)
            quality, facts = owner.replicate(members[0]), owner.facts
            other.kill()
        assert quality == "fuzzy"
        assert why in facts.missed
        assert owner.replicate(members[0]) == "snapshot"


def test_members_at_two_bases_get_one_moment(
    disks: dict[str, Path], members: list[Path]
) -> None:
    disk = disks["xfs"] / "two"
    disk.mkdir()
    first, second = members
    with paused_owner(disk) as owner, containers(owner):
        for name in ("early", "late", "gone"):
            (owner.mounted / name).write_text("at first")
        (owner.mounted / "large").write_bytes(b"x" * 8 * 2**20)
        owner.replicate(first)
        owner.replicate(second)
        (owner.mounted / "early").write_text("for the second alone")
        (owner.mounted / "linked").hardlink_to(owner.mounted / "early")
        with (owner.mounted / "large").open("r+b") as large:
            large.write(b"changed")
        (owner.mounted / "gone").unlink()
        # What is young counts as changed once more.
        for _ in range(2):
            (owner.mounted / "often").touch()
            assert owner.replicate(first) == "snapshot"
        (owner.mounted / "late").write_text("for both")
        assert owner.replicate(first, second) == "snapshot"
        expected = shape(owner.mounted)
        for each in members:
            assert shape(each / "live") == expected
        # Where it changes is known all the same, from then on.
        with (owner.mounted / "large").open("r+b") as large:
            large.write(b"again")
        assert owner.replicate(first, second) == "snapshot"
        log = RangeLog(disk / "alpha/pool/volumes" / owner.volume_id / "ranges")
        [found] = log.since(b"large", (1, 5), (1, 6)) or [None]
        assert found is not None
        assert found[1] < 2**20


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Journal]:
    (tmp_path / "owner/live").mkdir(parents=True)
    journal = Journal(tmp_path / "owner", VOLUME)
    yield journal
    journal.close()


def take(owner: Journal, *inodes: int) -> None:
    """Make a commit of a moment in which events tell of nothing."""
    owner.moments.prepare(owner.look(Hints()), owner.manifest, shares_blocks=False)
    owner.moments.take(Hints(), inodes)
    changes = owner.moments.taken()
    assert changes is not None
    owner.record(changes, (1, owner.commit()[1] + 1))


def test_what_no_event_tells_of_is_in_it(owner: Journal, members: list[Path]) -> None:
    member = Journal(members[0], VOLUME)
    for name in ("open", "closed"):
        (owner.live / name).write_text("before")
    replicate(owner, member)
    replicate(owner, member)
    for name in ("open", "closed"):
        (owner.live / name).write_text("since")
    owner.moments.expect([member.commit()])
    take(owner, (owner.live / "open").stat().st_ino)
    (owner.live / "open").write_text("after the moment")
    package = owner.pack(member.commit())
    assert owner.quality() == "snapshot"
    assert carry(package, member) == []
    member.apply()
    assert (member.live / "open").read_text() == "since"
    assert (member.live / "closed").read_text() == "before"
    # What was written later is a change, though it was copied since.
    assert [e.entry.path for e in owner.look(EVERYTHING).changed] == [
        b"closed",
        b"open",
    ]
    member.close()


def test_a_file_is_found_by_a_name_it_had_once(owner: Journal) -> None:
    (owner.live / "file").write_text("before")
    owner.record(owner.look(EVERYTHING), (1, 1))
    (owner.live / "file").write_text("since")
    hints = Hints(inodes=frozenset({(owner.live / "file").stat().st_ino}))
    assert [each.entry.path for each in owner.look(hints).changed] == [b"file"]


def test_with_files_from_after_the_moment_it_is_none(owner: Journal) -> None:
    for name in ("one", "two"):
        (owner.live / name).write_text("before")
    owner.record(owner.look(EVERYTHING), (1, 1))
    (owner.live / "two").write_text("since")
    take(owner, (owner.live / "two").stat().st_ino)
    assert owner.quality() == "snapshot"
    owner.pack(None, only=[b"one", b"two"])
    assert owner.quality() == "fuzzy"


def test_who_gets_it_late_gets_its_quality(owner: Journal) -> None:
    late = Report(Commit(1, 1), quality="snapshot")
    owner.record(owner.look(EVERYTHING), (1, 2))
    assert late.quality_of(owner) == "snapshot"
    assert Report(Commit(1, 2)).quality_of(owner) == "fuzzy"
    take(owner)
    assert Report(Commit(1, 3)).quality_of(owner) == "snapshot"
    assert Report(Commit(1, 2)).quality_of(owner) == "fuzzy"


def test_it_is_no_longer_than_it_was_used(owner: Journal) -> None:
    (owner.live / "file").write_text("there")
    owner.record(owner.look(EVERYTHING), (1, 1))
    take(owner, (owner.live / "file").stat().st_ino)
    assert owner.quality() == "snapshot"
    owner.record(owner.look(EVERYTHING), (1, 3))
    assert owner.quality() == "fuzzy"
    owner.close()
    assert not (owner.home / "outbox").exists()


def test_what_takes_too_long_is_refused_before(owner: Journal) -> None:
    with (owner.live / "large").open("wb") as file:
        file.truncate(COPIED_BYTES_MAX + 1)
    changes = owner.look(EVERYTHING)
    owner.moments.prepare(changes, owner.manifest, shares_blocks=True)
    with pytest.raises(BackendError, match="32 MiB would stop its containers"):
        owner.moments.prepare(changes, owner.manifest, shares_blocks=False)
    for number in range(FILES_MAX):
        (owner.live / str(number)).touch()
    with pytest.raises(BackendError, match="1000 files"):
        owner.moments.prepare(
            owner.look(EVERYTHING), owner.manifest, shares_blocks=True
        )


def test_what_grows_before_the_moment_is_refused_in_it(owner: Journal) -> None:
    (owner.live / "file").touch()
    owner.record(owner.look(EVERYTHING), (1, 1))
    owner.moments.prepare(owner.look(Hints()), owner.manifest, shares_blocks=False)
    with (owner.live / "file").open("wb") as file:
        file.truncate(COPIED_BYTES_MAX + 1)
    with pytest.raises(BackendError, match="32 MiB would stop its containers"):
        take(owner, (owner.live / "file").stat().st_ino)


def test_of_a_member_far_behind_no_more_is_looked_up_than_a_moment_has(
    owner: Journal,
) -> None:
    owner.record(owner.look(EVERYTHING), (1, 1))
    for number in range(2 * FILES_MAX):
        (owner.live / str(number)).touch()
    owner.record(owner.look(EVERYTHING), (1, 2))
    found = wanted(owner.manifest, (1, 1), (), enough=FILES_MAX)
    assert len(found) == FILES_MAX + 1


def test_long_pauses_are_not_tried_again_for_a_while() -> None:
    pauses = Pauses()
    for took_s in (0.01, 0.3, 0.02, 0.02):
        pauses.note("v", took_s, limit_s=0.1)
    assert pauses.rest_s("v") == 0
    assert pauses.facts("v") == PauseFacts(4, 20.0, 300.0)
    for _ in range(3):
        pauses.note("v", 0.01, limit_s=0.1, missed="it did not last")
    assert pauses.rest_s("v") > 0
    assert pauses.facts("v") == PauseFacts(4, 20.0, 300.0, "it did not last")
    pauses.keep_only([])
    assert pauses.rest_s("v") == 0
    assert pauses.facts("v") == PauseFacts()
