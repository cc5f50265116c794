"""Volumes of a group are committed at one moment, and told of when they are not."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.protocol.node import wait_until
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.owners import WAIT_S, Owner, Records, pair_on
from tests.support.pausing import control_group

# Its arguments are mount points, then directories to have them at.
_ENTER = """
set -e
half=$(($# / 2))
for number in $(seq $half); do
    eval "from=\\${$number} at=\\${$((half + number))}"
    mount --bind "$from" "$at"
done
shift $half
exec "$PYTHON" -S -c "$WRITE" "$@"
"""
# As in tests/journal/test_group_commits.py.
_WRITE = """
import itertools, os, sys
files = [os.open(f"{e}/number", os.O_WRONLY | os.O_CREAT) for e in sys.argv[1:]]
for step in itertools.count():
    for file in files:
        os.pwrite(file, b"%08d" % step, 0)
        os.fsync(file)
"""


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    enter_private_mounts()
    directory = tmp_path_factory.mktemp("disk")
    with loop_filesystem(directory, request.param, size="1G") as disk:
        yield disk


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with control_group() as group:
        yield group


@pytest.fixture
def pair(
    disk: Path, tmp_path: Path, make_owner: Callable[..., Owner]
) -> tuple[Owner, Owner]:
    """Return two nodes of one cluster with pools on the disk."""
    return pair_on(disk, tmp_path.name, make_owner)


class GroupWriter:
    """Writes to all of *targets* on *owner* in turn, in a control group of its own."""

    def __init__(self, owner: Owner, group: Path, targets: list[Path]) -> None:
        self.files = [owner.copy(each.name) / "live/number" for each in targets]
        inside = [owner.directory / f"inside-{each.name}" for each in targets]
        for each in inside:
            each.mkdir(exist_ok=True)
        self.process = owner.popen(
            [
                *("unshare", "--mount", "--propagation", "private", "--"),
                *("env", f"PYTHON={sys.executable}", f"WRITE={_WRITE}"),
                *("sh", "-c", _ENTER, "sh", *map(str, (*targets, *inside))),
            ]
        )
        (group / "cgroup.procs").write_text(str(self.process.pid))
        wait_until(self.files[-1].exists, "all are written", timeout_s=WAIT_S)

    def wait_writing(self) -> None:
        """Return when something is written that was not there yet."""
        before = self.files[0].read_bytes()
        wait_until(
            lambda: self.files[0].read_bytes() > before, "a write", timeout_s=WAIT_S
        )

    def end(self) -> None:
        """End it, as a container that stops."""
        self.process.kill()
        self.process.wait(timeout=WAIT_S)


def copies(
    beta: Owner, records: Records, volume_ids: list[str]
) -> tuple[str, list[int]] | None:
    """Return of which moment beta's copies are, and what they have; None if neither."""
    heads = [records.head(each) for each in volume_ids]
    moments = {each.moment for each in heads}
    if len(moments) != 1 or "" in moments:
        return None
    found = [int((beta.copy(each) / "live/number").read_bytes()) for each in volume_ids]
    for volume_id, head in zip(volume_ids, heads, strict=True):
        copy = beta.copy(volume_id)
        if (copy / "staging").exists() and list((copy / "staging").iterdir()):
            return None
        if (
            beta.replica(volume_id).commit != head.committed
            or records.head(volume_id) != head
        ):
            return None
    return moments.pop(), found


def stand_still_at_one_moment(
    alpha: Owner, beta: Owner, records: Records, volume_ids: list[str]
) -> None:
    """Stop the owner between two rounds of the group, not in the middle of one."""

    def stands() -> bool:
        alpha.signal(signal.SIGSTOP)
        time.sleep(0.5)  # what was asked of beta before is done
        if copies(beta, records, volume_ids) is not None:
            return True
        alpha.signal(signal.SIGCONT)
        return False

    wait_until(stands, "both are at one moment", timeout_s=WAIT_S)


def assert_one_moment(
    beta: Owner, records: Records, volume_ids: list[str], count: int
) -> None:
    """Fail unless *count* moments that beta has are ones."""
    seen: set[str] = set()
    end_s = time.monotonic() + WAIT_S
    while len(seen) < count:
        assert time.monotonic() < end_s, f"only {seen} were seen"
        if found := copies(beta, records, volume_ids):
            moment, (first, second) = found
            assert second <= first <= second + 1, found
            seen.add(moment)
        time.sleep(0.02)


def test_a_group_is_committed_at_one_moment(
    pair: tuple[Owner, Owner], cgroup: Path, records: Records
) -> None:
    alpha, beta = pair
    ids = [alpha.create(name, interval="1s", group="db") for name in "ab"]
    for name in "ab":
        beta.wait_known(name)
    writer = GroupWriter(alpha, cgroup, [alpha.mount_at_last(name) for name in "ab"])
    assert_one_moment(beta, records, ids, 5)
    for _ in range(3):  # whatever it is at, nobody stays frozen
        alpha.kill()
        writer.wait_writing()
        alpha.start()
        alpha.wait_member()
        assert_one_moment(beta, records, ids, 2)
    status = alpha.get("a")["Status"]
    assert status["pauses"]["count"] > 0
    assert status["pauses"]["missed"] == ""
    wait_until(
        lambda: (
            alpha.get("a")["Status"]["group"]
            == {"name": "db", "together": ["b"], "apart": {}}
        ),
        "both are together",
    )
    assert alpha.get("a")["Status"]["moment"]
    # A third one is in use elsewhere: it cannot be of one moment with them.
    alpha.create("c", interval="1s", group="db")
    beta.wait_known("c")
    beta.mount_at_last("c")
    wait_until(
        lambda: (
            alpha.get("a")["Status"]["group"]["apart"]
            == {"c": "it is in use on node 'beta'"}
        ),
        "the third is told of",
    )
    writer.end()
    for name in "ab":
        alpha.unmount(name)


@pytest.mark.parametrize("is_torn", [False, True])
def test_who_begins_with_two_moments_is_told(
    pair: tuple[Owner, Owner],
    cgroup: Path,
    records: Records,
    is_torn: bool,
) -> None:
    alpha, beta = pair
    ids = [alpha.create(name, interval="1s", group="db") for name in "ab"]
    for name in "ab":
        beta.wait_known(name)
    writer = GroupWriter(alpha, cgroup, [alpha.mount_at_last(name) for name in "ab"])
    assert_one_moment(beta, records, ids, 2)
    stand_still_at_one_moment(alpha, beta, records, ids)
    alpha.kill()
    writer.end()
    assert copies(beta, records, ids) is not None
    if is_torn:  # as if only the other one had got the last commit
        records.change(ids[0], moment="2020-01-01T00:00:00.000Z")
    for name in "ab":
        beta.mount_at_last(name)
    wait_until(
        lambda: (
            "group" in beta.get("a")["Status"]
            and beta.control("GET", "/v1/volumes/b/events?limit=9").status == 200
        ),
        "beta has both",
    )
    numbers = [int((beta.copy(e) / "live/number").read_bytes()) for e in ids]
    assert numbers[1] <= numbers[0] <= numbers[1] + 1
    told = "of another moment than its group's"
    if is_torn:
        wait_until(lambda: beta.logged(told), "it is told", timeout_s=WAIT_S)
    else:
        time.sleep(3)  # some rounds
        assert not beta.logged(told)
