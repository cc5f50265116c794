"""What docs/security.md says does not hold: a file's owner chooses its XFS project."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

# In mounts of its own, which end with it.
SCRIPT = """
cd "$1"
truncate -s 320M image
mkfs.xfs -q image
mkdir disk
mount -o loop image disk
mkdir disk/live
chown 1000:1000 disk/live
chattr -p 70000 +P disk/live
cd disk/live
as() { setpriv --reuid=1000 --regid=1000 --clear-groups --bounding-set=-all "$@"; }
as sh -c 'echo x > file'
lsattr -p file
as chattr -p 0 file
lsattr -p file
as chattr -p 70001 file
lsattr -p file
setpriv --reuid=1000 --regid=1000 --clear-groups \\
    unshare --user --map-root-user chattr -p 0 file 2>/dev/null || lsattr -p file
"""


def test_a_file_is_given_to_another_project_without_a_capability(
    tmp_path: Path,
) -> None:
    for program in ("mkfs.xfs", "chattr", "setpriv", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for directory in tmp_path.parents:
        if directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o111)
    tmp_path.chmod(0o755)
    alone = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-euc"]
    done = subprocess.run(
        [*alone, SCRIPT, "sh", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    projects = [line.split()[0] for line in done.stdout.splitlines()]
    # It counted for the volume, for nobody, and for another volume; but where root of
    # a container is somebody else outside, the kernel refuses.
    assert projects == ["70000", "0", "70001", "70001"]
