"""
Size limits on a directory, where the filesystem can hold one.

XFS does it with project quotas, btrfs with qgroups on subvolumes; the programs that
their authors ship set the limits. Source: xfs_quota(8), chattr(1), btrfs-qgroup(8).
"""

from __future__ import annotations

import errno
import fcntl
import struct
import uuid
from pathlib import Path
from typing import Final

from backends.errors import BackendError, InvalidRequestError
from backends.system import btrfs
from backends.system.beneath import opened
from backends.system.mountinfo import MountEntry
from backends.system.mounts import entry_covering
from backends.system.run import run

_PROJECT_TRIES: Final = 100
# struct fsxattr: flags, extent size, extents, project, size of copied extents, padding.
# Source: linux/fs.h, ioctl_xfs_fsgetxattr(2).
_ATTRIBUTES: Final = struct.Struct("=5I8x")
_PROJECT_FIELD: Final = 3
_GET_ATTRIBUTES: Final = 0x801C581F
_SET_ATTRIBUTES: Final = 0x401C5820
# Below this administrators choose project numbers by hand.
_PROJECT_FIRST: Final = 0x10000


def make_data_directory(directory: Path) -> None:
    """
    Create *directory*: a subvolume on btrfs, else a plain directory.

    Only a subvolume can have a qgroup, and only at its creation is a directory
    cheaply made one.
    """
    if entry_covering(directory.parent).filesystem == "btrfs":
        btrfs.create(directory)
    else:
        directory.mkdir(mode=0o755)


def require_enforceable(directory: Path) -> None:
    """
    Check that a size limit can be held below the existing *directory*.

    Raises:
        InvalidRequestError: it cannot; the text says what would be needed.

    """
    mount = entry_covering(directory)
    if mount.filesystem == "xfs":
        if "prjquota" in mount.super_options.split(","):
            return
        raise InvalidRequestError(
            f"option 'size': XFS at {mount.mount_point} has no project quota",
            hint="mount it with -o prjquota, or leave 'size' out",
        )
    if mount.filesystem == "btrfs":
        # A filesystem with quotas off fails on this command, one with them on prints.
        try:
            run(["btrfs", "qgroup", "show", mount.mount_point], deadline_s=10)
        except BackendError as error:
            raise InvalidRequestError(
                f"option 'size': btrfs at {mount.mount_point} has no quotas: "
                f"{error.cause}",
                hint=f"btrfs quota enable {mount.mount_point}, or leave 'size' out",
            ) from None
        return
    raise InvalidRequestError(
        f"option 'size': {mount.filesystem} at {mount.mount_point} cannot limit a "
        "directory",
        hint="put the pool on XFS (prjquota) or btrfs (quota), or leave 'size' out",
    )


def limit(
    directory: Path, *, volume_id: str, size_bytes: int, deadline_s: float
) -> None:
    """
    Limit what *directory*, made by `make_data_directory`, may hold.

    Repeating it with the same arguments is harmless.

    Raises:
        InvalidRequestError: the filesystem cannot.
        BackendError: its program failed.

    """
    require_enforceable(directory)
    mount = entry_covering(directory)
    if mount.filesystem == "btrfs":
        run(
            ["btrfs", "qgroup", "limit", str(size_bytes), str(directory)],
            deadline_s=deadline_s,
        )
        return
    project = _free_project(directory, mount, volume_id=volume_id)
    # chattr takes the path as it is; xfs_quota's own language cannot quote one.
    run(["chattr", "-p", str(project), "+P", str(directory)], deadline_s=deadline_s)
    if _project_of(directory) != project:
        raise BackendError(f"{directory} did not become part of project {project}")
    _xfs_quota(mount, f"limit -p bhard={size_bytes} {project}", deadline_s=deadline_s)


def is_limited(directory: Path) -> bool:
    """Return whether *directory* may have a limit, which goes with its inode."""
    mount = entry_covering(directory)
    if mount.filesystem == "btrfs":
        return btrfs.subvolume(directory) is not None
    return mount.filesystem == "xfs" and _project_of(directory) != 0


def project_of(descriptor: int) -> int:
    """Return the project number of what is open, 0 if it has none."""
    try:
        attributes = fcntl.ioctl(descriptor, _GET_ATTRIBUTES, bytes(_ATTRIBUTES.size))
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            return 0
        raise
    return int(_ATTRIBUTES.unpack(attributes)[_PROJECT_FIELD])


def give_to_project(descriptor: int, project: int) -> None:
    """
    Let the open file count for *project*, also beyond the project's limit.

    Only then can it be renamed into the project's directories. Root with CAP_FOWNER is
    not refused for want of room. Source: linux, fs/xfs/xfs_ioctl.c.
    """
    attributes = fcntl.ioctl(descriptor, _GET_ATTRIBUTES, bytes(_ATTRIBUTES.size))
    fields = list(_ATTRIBUTES.unpack(attributes))
    fields[_PROJECT_FIELD] = project
    fcntl.ioctl(descriptor, _SET_ATTRIBUTES, _ATTRIBUTES.pack(*fields))


def discard(directory: Path, *, deadline_s: float) -> None:
    """
    Give back what `make_data_directory` and `limit` took, before a deletion.

    On XFS the project number becomes free for another; a btrfs subvolume goes here
    and now, since `rm --one-file-system` would stop at it.
    """
    mount = entry_covering(directory)
    if mount.filesystem == "btrfs":
        btrfs.delete(directory)
    elif mount.filesystem == "xfs" and (project := _project_of(directory)):
        _xfs_quota(mount, f"limit -p bhard=0 {project}", deadline_s=deadline_s)


def _free_project(directory: Path, mount: MountEntry, *, volume_id: str) -> int:
    """Return *directory*'s project number, or one whose limit nobody has set."""
    project = _project_of(directory)
    if project:
        return project
    first = uuid.UUID(volume_id).int % (2**31 - _PROJECT_FIRST)
    for step in range(_PROJECT_TRIES):
        project = _PROJECT_FIRST + (first + step) % (2**31 - _PROJECT_FIRST)
        shown = _xfs_quota(mount, f"quota -p -N -b {project}", deadline_s=10)
        fields = shown.split()
        # "device used soft hard warn/grace mount"; an unknown project prints nothing.
        if len(fields) < 4 or fields[3] in ("0", "00"):
            return project
    raise BackendError("no free XFS project number was found in 100 tries")


def _project_of(directory: Path) -> int:
    try:
        with opened(directory) as descriptor:
            return project_of(descriptor)
    except OSError as error:
        raise BackendError(f"cannot read the project of {directory}: {error}") from None


def _xfs_quota(mount: MountEntry, command: str, *, deadline_s: float) -> str:
    return run(
        ["xfs_quota", "-x", "-c", command, mount.mount_point], deadline_s=deadline_s
    ).output
