"""
A checkout that was just cloned, wherever it lies: what `make run` sets up, and how.

Nothing but the locked packages can be had, as in `packaging/install`'s tests: a build
would fetch its tools, and fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checkouts import copy_checkout
from tests.support.host import REPOSITORY, SYSTEM_PATH
from tests.support.wheels import offline

SET_UP_DEADLINE_S = 300
WRONG_PLACES = {
    "/tmp/a:b": "its path may have only letters",
    "/tmp/it's": "its path may have only letters",
    "/run/remora": "nothing below /run",
    "/var/lib/remora/source": "nothing below /var/lib",
    "/dev/shm/remora": "nothing below /dev",
}


def set_up(checkout: Path, purpose: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(checkout / "tools/setup"), purpose],
        env={"PATH": SYSTEM_PATH, "HOME": str(checkout), **offline()},
        capture_output=True,
        text=True,
        timeout=SET_UP_DEADLINE_S,
        check=False,
    )


@pytest.fixture
def checkout() -> Iterator[Path]:
    """Yield a copy of this tree below /tmp, with spaces in its path."""
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="a new "))
    copy_checkout(directory)
    yield directory
    shutil.rmtree(directory)


def test_it_is_set_up_from_the_locked_packages_alone(checkout: Path) -> None:
    done = set_up(checkout, "run")
    assert done.returncode == 0, done.stdout + done.stderr
    # From anywhere, and whatever Python's variables say.
    told = subprocess.run(
        [str(checkout / ".venv/bin/remora"), "--version"],
        cwd="/",
        env={"PATH": SYSTEM_PATH, "PYTHONPATH": "/nowhere", "HOME": os.devnull},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert told.stdout.startswith("remora, version ")
    # Its code is the checkout's, not a copy of it.
    version = checkout / "plugin/__init__.py"
    version.write_text(
        version.read_text().replace("__version__ = ", "__version__ = 'x' + ")
    )
    told = subprocess.run(
        [str(checkout / ".venv/bin/remora"), "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert told.stdout.startswith("remora, version x")


@pytest.mark.parametrize("place", WRONG_PLACES)
def test_a_wrong_place_is_told_in_one_line(place: str) -> None:
    done = subprocess.run(
        [str(REPOSITORY / "tools/check-place"), place],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"a checkout cannot be at {place}: {WRONG_PLACES[place]}")
    assert "move it" in line


def test_a_place_that_runs_no_programs_is_told(tmp_path: Path) -> None:
    """Before anything of a set-up for tests is begun."""
    script = (
        'mount -t tmpfs -o noexec none "$1" && mkdir "$1/checkout" && '
        'exec "$2" "$1/checkout"'
    )
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c", script, "sh"),
            *(str(tmp_path), str(REPOSITORY / "tools/check-place")),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "its filesystem is mounted noexec" in done.stderr
