"""For the crash points: a disk that costs no time."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.namespaces import enter_private_mounts


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """
    Yield a directory in memory, with mounts of its own.

    A killed process leaves the same on every filesystem; on a real disk, nine tenths of
    the time would go into flushes, which matter to a power loss alone.
    """
    enter_private_mounts()
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "mode=0755", "crash-points", mount_point],
        check=True,
        timeout=10,
    )
    yield mount_point
    # Volumes that a failed test has left mounted below go along.
    subprocess.run(["umount", "-l", mount_point], check=True, timeout=10)
