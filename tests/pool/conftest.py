"""A machine's disk on ext4, and an empty device."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin.daemon.node import note_pool
from tests.pool.machine import Machine, looped
from tests.support.namespaces import enter_private_mounts, loop_filesystem


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Return a machine whose daemon has never run."""
    enter_private_mounts()
    # A path of a socket is short.
    sockets = Path(tempfile.mkdtemp(prefix="rp", dir="/tmp"))
    options = ["-E", "lazy_itable_init=1,nodiscard"]
    with loop_filesystem(tmp_path, "ext4", size="3G", made_with=options) as disk:
        # As the root of a disk has it, which else could be in the way.
        (disk / "lost+found").rmdir()
        found = Machine(disk, sockets)
        found.configure()
        yield found
        while found.filesystem():
            found.unmount()
    shutil.rmtree(sockets)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """Return an empty block device."""
    image = tmp_path / "device.image"
    with image.open("wb") as file:
        file.truncate(512 * 2**20)
    with looped(image) as found:
        yield found


@pytest.fixture
def used(machine: Machine) -> str:
    """Return the identity of a pool without volumes, that a daemon has made."""
    machine.pool.mkdir(parents=True)
    machine.state_dir.chmod(0o700)
    machine.pool.chmod(0o700)
    for name in ("volumes", "copies", "trash"):
        (machine.pool / name).mkdir()
    (machine.pool / "pool.json").write_text('{"id":"7d0f"}')
    (machine.state_dir / "lock").touch(mode=0o600)
    note_pool(machine.state_dir, "7d0f")
    return '{"id":"7d0f"}'
