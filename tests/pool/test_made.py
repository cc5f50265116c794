"""`remora pool make`: what it makes, and that it goes on where it was killed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.pool.machine import SIZE, Machine, looped, ran
from tests.support.namespaces import kernel_has_xfs_quota

# Kinds by turns: each step is killed on a file and on a device.
MOMENTS = ("reserve", "format", "rename", "fill", "clear", "units", "mount")


def clones(directory: Path) -> bool:
    """Return whether files below *directory* share blocks with their copies."""
    (directory / "one").write_bytes(b"x" * 2**20)
    command = ["cp", "--reflink=always", directory / "one", directory / "two"]
    return not subprocess.run(command, check=False, timeout=10).returncode


def is_direct(device: str) -> bool:
    """Return whether the loop device keeps nothing in memory."""
    return (Path("/sys/class/block") / Path(device).name / "loop/dio").read_text()[
        0
    ] == "1"


def in_file(machine: Machine, kind: str) -> list[object]:
    return ["--file", machine.image, "--size", SIZE, "--filesystem", kind]


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_file_becomes_the_pool(machine: Machine, kind: str) -> None:
    told = machine.made(*in_file(machine, kind))
    assert machine.filesystem() == kind
    assert machine.pool.stat().st_mode & 0o7777 == 0o700
    # Nobody else gets the blocks that it has not used yet.
    image = machine.image.stat()
    assert image.st_size == 512 * 2**20 <= image.st_blocks * 512
    assert "discard" not in machine.filesystem("OPTIONS")
    assert is_direct(machine.filesystem("SOURCE"))
    assert image.st_mode & 0o777 == 0o600
    assert clones(machine.pool)
    assert f"add to /etc/fstab: {machine.image} {machine.pool} {kind} loop" in told
    assert "systemctl" not in told
    counted = kind == "xfs" and kernel_has_xfs_quota()
    assert ("prjquota" in machine.filesystem("OPTIONS")) == counted
    assert ("loop,prjquota 0 0" in told) == counted
    assert ("no quotas on XFS" in told) == (kind == "xfs" and not counted)
    # Again: nothing to do, whatever lies in it. And after it was unmounted.
    before = machine.content()
    assert "done" not in machine.made(*in_file(machine, kind))
    assert machine.content() == before
    machine.unmount()
    assert "format: nothing to do" in machine.made(*in_file(machine, kind))
    assert machine.content() == before


def test_a_device_becomes_the_pool_and_only_when_somebody_said_so(
    machine: Machine, device: Path
) -> None:
    assert "nobody can be asked" in machine.make("--device", device).stderr
    assert machine.filesystem() == ""
    link = machine.disk / "by-name"
    link.symlink_to(device)
    told = machine.made("--device", link, "--yes")
    assert f"format: mkfs.xfs on {device}; what is on it is lost" in told
    assert machine.filesystem() == "xfs"
    assert "UUID=" in told
    machine.unmount()
    # What is whole needs no yes: nothing of it is lost.
    assert "format: nothing to do" in machine.made("--device", device)


def test_a_plan_is_only_shown(machine: Machine, device: Path) -> None:
    before = machine.content()
    for wanted in (in_file(machine, "xfs"), ["--device", device]):
        told = machine.made(*wanted, "--dry-run")
        assert f"mount: at {machine.pool}" in told
        shown = machine.make(*wanted, "--dry-run", "--json")
        assert json.loads(shown.stdout)["steps"]["format"].startswith("mkfs.xfs")
    assert machine.content() == before


@pytest.mark.parametrize(
    ("moment", "target"),
    [
        *((each, "file") for each in MOMENTS),
        *((each, "device") for each in ("format", "fill")),
    ],
)
def test_the_same_command_finishes_what_was_killed(
    machine: Machine, device: Path, used: str, moment: str, target: str
) -> None:
    if target == "file":
        wanted = in_file(machine, "btrfs" if moment in MOMENTS[::2] else "xfs")
    else:
        wanted = ["--device", device, "--yes"]
    machine.killed(moment, *wanted)
    # At each moment the node's pool is where it was, or it is the new one.
    if machine.filesystem() or MOMENTS.index(moment) < MOMENTS.index("clear"):
        assert (machine.pool / "pool.json").read_text() == used
    machine.made(*wanted)
    assert (machine.pool / "pool.json").read_text() == used
    names = {each.name for each in machine.pool.iterdir()}
    assert names == {"pool.json", "volumes"}
    machine.unmount()
    # Nothing lies hidden below, and nothing beside.
    assert list(machine.pool.iterdir()) == []
    assert {each.name for each in machine.disk.iterdir()} <= {
        *("state", "remora.toml", "pool.img")
    }


def test_a_daemon_serves_the_new_pool_as_its_own(
    machine: Machine,
) -> None:
    """A node that has run already, and has no volumes, keeps its identity."""
    with machine.serving():
        pass
    before = (machine.pool / "pool.json").read_text()
    machine.made(*in_file(machine, "xfs"))
    with machine.serving():
        assert (machine.pool / "pool.json").read_text() == before
        ran(machine.remora("create", "data"), check=True)
    [home] = (machine.pool / "volumes").iterdir()
    assert (home / "live").is_dir()


def test_a_daemon_that_first_starts_without_the_mount_makes_no_other_pool(
    machine: Machine, device: Path
) -> None:
    wanted = ("--device", device, "--yes")
    machine.killed("fill", *wanted)
    # What was noted has to be what the device says.
    machine.made(*wanted)
    machine.unmount()
    with machine.serving():
        done = ran(machine.remora("create", "data"))
        assert "its disk is not mounted" in done.stderr
    assert list(machine.pool.iterdir()) == []
    machine.made(*wanted)
    assert (machine.pool / "pool.json").exists()


def test_what_failed_gives_the_room_back(machine: Machine) -> None:
    # No room for the directory that it would be mounted on.
    free = os.statvfs(machine.disk)
    machine.state_dir.mkdir(mode=0o700)
    subprocess.run(["chattr", "+i", machine.state_dir], check=True, timeout=10)
    try:
        done = machine.make(*in_file(machine, "xfs"))
    finally:
        subprocess.run(["chattr", "-i", machine.state_dir], check=True, timeout=10)
    assert done.returncode != 0
    assert sorted(machine.disk.iterdir()) == [machine.config, machine.state_dir]
    assert os.statvfs(machine.disk).f_bfree >= free.f_bfree - 16


def test_an_unfinished_device_is_made_anew(machine: Machine, tmp_path: Path) -> None:
    """Whatever moment of mkfs a power failure has found; the mark is the last thing."""
    image = tmp_path / "half"
    with image.open("wb") as file:
        file.truncate(512 * 2**20)
    command = ["mkfs.btrfs", "-q", "-L", "remora-new", image]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with image.open("r+b") as file:
        file.seek(0x10040)
        assert file.read(8) == b"_BHRfS_M"
        file.seek(0x10040)
        file.write(b"!BHRfS_M")
    with looped(image) as found:
        machine.made("--device", found, "--yes")
        assert machine.filesystem() == "xfs"
        machine.unmount()
