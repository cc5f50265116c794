"""A mount namespace of its own for a test process, and loop devices that go with it."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_CLONE_NEWNS = 0x00020000
_entered = False
_libc = ctypes.CDLL(None, use_errno=True)


def enter_private_mounts() -> None:
    """
    Give this process mounts of its own: whatever a test leaves goes with the process.

    Skips the test where that is not allowed.
    """
    global _entered  # noqa: PLW0603 - a process enters once
    if _entered:
        return
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if _libc.unshare(_CLONE_NEWNS) != 0:
        pytest.skip("needs CAP_SYS_ADMIN")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True, timeout=10)
    _entered = True


def kernel_has_xfs_quota() -> bool:
    """Return whether this kernel was built with XFS quotas (not every one is)."""
    # The quota module puts its statistics there when it is compiled in.
    return Path("/proc/fs/xfs/xqmstat").exists()


@contextmanager
def loop_filesystem(
    directory: Path,
    kind: str,
    *,
    options: str = "",
    size: str = "400M",
    made_with: Sequence[str] = (),
) -> Iterator[Path]:
    """Yield the mount point of a new *kind* filesystem in a file of *directory*."""
    image = directory / f"{kind}.image"
    mount_point = directory / kind
    mount_point.mkdir()
    subprocess.run(["truncate", "-s", size, image], check=True, timeout=10)
    subprocess.run(
        [f"mkfs.{kind}", "-q", *made_with, image],
        check=True,
        timeout=60,
        capture_output=True,
    )
    # mount -o loop frees the loop device by itself when the filesystem is unmounted.
    subprocess.run(
        ["mount", "-o", f"loop{',' if options else ''}{options}", image, mount_point],
        check=True,
        timeout=60,
    )
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", "-l", mount_point], check=True, timeout=60)
        image.unlink()


_LOSE_TRIES = 20


@dataclass(frozen=True)
class LosingDisk:
    """A filesystem at *path*, in *image*, whose device has no room for new blocks."""

    path: Path
    image: Path

    def lose(self) -> None:
        """Lose what was written last, and let a flush of somebody else hear of it."""
        for tries_left in reversed(range(_LOSE_TRIES)):
            used = os.statvfs(self.image.parent)
            used_bytes = (used.f_blocks - used.f_bfree) * used.f_frsize
            try:
                _remount(self.image.parent, used_bytes)
                break
            except subprocess.CalledProcessError:  # a page was written meanwhile
                if not tries_left:
                    raise
        descriptor = os.open(self.path, os.O_RDONLY)
        failed = _libc.syncfs(descriptor)
        os.close(descriptor)
        _remount(self.image.parent, 128 * 2**20)
        assert failed


def _remount(path: Path, size: int) -> None:
    command = ["mount", "-o", f"remount,size={size}", path]
    subprocess.run(command, check=True, timeout=10)


@contextmanager
def losing_disk(directory: Path) -> Iterator[LosingDisk]:
    """Yield a disk that can lose writes; it has no journal, which would stop it."""
    device = directory / "device"
    device.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={128 * 2**20}", "none", device]
    subprocess.run(command, check=True, timeout=10)
    try:
        with loop_filesystem(
            device, "ext4", size="64M", made_with=["-O", "^has_journal"]
        ) as path:
            yield LosingDisk(path, device / "ext4.image")
    finally:
        subprocess.run(["umount", "-l", device], check=True, timeout=60)
