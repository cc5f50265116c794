"""What `remora pool make` refuses: in one line, and with nothing changed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from backends.errors import InvalidRequestError
from backends.system import block_devices
from plugin.cli.main import remora
from plugin.pool import directory
from plugin.pool.target import KINDS, Target
from plugin.pool.units import Units
from tests.pool.machine import SIZE, Machine, digest, looped

# A table with one partition of Linux, from the second MiB on.
MBR = (
    bytes(446)
    + bytes([0, 0, 0, 0, 0x83, 0, 0, 0])
    + (2048).to_bytes(4, "little")
    + (204800).to_bytes(4, "little")
    + bytes(48)
    + b"\x55\xaa"
)


def mkfs(kind: str, target: Path, *options: str) -> None:
    command = [f"mkfs.{kind}", "-q", *options, target]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


def test_who_is_not_root(machine: Machine) -> None:
    wanted = machine.command("--file", machine.image, "--size", SIZE)
    alone = ["unshare", "--user", "--", *wanted]
    done = subprocess.run(
        alone, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 10
    assert "only root makes a pool, or gives it up" in done.stderr
    assert not machine.state_dir.exists()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_device_that_is_not_empty(machine: Machine, device: Path, kind: str) -> None:
    mkfs(kind, device, "-L", "mine")
    before = digest(device)
    told = machine.refused("--device", device, "--yes")
    assert f"is not empty: {kind} 'mine'" in told
    assert digest(device) == before


def test_a_device_with_bytes_of_an_unknown_kind(machine: Machine, device: Path) -> None:
    """As an ext4 without its first block; a database; what has its header elsewhere."""
    mkfs("ext4", device)
    with device.open("r+b") as file:
        file.write(bytes(4096))
    told = machine.refused("--device", device, "--yes")
    assert "is not empty: it begins with bytes of an unknown kind" in told
    [command] = re.findall(r"wipefs --all \S+ && dd [^)]*", told)
    subprocess.run(command, shell=True, check=True, capture_output=True, timeout=10)
    machine.made("--device", device, "--yes", "--dry-run")


def test_a_device_that_is_mounted(machine: Machine, device: Path) -> None:
    mkfs("ext4", device)
    place = machine.disk / "place"
    place.mkdir()
    subprocess.run(["mount", device, place], check=True, timeout=10)
    try:
        told = machine.refused("--device", device, "--yes")
    finally:
        subprocess.run(["umount", place], check=True, timeout=10)
    assert f"{device} is mounted at {place}" in told


def test_a_device_that_somebody_has_to_himself(machine: Machine, device: Path) -> None:
    """As swap, RAID, a mount in another namespace have it."""
    holder = os.open(device, os.O_RDONLY | os.O_EXCL)
    try:
        assert "busy" in machine.refused("--device", device, "--yes")
    finally:
        os.close(holder)


def test_a_device_with_partitions(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "parts"
    with image.open("wb") as file:
        file.write(MBR)
        file.truncate(512 * 2**20)
    with looped(image) as device:
        # Not every kernel of a test reads such a table.
        numbers = ("1", "2048", "204800")
        subprocess.run(["addpart", device, *numbers], check=True, timeout=10)
        told = machine.refused("--device", device, "--yes")
        subprocess.run(["delpart", device, "1"], check=True, timeout=10)
        assert f"{device} has partitions: {device.name}p1" in told
    with looped(image) as device:
        assert "is not empty: dos" in machine.refused("--device", device, "--yes")


def test_a_device_that_cannot_be_written(machine: Machine, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(2**20))
    with looped(image, "--read-only") as device:
        assert "is read-only" in machine.refused("--device", device, "--yes")
    with looped(image) as device:
        assert "at least 512 MiB" in machine.refused("--device", device, "--yes")
    assert "is no block device" in machine.refused("--device", image, "--yes")
    assert "No such file" in machine.refused("--device", tmp_path / "no", "--yes")


def test_a_device_that_is_part_of_another(tmp_path: Path) -> None:
    """As sysfs tells of it; not every kernel of a test has LVM or RAID."""
    (tmp_path / "holders/dm-0").mkdir(parents=True)
    assert block_devices._share_fault(tmp_path) == "is part of dm-0"


def test_a_unit_that_somebody_has_written(tmp_path: Path) -> None:
    target = Target(tmp_path / "image", KINDS["xfs"], in_file=True, size_bytes=2**30)
    units = Units(target, Path("/srv/remora"), directory=tmp_path)
    units.check()
    # The boot, and ssh, do not wait for a disk that is missing; the daemon does.
    mount, service = list(units.to_write().values())[:2]
    assert "\nOptions=nofail,loop" in mount
    assert "\nRequiresMountsFor=/srv/remora\n" in service
    (tmp_path / "srv-remora.mount").write_text("[Unit]\n")
    with pytest.raises(InvalidRequestError, match=r"srv-remora\.mount was not written"):
        units.check()


def test_a_file_that_exists(machine: Machine) -> None:
    wanted = ("--file", machine.image, "--size", SIZE)
    machine.image.write_text("a diary")
    assert "exists and is no pool on xfs" in machine.refused(*wanted)
    machine.image.unlink()
    machine.image.symlink_to("elsewhere")
    assert "exists and is no pool" in machine.refused(*wanted)
    machine.image.unlink()
    (machine.disk / ".pool.img.new").symlink_to("elsewhere")
    assert "is in the way" in machine.refused(*wanted)


def test_a_pool_of_another_size_or_kind(machine: Machine) -> None:
    machine.made("--file", machine.image, "--size", SIZE)
    told = machine.refused("--file", machine.disk / "other", "--size", SIZE)
    assert f"xfs of {machine.image} is mounted at {machine.pool}" in told
    elsewhere = ("--at", machine.disk / "elsewhere")
    told = machine.refused("--file", machine.image, "--size", SIZE, *elsewhere)
    assert f"{machine.image} is in use as loop" in told
    machine.unmount()
    told = machine.refused("--file", machine.image, "--size", "600M")
    assert "is a pool of 536870912 bytes, asked for 629145600" in told
    wanted = ("--file", machine.image, "--size", SIZE, "--filesystem", "btrfs")
    assert "exists and is no pool on btrfs" in machine.refused(*wanted)


def test_too_little_room(machine: Machine) -> None:
    wanted = ("--file", machine.image, "--size")
    assert "1024 MiB have to stay free" in machine.refused(*wanted, "2G")
    assert "at least 512 MiB" in machine.refused(*wanted, "100M")


def test_a_file_where_no_room_can_be_kept(machine: Machine) -> None:
    place = machine.disk / "memory"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "mode=755", "none", place]
    subprocess.run(command, check=True, timeout=10)
    try:
        told = machine.refused("--file", place / "pool.img", "--size", SIZE)
    finally:
        subprocess.run(["umount", place], check=True, timeout=10)
    assert "lies on tmpfs, where no room can be kept" in told


def test_a_place_that_others_can_change(machine: Machine) -> None:
    place = machine.disk / "open"
    place.mkdir()
    place.chmod(0o777)
    told = machine.refused("--file", place / "pool.img", "--size", SIZE)
    assert "can be written to by others" in told
    wanted = ("--file", machine.image, "--size", SIZE, "--at", place / "pool")
    assert "can be written to by others" in machine.refused(*wanted)


def test_a_directory_that_is_not_empty(machine: Machine) -> None:
    wanted = ("--file", machine.image, "--size", SIZE)
    machine.pool.mkdir(parents=True)
    (machine.pool / "letters").touch()
    assert f"{machine.pool} is not empty: letters" in machine.refused(*wanted)
    (machine.pool / "letters").unlink()
    (machine.pool / "trash/3f").mkdir(parents=True)
    assert f"{machine.pool} is not empty: trash" in machine.refused(*wanted)
    (machine.pool / "volumes/3f").mkdir(parents=True)
    told = machine.refused(*wanted)
    assert "has 1 volumes, such as 3f" in told
    assert "docs/guides/install.md tells how to move them" in told


def test_a_pool_that_is_missing_is_not_replaced_by_an_empty_one(
    machine: Machine, used: str
) -> None:
    """Its disk is not mounted: a new pool would hide that."""
    wanted = ("--file", machine.image, "--size", SIZE)
    (machine.pool / "pool.json").unlink()
    told = machine.refused(*wanted)
    assert f"pool 7d0f is not at {machine.pool}: its disk is not mounted" in told
    # Nor does the pool of another node.
    (machine.pool / "pool.json").write_text(used)
    machine.made(*wanted)
    (machine.pool / "pool.json").write_text('{"id":"other"}')
    machine.unmount()
    done = machine.make(*wanted)
    assert "is not this node's pool 7d0f" in done.stderr
    assert machine.filesystem() == ""


def test_a_place_of_fstab(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "fstab"
    table.write_text(f"# comment\n\nproc\nUUID=1 {machine.pool} ext4 defaults 0 2\n")
    monkeypatch.setattr(directory, "_FSTAB", table)
    told = machine.refused("--file", machine.image, "--size", SIZE)
    assert f"{table} has a line for {machine.pool} already" in told


def test_a_program_that_is_missing(machine: Machine, tmp_path: Path) -> None:
    """The test's own mounts hide it; the machine keeps it."""
    program = shutil.which("mkfs.btrfs")
    assert program
    nothing = tmp_path / "nothing"
    nothing.touch(mode=0o600)
    subprocess.run(["mount", "--bind", nothing, program], check=True, timeout=10)
    try:
        wanted = ("--file", machine.image, "--size", SIZE, "--filesystem", "btrfs")
        told = machine.refused(*wanted)
    finally:
        subprocess.run(["umount", program], check=True, timeout=10)
    assert "mkfs.btrfs is not installed (hint: apt-get install btrfs-progs)" in told


def test_a_directory_that_is_none(machine: Machine) -> None:
    wanted = ("--file", machine.image, "--size", SIZE, "--at")
    (machine.disk / "file").touch()
    assert "is no directory" in machine.refused(*wanted, machine.disk / "file")
    told = machine.refused(*wanted, machine.disk / "two words")
    assert "cannot stand in a unit" in told
    assert "lies in the pool itself" in machine.refused(*wanted, machine.disk)


def test_a_daemon_that_runs(machine: Machine) -> None:
    with machine.serving():
        done = machine.make("--file", machine.image, "--size", SIZE)
    assert f"another remora daemon uses {machine.state_dir}" in done.stderr
    assert not machine.image.exists()


def test_options_that_do_not_go_together(machine: Machine, tmp_path: Path) -> None:
    for wanted in (
        [],
        ["--file", machine.image],
        ["--device", tmp_path, "--size", SIZE],
        ["--file", machine.image, "--device", tmp_path, "--size", SIZE],
        ["--file", machine.image, "--size", "much"],
    ):
        done = CliRunner().invoke(remora, ["pool", "make", *map(str, wanted)])
        assert done.exit_code == 2
