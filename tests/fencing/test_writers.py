"""What counts as a volume's mount, and as a usable control group."""

from __future__ import annotations

import os

import pytest

from backends.system.mountinfo import parse_mountinfo
from plugin.fencing import cgroups, writers
from plugin.fencing.cgroups import Hierarchy
from plugin.fencing.held import HeldVolume

DISK = HeldVolume("i", "8:1", "/pool/i/live", "/mounts/i", 0)
SHARE = HeldVolume("i", "0:50", "/", "/mounts/i", 0, source="server:/export/i")


@pytest.mark.parametrize(
    ("volume", "line", "shows"),
    [
        (DISK, "8:1 /pool/i/live /v rw - ext4 /dev/sda1 rw", True),
        (DISK, "8:1 /pool/i/live/sub /v rw - ext4 /dev/sda1 rw", True),
        (DISK, "8:1 /pool/i/live2 /v rw - ext4 /dev/sda1 rw", False),
        (DISK, "8:1 / / rw - ext4 /dev/sda1 rw", False),
        (DISK, "8:2 /pool/i/live /v rw - ext4 /dev/sdb1 rw", False),
        # All volumes of a server are one device there, and every root is shown as /.
        (SHARE, "0:50 / /v rw - nfs4 server:/export/i rw", True),
        (SHARE, "0:50 / /v rw - nfs4 server:/export/i/sub rw", True),
        (SHARE, "0:51 / /v rw - nfs4 server:/export/i rw", True),
        (SHARE, "0:50 / /v rw - nfs4 server:/export/i2 rw", False),
        (SHARE, "0:50 / /v rw - nfs4 server:/export rw", False),
    ],
)
def test_a_mount_of_the_volume(volume: HeldVolume, line: str, shows: bool) -> None:
    text = f"100 50 {line}"
    [entry] = parse_mountinfo(text)
    assert writers._shows(entry, volume) == shows
    if shows:
        assert writers._clue(volume) in text.encode()


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_the_group_of_a_process(
    kind: cgroups.Kind, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the part of the hierarchy that is mounted; what is not in it has none."""
    inside = tmp_path / "docker" / "x"
    inside.mkdir(parents=True)
    name = {"v1": "freezer.state", "v2": "cgroup.freeze"}[kind]
    (inside / name).touch()
    line = {"v1": "7:cpu,freezer:{}", "v2": "0::{}"}[kind]

    def group(path: str, root: str) -> str | None:
        text = "1:name=systemd:/elsewhere\n" + line.format(path) + "\n"
        monkeypatch.setattr(cgroups.processes, "read", lambda _: text.encode())
        return cgroups.group_of(os.getpid(), Hierarchy(kind, root, str(tmp_path)))

    assert group("/docker/x", "/") == str(inside)
    assert group("/outer/docker/x", "/outer") == str(inside)
    assert group("/outer/docker/x", "/out") is None
    assert group("/docker/gone", "/") is None
    assert group("/../docker/x", "/") is None
    # The topmost one cannot be frozen.
    assert group("/", "/") is None
