"""Programs that print much, or nothing: what counts as progress, and what is kept."""

from __future__ import annotations

import sys
import tracemalloc

import pytest

from backends.errors import BackendError, DeadlineError
from backends.system.run import run, stream

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


@pytest.mark.parametrize(
    "command",
    [
        ["sleep", "600"],
        # What another program does, as ssh with its keepalives, is no progress.
        ["sh", "-c", f"{sys.executable} -c '{WORK * 20}' & sleep 600 & wait"],
    ],
    ids=["sleeps", "has-a-child"],
)
def test_one_that_stands_still_is_ended(command: list[str]) -> None:
    with pytest.raises(DeadlineError, match="no progress for 2 s"):
        list(stream(command, stall_s=STALL_S))


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
