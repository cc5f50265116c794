"""Who gets a second chance on the gate, and who does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.gate import FAILED_MAX

REPOSITORY = Path(__file__).resolve().parents[2]
# Fails FAILURES times; how often it ran stands in the file beside it.
COUNTED = """
from pathlib import Path
import pytest
from tests.support.chance import seed
RUNS = Path(__file__).with_suffix(".runs")
@pytest.mark.parametrize("name", ["x@y z"])
def test_it(name):
    with RUNS.open("a") as runs:
        print(seed(), file=runs)
    assert len(RUNS.read_text().split()) > {failures}
"""


def gate(directory: Path, *failures: int) -> tuple[int, list[list[str]]]:
    """Return the exit code, and what each test drew each time that it ran."""
    files = [directory / f"test_{number}.py" for number in range(len(failures))]
    for file, times in zip(files, failures, strict=True):
        file.write_text(COUNTED.format(failures=times))
    command = [sys.executable, "-m", "tests.gate", "-q", "-n", "2"]
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
        timeout=120,
        capture_output=True,
    )
    return done.returncode, [
        each.with_suffix(".runs").read_text().split() for each in files
    ]


def test_what_passes_alone_each_time_is_excused(tmp_path: Path) -> None:
    code, runs = gate(tmp_path, 0, 1)
    assert code == 0
    assert [len(each) for each in runs] == [1, 4]
    assert len(set(runs[1])) == 1  # what it had drawn


def test_what_fails_alone_is_not(tmp_path: Path) -> None:
    code, runs = gate(tmp_path, 0, 2)
    assert code == 1
    assert [len(each) for each in runs] == [1, 2]


def test_many_are_not(tmp_path: Path) -> None:
    code, runs = gate(tmp_path, *[1] * (FAILED_MAX + 1))
    assert code == 1
    assert [len(each) for each in runs] == [1] * (FAILED_MAX + 1)
