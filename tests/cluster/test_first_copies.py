"""A first copy counts when it is marked; who uses it then waits until it is applied."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.protocol.node import wait_until
from tests.support.copies import live, wait_held, wait_same
from tests.support.owners import TTL_S, WAIT_S, Owner, Records

Make = Callable[..., Owner]
NAME = "data"
# From a thousand on a member answers before it has applied a commit.
FILES = 1200


@contextmanager
def slow_apply(owner: Owner, volume_id: str, seconds: float = 6.0) -> Iterator[None]:
    """Let what was sent to *owner* take so long to get into its place."""
    assert owner.process is not None
    delay = f"--inject=rename:delay_enter={seconds:.0f}s"
    command = ["strace", "-f", "-q", "-e", "trace=rename", delay, "-o", "/dev/null"]
    what = ["-P", str(owner.copy(volume_id) / "staging/tree")]
    tracer = subprocess.Popen([*command, *what, "-p", str(owner.process.pid)])
    try:
        status = Path(f"/proc/{owner.process.pid}/status")
        traced = f"TracerPid:\t{tracer.pid}\n"
        wait_until(lambda: traced in status.read_text(), "it is slow", timeout_s=WAIT_S)
        yield
    finally:
        tracer.send_signal(signal.SIGTERM)
        tracer.wait(WAIT_S)


def is_applying(owner: Owner, volume_id: str) -> bool:
    return (owner.copy(volume_id) / "applying").exists()


@pytest.fixture
def owners(make_owner: Make) -> tuple[Owner, Owner]:
    return make_owner("alpha"), make_owner("gamma")


def filled(owners: tuple[Owner, Owner]) -> str:
    """Return the id of a volume that is full at the first."""
    alpha, gamma = owners
    volume_id = alpha.create(NAME, interval="1s", members="alpha,gamma")
    gamma.wait_known(NAME)
    for number in range(FILES):
        (live(alpha, volume_id) / str(number)).write_text(str(number))
    return volume_id


def contents(directory: Path) -> dict[str, str]:
    return {each.name: each.read_text() for each in directory.iterdir()}


ALL = {str(number): str(number) for number in range(FILES)}


def test_what_counts_is_there_after_a_crash_before_it_is_applied(
    owners: tuple[Owner, Owner], records: Records
) -> None:
    alpha, gamma = owners
    volume_id = filled(owners)
    with slow_apply(gamma, volume_id):
        alpha.mount(NAME)
        wait_held(records, volume_id, *owners)
        assert is_applying(gamma, volume_id)
        gamma.kill()
    assert contents(live(gamma, volume_id)) == {}
    alpha.kill()
    gamma.start()
    gamma.wait_member()
    gamma.mount_at_last(NAME)
    assert contents(live(gamma, volume_id)) == ALL


def test_a_mount_waits_until_what_counts_is_applied(
    owners: tuple[Owner, Owner], records: Records
) -> None:
    alpha, gamma = owners
    volume_id = filled(owners)
    with slow_apply(gamma, volume_id, seconds=2 * TTL_S):
        alpha.mount(NAME)
        wait_held(records, volume_id, *owners)
        alpha.kill()
        gamma.wait_down("alpha")
        assert is_applying(gamma, volume_id)
        gamma.mount_at_last(NAME)
    assert not is_applying(gamma, volume_id)
    assert contents(live(gamma, volume_id)) == ALL


def test_the_next_commit_comes_when_the_first_one_is_applied(
    owners: tuple[Owner, Owner], records: Records
) -> None:
    """It is not refused meanwhile."""
    alpha, gamma = owners
    volume_id = filled(owners)
    with slow_apply(gamma, volume_id):
        alpha.mount(NAME)
        wait_held(records, volume_id, *owners)
        assert is_applying(gamma, volume_id)
        (live(alpha, volume_id) / "next").write_text("next")
        alpha.unmount(NAME)
        assert gamma.id in records.head(volume_id).holders
    wait_same(alpha, gamma, volume_id)
    assert (live(gamma, volume_id) / "next").read_text() == "next"
    # That its sshd was not there yet is none.
    told = [each for each in alpha.log_lines() if each["level"] == "warning"]
    assert [each for each in told if "not up to date" in each["event"]] == []
