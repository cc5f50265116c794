"""
Commits of several volumes are of one moment, if the volumes are of one group.

A writer writes a number to one file of each volume, in turn, and flushes each before
the next: so at one moment none is ahead of one that is written before it, nor behind it
by more than one.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.protocol.node import wait_until
from tests.support.grouped import Made, group_owner
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.pausing import control_group, joining

ROUNDS = 25
ROUNDS_UNTIL_TORN = 100
_WRITE = """
import itertools, os, sys
flags = os.O_WRONLY | os.O_CREAT
files = [os.open(f"{each}/number", flags) for each in sys.argv[1:]]
print(flush=True)
for step in itertools.count():
    for file in files:
        os.pwrite(file, b"%08d" % step, 0)
        os.fsync(file)
"""


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    enter_private_mounts()
    directory = tmp_path_factory.mktemp("disks")
    with (
        loop_filesystem(directory, "xfs") as xfs,
        loop_filesystem(directory, "btrfs") as btrfs,
        loop_filesystem(directory, "ext4") as ext4,
    ):
        yield {"xfs": xfs, "btrfs": btrfs, "ext4": ext4}


@pytest.fixture
def disk(
    disks: dict[str, Path], request: pytest.FixtureRequest, tmp_path: Path
) -> Path:
    """Return a directory of its own on a disk of the kind that is asked for."""
    directory = disks[getattr(request, "param", "xfs")] / tmp_path.name
    directory.mkdir()
    return directory


@pytest.fixture
def homes(tmp_path: Path) -> dict[str, Path]:
    """Return the homes of the volumes' members."""
    found = {name: tmp_path / "members" / name for name in "abcde"}
    for each in found.values():
        (each / "live").mkdir(parents=True)
    return found


@contextmanager
def writing(group: Path, *volumes: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Have a container write to *volumes*, once it has written to all."""
    command = joining(group, sys.executable, "-S", "-c", _WRITE, *volumes)
    last = volumes[-1] / "number"
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            wait_until(lambda: last.stat().st_size, "it writes")
            yield process
        finally:
            process.kill()


def numbers(homes: Mapping[str, Path], *names: str) -> list[int]:
    """Return what the members of *names* have."""
    return [int((homes[each] / "live/number").read_bytes()) for each in names]


def is_one_moment(found: list[int]) -> bool:
    return found == sorted(found, reverse=True) and found[0] - found[-1] <= 1


def assert_together(made: Mapping[str, Made], *names: str) -> None:
    """Fail unless exactly *names* were committed, at one moment."""
    assert made.keys() == {*names}
    assert {quality for quality, _ in made.values()} == {"snapshot"}
    [moment] = {moment for _, moment in made.values()}
    assert moment


KINDS = [("xfs", {}), ("btrfs", {}), ("ext4", {"consistency": "pause"})]


@pytest.mark.parametrize(("disk", "options"), KINDS, indirect=["disk"])
def test_they_are_of_one_moment(
    disk: Path, homes: dict[str, Path], options: dict[str, str]
) -> None:
    seen, moments = set(), set()
    with control_group() as group, group_owner(disk) as owner:
        at = [owner.mount(name, **options) for name in "ab"]
        with writing(group, *at):
            owner.rounds(homes)  # members say what they lack, which takes a while
            for _ in range(ROUNDS):
                made = owner.rounds(homes)
                assert_together(made, "a", "b")
                found = numbers(homes, "a", "b")
                assert is_one_moment(found), found
                seen.add(found[0])
                moments.add(made["a"][1])
        first, second = owner.facts("a"), owner.facts("b")
        assert not [owner.left_out(name) for name in "ab" if owner.left_out(name)]
    assert first == second
    assert first.count == ROUNDS + 1
    print(first)
    assert len(seen) > ROUNDS // 2  # the writer did write meanwhile
    assert len(moments) == ROUNDS


@pytest.mark.parametrize(("disk", "options"), KINDS, indirect=["disk"])
def test_without_a_group_they_are_not(
    disk: Path, homes: dict[str, Path], options: dict[str, str]
) -> None:
    with control_group() as group, group_owner(disk, group="") as owner:
        at = [owner.mount(name, **options) for name in "ab"]
        with writing(group, *at):
            for _ in range(ROUNDS_UNTIL_TORN):
                made = owner.rounds(homes)
                assert {moment for _, moment in made.values()} == {""}
                if not is_one_moment(numbers(homes, "a", "b")):
                    return
    pytest.fail("the test cannot fail")


@pytest.mark.parametrize("disk", ["xfs", "btrfs"], indirect=True)
def test_volumes_join_and_leave(disk: Path, homes: dict[str, Path]) -> None:
    with control_group() as group, group_owner(disk) as owner:
        at = [owner.mount("a")]
        with writing(group, *at):
            owner.rounds(homes)
            assert owner.rounds(homes) == {"a": ("snapshot", "")}  # of itself alone
        at += [owner.mount(name) for name in "bcde"]
        with writing(group, *at):
            owner.rounds(homes)
            for _ in range(5):
                assert_together(owner.rounds(homes), *"abcde")
                assert is_one_moment(numbers(homes, *"abcde"))
        owner.unmount("c")
        with writing(group, *(at[number] for number in (0, 1, 3, 4))):
            for _ in range(5):
                assert_together(owner.rounds(homes), *"abde")
                assert is_one_moment(numbers(homes, *"abde"))


@pytest.mark.parametrize("disk", ["xfs", "btrfs"], indirect=True)
def test_what_has_not_changed_is_of_the_moment_too(
    disk: Path, homes: dict[str, Path]
) -> None:
    with control_group() as group, group_owner(disk) as owner:
        busy, idle = owner.mount("a"), owner.mount("b")
        (idle / "number").write_text("7")
        with writing(group, busy):
            for _ in range(5):  # what is young counts as changed
                owner.rounds(homes)
            made = owner.rounds(homes)
            assert made["a"][1] == made["b"][1] != ""
            assert numbers(homes, "b") == [7]
        for _ in range(5):
            owner.rounds(homes)
        # Nobody writes, nobody stands still.
        before = owner.facts("a").count
        owner.rounds(homes)
        assert owner.facts("a").count == before


def test_who_cannot_be_paused_keeps_nobody_from_it(
    disk: Path, homes: dict[str, Path]
) -> None:
    with control_group() as group, group_owner(disk) as owner:
        at = [owner.mount(name) for name in "abc"]
        outside = (at[2] / "open").open("w")
        with writing(group, *at), outside:
            outside.write("from outside of containers")
            outside.flush()
            owner.rounds(homes)
            for _ in range(3):
                made = owner.rounds(homes)
                assert_together({k: made[k] for k in "ab"}, "a", "b")
                assert made["c"] == ("fuzzy", "")
            assert is_one_moment(numbers(homes, "a", "b"))
            assert "no control group of its own" in owner.left_out("c")
            [told] = [e for e in owner.events("c") if e.kind == "left-out"]
            assert told.facts["group"] == "db"
            assert "no control group of its own" in str(told.facts["why"])
        with writing(group, *at):
            assert_together(owner.rounds(homes), "a", "b", "c")
            assert owner.left_out("c") == ""


@pytest.mark.parametrize("disk", ["xfs", "btrfs"], indirect=True)
def test_who_hangs_in_the_pause_takes_nobodys_moment(
    disk: Path, homes: dict[str, Path]
) -> None:
    with control_group() as group, group_owner(disk) as owner:
        at = [owner.mount(name) for name in "abc"]
        with writing(group, *at):
            owner.rounds(homes)
            owner.hang_in_pause("c", 1.5)
            for _ in range(2):
                made = owner.rounds(homes)
                assert_together({k: made[k] for k in "ab"}, "a", "b")
                assert made["c"][1] == ""
            assert is_one_moment(numbers(homes, "a", "b"))
            assert "did not wait" in owner.left_out("c")


@contextmanager
def stuck(group: Path, volume: Path, disk: Path) -> Iterator[None]:
    """Have a container that uses *volume* be in the kernel, at another *disk*."""
    subprocess.run(["fsfreeze", "--freeze", disk], check=True)
    script = 'exec 3> "$0/open"; echo > "$1/stuck"'
    command = joining(group, "sh", "-c", script, volume, disk)
    with subprocess.Popen(command) as process:
        try:
            status = Path(f"/proc/{process.pid}/status")
            wait_until(lambda: "State:\tD" in status.read_text(), "it is stuck")
            yield
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", disk], check=True)
            process.wait(timeout=30)


def test_who_does_not_stand_still_keeps_nobody_from_it(
    disk: Path, disks: dict[str, Path], homes: dict[str, Path]
) -> None:
    with control_group() as one, control_group() as two, group_owner(disk) as owner:
        at = [owner.mount(name) for name in "abc"]
        with writing(one, *at[:2]), writing(two, at[2]):
            owner.rounds(homes)
            with stuck(two, at[2], disks["ext4"]):
                for _ in range(2):
                    made = owner.rounds(homes)
                    assert_together({k: made[k] for k in "ab"}, "a", "b")
                    assert made["c"] == ("fuzzy", "")
                assert "do not stand still" in owner.left_out("c")
                assert owner.left_out("a") == ""
            assert_together(owner.rounds(homes), "a", "b", "c")
        assert is_one_moment(numbers(homes, "a", "b"))


@pytest.mark.parametrize("disk", ["xfs", "btrfs"], indirect=True)
def test_who_is_late_has_a_moment_of_its_own(
    disk: Path, homes: dict[str, Path]
) -> None:
    with control_group() as group, group_owner(disk) as owner:
        at = [owner.mount(name) for name in "abc"]
        with writing(group, *at):
            owner.rounds(homes)
            owner.be_late("c")
            for _ in range(2):
                made = owner.rounds(homes)
                assert_together({k: made[k] for k in "ab"}, "a", "b")
                assert made["c"] == ("snapshot", "")
            assert owner.left_out("c") == "the others did not wait for it"
            assert "left-out" in {each.kind for each in owner.events("c")}


@pytest.mark.parametrize("disk", ["ext4"], indirect=True)
def test_where_nothing_can_be_set_aside_it_says_so(
    disk: Path, homes: dict[str, Path]
) -> None:
    with control_group() as group, group_owner(disk) as owner:
        at = [owner.mount(name) for name in "ab"]
        with writing(group, *at):
            assert owner.rounds(homes) == dict.fromkeys("ab", ("fuzzy", ""))
            assert "a pool on XFS or btrfs" in owner.left_out("a")


@pytest.mark.parametrize("disk", ["xfs", "btrfs"], indirect=True)
def test_who_dies_in_a_pause_leaves_nobody_paused(
    disk: Path, homes: dict[str, Path]
) -> None:
    with control_group() as group:
        with group_owner(disk) as owner:
            at = [owner.mount(name) for name in "ab"]
            with writing(group, *at):
                owner.rounds(homes)
                owner.die_in_pause()
                with pytest.raises(BrokenProcessPool):
                    owner.rounds(homes)
                frozen = group / "cgroup.freeze"
                wait_until(lambda: frozen.read_text().strip() == "0", "it goes on")
                before = (at[1] / "number").read_bytes()
                wait_until(
                    lambda: (at[1] / "number").read_bytes() > before, "it writes"
                )
        # The next daemon's rounds are as ever.
        with group_owner(disk) as owner:
            at = [owner.mount(name) for name in "ab"]
            with writing(group, *at):
                owner.rounds(homes)
                assert_together(owner.rounds(homes), "a", "b")
                assert is_one_moment(numbers(homes, "a", "b"))
