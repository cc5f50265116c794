"""Programs that print much, or nothing: what counts as progress, and what is kept."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import pytest

from backends.errors import BackendError, DeadlineError
from backends.system.clock import Deadline
from backends.system.jail import Shown
from backends.system.programs import in_jail
from backends.system.run import Helper, LeasedError, run, stream
from tests.support.host import wait_until
from tests.support.leases import leased
from tests.support.peers import COMMAND_DEADLINE_S
from tests.support.processes import gone

STALL_S = 2.0
# It reads for more than twice as long as it may stand still, and prints nothing.
WORK = """
import time
with open("/dev/zero", "rb", buffering=0) as file:
    for _ in range(100):
        file.read(1)
        time.sleep(0.05)
print("done")
"""


def test_a_silent_program_that_works_is_waited_for() -> None:
    pieces = list(stream([sys.executable, "-c", WORK], stall_s=STALL_S))
    assert pieces[-1] == b"done\n"
    assert b"" in pieces


def test_one_that_works_in_a_jail_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    works = "for each in $(seq 40); do head -c 1 /usr/bin/env > /x/y; sleep 0.1; done"
    command = in_jail(
        ["sh", "-c", f"{works}; echo done"],
        Shown("x", str(tmp_path), "place", writable=True),
    )
    assert list(stream(command, stall_s=STALL_S))[-1] == b"done\n"


@pytest.mark.parametrize("script", ["exec sleep 600", '$0 -c "$1" & sleep 600 & wait'])
def test_one_that_stands_still_is_ended(script: str, tmp_path: Path) -> None:
    """What its ssh does, keepalives, is no progress."""
    (ssh := tmp_path / "ssh").symlink_to(Path(sys.executable).resolve())
    command = ["sh", "-c", script, str(ssh), WORK * 20]
    with pytest.raises(DeadlineError, match="no progress for 2 s"):
        list(stream(command, stall_s=STALL_S))


@pytest.mark.parametrize("size_mib", [8, 32])
def test_a_helper_that_answers_without_an_end_is_not_listened_to(size_mib: int) -> None:
    says = f"head -c {size_mib}M /dev/zero | tr '\\0' x; echo"
    helper = Helper(["sh", "-c", f"read line; {says}; read line"])
    try:
        if size_mib == 8:
            answer = helper.ask("", deadline=Deadline(COMMAND_DEADLINE_S))
            assert len(answer) == size_mib << 20
        else:
            with pytest.raises(BackendError, match="without an end"):
                helper.ask("", deadline=Deadline(COMMAND_DEADLINE_S))
    finally:
        helper.end()


def test_one_that_a_lease_keeps_is_ended(tmp_path: Path) -> None:
    """The kernel would take the lease after 45 seconds, and a container has many."""
    (file := tmp_path / "file").touch()
    with leased(file, kept=True), pytest.raises(LeasedError, match="holds a lease on"):
        list(stream(["sh", "-c", f"cat {file}; exit"], stall_s=COMMAND_DEADLINE_S))


def test_a_helper_is_killed_with_its_children() -> None:
    helper = Helper(["sh", "-c", "read line; sleep 600 & echo $!; wait"])
    child = int(helper.ask("", deadline=Deadline(COMMAND_DEADLINE_S)))
    helper.kill()
    wait_until(lambda: gone([child]), timeout_s=20, what="it has ended")
    helper.end()


def test_what_is_not_wanted_of_an_output_is_not_kept() -> None:
    tracemalloc.start()
    try:
        done = run(
            ["head", "-c", "100000000", "/dev/zero"],
            deadline_s=60,
            output_size_max=1000,
        )
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert done.output == "\0" * 1000
    assert peak_bytes < 10_000_000


def test_one_that_prints_for_ever_is_ended() -> None:
    with pytest.raises(DeadlineError, match="'yes' was still running"):
        run(["yes"], deadline_s=0.5)


def test_the_last_line_of_an_error_is_told() -> None:
    script = "yes first | head -c 200000 >&2; echo >&2; echo last >&2; exit 3"
    with pytest.raises(BackendError, match="'sh' exited 3: last"):
        run(["sh", "-c", script], deadline_s=60)
