"""A guard is replaced when any code of ours has changed, for the guard may run it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.host import REPOSITORY

PRINT = "from plugin.fencing.held import code_version; print(code_version())"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where both packages are installed once more."""
    place = tmp_path_factory.mktemp("installed")
    for name in ("backends", "plugin"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, place / name, ignore=ignored)
    return place


def version(installed: Path) -> str:
    return subprocess.run(
        [sys.executable, "-B", "-c", PRINT],
        cwd=installed,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout


@pytest.mark.parametrize(
    "module",
    [
        "backends/system/clock.py",
        "backends/system/mountinfo.py",
        "backends/system/decoding.py",
        "backends/errors.py",
        "plugin/fencing/cgroups.py",
        "plugin/fencing/new.py",
    ],
)
def test_it_changes_with_the_code(installed: Path, module: str) -> None:
    before = version(installed)
    assert version(installed) == before
    with (installed / module).open("a") as file:
        file.write("# changed\n")
    assert version(installed) != before
