"""Volumes, daemons and control groups that are gone after the test."""

from __future__ import annotations

import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fencing import world
from tests.fencing.world import Daemon, Volume
from tests.support.namespaces import enter_private_mounts
from tests.support.processes import signal_all

FREEZERS = {"v1": "/sys/fs/cgroup/freezer", "v2": "/sys/fs/cgroup/unified"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a directory in a mount namespace that ends with the test process."""
    if shutil.which("busybox") is None:
        pytest.skip("needs busybox")
    enter_private_mounts()
    return tmp_path


@pytest.fixture
def volume(directory: Path) -> Volume:
    return Volume.make(directory)


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Daemon]]:
    """Return a function that starts a daemon; all have one run directory."""
    run_dir = directory / "run"
    daemons = []

    def start(**arguments: Any) -> Daemon:
        daemons.append(world.start_daemon(run_dir, **arguments))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.end()
    # Nobody is left to restart it.
    world.kill_guard(run_dir)


@pytest.fixture
def daemon(start: Callable[..., Daemon]) -> Daemon:
    return start()


@pytest.fixture(params=FREEZERS)
def group(request: pytest.FixtureRequest, directory: Path) -> Iterator[Path]:
    """Return a new control group of each freezer."""
    parent = Path(FREEZERS[request.param])
    if not (parent / "cgroup.procs").exists():
        pytest.skip(f"needs control groups {request.param}, mounted at {parent}")
    group = parent / f"remora-tests-fencing-{uuid.uuid4()}"
    group.mkdir()
    yield group
    end = time.monotonic() + world.WAIT_S
    while group.exists():
        # Whatever failed, what is in it must die, and the dead leave with a delay.
        for name, text in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if (group / name).exists():
                (group / name).write_text(text)
        pids = map(int, (group / "cgroup.procs").read_text().split())
        signal_all(pids, signal.SIGKILL)
        try:
            group.rmdir()
        except OSError:
            assert time.monotonic() < end, "processes do not leave their group"
            time.sleep(0.05)
