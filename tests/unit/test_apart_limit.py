"""A volume whose bytes were set apart goes on with its limit, on a real btrfs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from backends.base import Volume
from backends.rsync.backend import RsyncBackend
from backends.rsync.journal.journal import Journal
from backends.system import quota
from tests.support.namespaces import enter_private_mounts, loop_filesystem

MIB = 2**20
VOLUME = Volume(
    id="6fa459ea-ee8a-4ca4-894e-db77e160355e",
    name="db",
    options={"mode": "0755", "uid": "0", "gid": "0", "size": str(20 * MIB)},
    created_at="2026-01-01T00:00:00Z",
)


def fill(directory: Path) -> int:
    """Return how many MiB the directory takes, of 40."""
    file = os.open(directory / "big", os.O_WRONLY | os.O_CREAT, 0o600)
    written = 0
    try:
        while written < 40:
            os.write(file, os.urandom(MIB))
            os.fsync(file)
            written += 1
    except OSError:
        return written
    finally:
        os.close(file)
    return written


def subvolumes(top: Path) -> int:
    done = subprocess.run(
        ["btrfs", "subvolume", "list", top], check=True, capture_output=True, timeout=30
    )
    return len(done.stdout.splitlines())


@pytest.mark.skipif(
    "btrfs" not in Path("/proc/filesystems").read_text(), reason="needs btrfs"
)
def test_the_new_directory_is_limited_as_the_first_was(tmp_path: Path) -> None:
    enter_private_mounts()
    with loop_filesystem(tmp_path, "btrfs") as top:
        subprocess.run(["btrfs", "quota", "enable", top], check=True, timeout=30)
        backend = RsyncBackend(top / "pool", pool_id=None)
        backend.pool.initialise()
        backend.create(VOLUME, deadline_s=30)
        home = backend.pool.home(VOLUME)
        assert 10 <= fill(home / "live") < 30
        journal = Journal(home, VOLUME.id)
        journal.keep_apart("3.7")
        journal.close()
        quota.make_data_directory(home / "live.new")  # left by a crash
        backend.make_live(VOLUME, deadline_s=30)
        assert 10 <= fill(home / "live") < 30
        assert subvolumes(top) == 2
        [tree] = backend.quarantine.of(VOLUME.id)
        backend.quarantine.discard(tree)
        assert backend.collect_garbage(deadline_s=60) == 1
        assert subvolumes(top) == 1
        backend.remove(VOLUME, deadline_s=30)
        backend.collect_garbage(deadline_s=60)
        assert list(backend.pool.trash.path.iterdir()) == []
