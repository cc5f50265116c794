"""
A fresh filesystem for everything that a run measures, in a file of the host's.

What is measured on a machine's own filesystem depends on what was there before: how
full and how old it is, whether it has a journal (images for virtual machines often
have none, and creating files where others were just removed is then slow). On a fresh
one, runs can be compared; all drivers' volumes lie on it side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.host import Host

MOUNT_POINT = "/var/lib/bench"
OWN = "own"
SIZE_BYTES = 8 << 30
MAKERS = {
    # Nothing is left for later: a background thread would write during the run.
    "ext4": (
        *("mkfs.ext4", "-q", "-N", "400000"),
        *("-E", "lazy_itable_init=0,lazy_journal_init=0"),
    ),
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
}
FILESYSTEMS = (*MAKERS, OWN)
MAKE_DEADLINE_S = 60.0

# The loop device is let go at once; the kernel frees it with the mount, and that ends
# with the host. Direct I/O: nothing is kept in memory twice.
MOUNT_SCRIPT = """
image=$1 mount_point=$2
device=$(losetup --find --show --direct-io=on "$image")
trap 'losetup --detach "$device"' EXIT
mkdir -p "$mount_point"
mount "$device" "$mount_point"
"""
BIND_SCRIPT = """
mkdir -p "$1/docker" "$1/remora" "$1/peer"
mount --bind "$1/docker" /var/lib/docker
mount --bind "$1/remora" /var/lib/remora
"""


def prepare(host: Host, filesystem: str) -> str:
    """Give *host* directories on *filesystem*; return its type and mount options."""
    if filesystem != OWN:
        image = host.work / "disk"
        with image.open("wb") as file:
            file.truncate(SIZE_BYTES)
        host.run([*MAKERS[filesystem], str(image)], timeout_s=MAKE_DEADLINE_S)
        _shell(host, MOUNT_SCRIPT, str(image), MOUNT_POINT)
        _shell(host, BIND_SCRIPT, MOUNT_POINT)
    show = ["findmnt", "-n", "-o", "FSTYPE,OPTIONS", "--target", "/var/lib/docker"]
    found = host.run(show).stdout.splitlines()[-1]
    return f"{'fresh' if filesystem != OWN else 'own'} {' '.join(found.split())}"


def peer_directory(host: Host, filesystem: str) -> str:
    """Return the directory, as the host sees it, for what other plugins keep."""
    if filesystem != OWN:
        return f"{MOUNT_POINT}/peer"
    directory = host.work / "peer"
    directory.mkdir()
    return str(directory)


def _shell(host: Host, script: str, *args: str) -> None:
    host.run(["sh", "-euc", script, "disk", *args])
