"""
A member takes a commit for which old and new content have no room within the limit.

The owner had room, so the commit fits. Where the kernel has no quotas of XFS, files are
renamed into the project all the same; the lab's kernel has them.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from backends.base import Volume
from backends.rsync.backend import RsyncBackend
from backends.rsync.journal.journal import Journal
from tests.contract.conftest import rsync_bench
from tests.support.journal_trees import VOLUME, replicate, shape
from tests.support.namespaces import kernel_has_xfs_quota

LIMIT_MIB, FILE_MIB = 64, 24
MIB = 2**20


def content(size_mib: int) -> bytes:
    return os.urandom(MIB) * size_mib


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_changed_file_needs_no_room_beside_the_old_one(
    kind: str, tmp_path: Path
) -> None:
    home = tmp_path / "owner"
    (home / "live").mkdir(parents=True)
    owner = Journal(home, VOLUME)
    for name in ("one", "two"):
        (owner.live / name).write_bytes(content(FILE_MIB))
    with rsync_bench(kind, tmp_path) as bench:
        backend = bench.backend
        assert isinstance(backend, RsyncBackend)
        options = {"mode": "0755", "uid": "0", "gid": "0"}
        limited = kind == "btrfs" or kernel_has_xfs_quota()
        if limited:
            options["size"] = str(LIMIT_MIB * MIB)
        volume = Volume(VOLUME, "db", options, "")
        backend.create(volume, deadline_s=30)
        live = backend.pool.home(volume) / "live"
        if not limited:
            subprocess.run(["chattr", "-p", "70000", "+P", live], check=True)
        member = Journal(live.parent, VOLUME)
        replicate(owner, member)
        (owner.live / "two").write_bytes(content(FILE_MIB + 4))
        replicate(owner, member)
        assert shape(live) == shape(owner.live)
        member.close()
        if limited:
            with (
                pytest.raises(OSError, match=r"No space|quota"),
                (live / "three").open("wb") as file,
            ):
                for _ in range(LIMIT_MIB):
                    file.write(content(1))
                    file.flush()
                    os.fsync(file.fileno())
