"""What containers, and users of the machine, can do with what lies in a volume."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.system import mounts


@pytest.fixture(params=[False, True], ids=["nosuid", "suid"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Yield where a volume with a device and a set-id program is mounted."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    shutil.copy("/usr/bin/id", source / "id")
    (source / "id").chmod(0o4755)
    os.mknod(source / "null", 0o20666, os.makedev(1, 3))
    mounts.bind(source, target, suid=request.param)
    yield target
    mounts.unmount(target)


def test_devices_cannot_be_opened(volume: Path) -> None:
    with pytest.raises(PermissionError):
        (volume / "null").open("rb")


def test_set_id_bits_count_on_request_only(
    volume: Path, request: pytest.FixtureRequest
) -> None:
    for directory in volume.parents:
        if directory != Path("/"):
            directory.chmod(directory.stat().st_mode | 0o111)
    command = ["setpriv", "--reuid=65534", "--clear-groups", str(volume / "id"), "-u"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    asked_for = request.node.callspec.params["volume"]
    assert done.stdout == ("0\n" if asked_for else "65534\n")


def test_a_bind_has_its_restrictions_from_its_first_moment(tmp_path: Path) -> None:
    """A namespace that hears of the mount gets a copy, which nobody restricts later."""
    for name in ("shared/target", "source"):
        (tmp_path / name).mkdir(parents=True)
    shared = str(tmp_path / "shared")
    subprocess.run(["mount", "--bind", shared, shared], check=True)
    try:
        subprocess.run(["mount", "--make-shared", shared], check=True)
        command = ["unshare", "--mount", "--propagation", "slave", "sh", "-c"]
        with subprocess.Popen(
            [*command, "echo; read line; exec cat /proc/self/mountinfo"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "\n"
            mounts.bind(tmp_path / "source", tmp_path / "shared/target", suid=False)
            table, _ = other.communicate("\n", timeout=30)
        (line,) = [each for each in table.splitlines() if f"{shared}/target " in each]
        assert {"nodev", "nosuid"} <= set(line.split(" ")[5].split(","))
    finally:
        subprocess.run(["umount", "--recursive", shared], check=True)
