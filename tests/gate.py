"""
Run pytest with the arguments given; who failed beside the others is tried again alone.

Thousands of tests with real kernels, daemons and leases share few processors, and one
may wait longer than anybody foresaw. So a run in which at most FAILED_MAX failed runs
each of these again, alone, ALONE times, with the seed that it had drawn, and passes if
they pass each time. What failed stays printed, and is to be mended even so.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support import chance

FAILED_MAX = 3
ALONE = 3
_LIST = "REMORA_FAILED_TESTS"
# pytest-xdist writes the group of a test behind its name.
_GROUP = re.compile(r"@[^\]@]*$")
_SEED = re.compile(rf"^{chance.VARIABLE}=(\d+)$", re.MULTILINE)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Write which tests failed, and what they had drawn, where _LIST says."""
    failed: dict[str, str] = {}
    for kind in ("failed", "error"):
        for report in terminalreporter.stats.get(kind, []):
            drawn = _SEED.search(getattr(report, "capstdout", ""))
            name = _GROUP.sub("", report.nodeid)
            failed.setdefault(name, drawn.group(1) if drawn else "")
    Path(os.environ[_LIST]).write_text(json.dumps(failed))


def main(arguments: list[str]) -> int:
    """Return the exit code of the run, 0 also if what failed passes alone."""
    with tempfile.TemporaryDirectory() as directory:
        written = Path(directory, "failed")
        code = _run([*arguments, "-p", "tests.gate"], {_LIST: str(written)})
        if code != pytest.ExitCode.TESTS_FAILED:
            return code
        failed: dict[str, str] = json.loads(written.read_text())
    if not 0 < len(failed) <= FAILED_MAX:  # none: a skip that may not be
        return code
    for name, drawn in failed.items():
        print(f"\n{name} failed beside the others, and runs alone now")
        seed = {chance.VARIABLE: drawn} if drawn else {}
        if any(_run(["-n", "0", name], seed) for _ in range(ALONE)):
            return code
    print(f"\npassed {ALONE} times alone, and yet to be mended:", *failed, sep="\n  ")
    return 0


def _run(arguments: list[str], environment: dict[str, str]) -> int:
    command = [sys.executable, "-m", "pytest", *arguments]
    sys.stdout.flush()
    given = {**os.environ, **environment}
    return subprocess.run(command, check=False, env=given).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
