"""This tree as a user has it: what git lists, without the tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support.host import REPOSITORY

_DEADLINE_S = 30


def copy_checkout(directory: Path) -> None:
    """Copy this tree's files into *directory*, which is made if it is missing."""
    listed = subprocess.run(
        ["git", "-C", str(REPOSITORY), "ls-files", "-z"],
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if not name.startswith("tests/") and (REPOSITORY / name).exists():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, directory / name)
