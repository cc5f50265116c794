"""
Mounting and unmounting NFS within a deadline.

Source: nfs(5), mount.nfs(8), umount2(2); how dead servers behave was measured:
docs/adr/0008-nfs.md.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from backends.errors import BackendError, DeadlineError, VolumeBusyError
from backends.nfs import version_paths
from backends.nfs.agent import bind as bind_once
from backends.nfs.agent import unmount as unmount_once
from backends.nfs.errors import NfsError, NfsTimeoutError, from_mount_output
from backends.nfs.options import Export
from backends.nfs.server import (
    address_of,
    answers,
    has_moved,
    is_named,
    left_behind,
    ping,
)
from backends.system import libc
from backends.system.aside import begun
from backends.system.clock import Deadline
from backends.system.mountinfo import MountEntry
from backends.system.mounts import mount_table, mounted_at
from backends.system.programs import own_program
from backends.system.run import run

log = logging.getLogger(__name__)

# mount.nfs takes tenths of a second; after this long it is asked who keeps it.
_MOUNT_PATIENCE_S: Final = 10.0
# Of Linux 7. A client takes a directory that is delegated to it for where it was, when
# another has moved or removed it: docs/adr/0008-nfs.md.
DELEGATED_DIRECTORIES: Final = Path(
    "/sys/module/nfsv4/parameters/directory_delegations"
)
# How long one attempt at umount2(2) may take: with a dead server it may never return.
_UNMOUNT_STEP_S: Final = 3.0
# With a live server nothing hangs; a machine under load is slow to start programs.
_UNMOUNT_PATIENCE_S: Final = 20.0
# So many exports below one are unmounted with it.
_BELOW_MAX: Final = 100


def mount(
    export: Export, target: Path, *, subdir: str, entries: str, deadline: Deadline
) -> None:
    """
    Mount *subdir* of *export* at the existing directory *target*.

    No directory is delegated to this machine afterwards, where its kernel lets us.

    Raises:
        NfsError: what mount.nfs said, as a code; or that the server has died.
        NfsTimeoutError: it did not end in time; it has been killed.

    """
    source = export.source(subdir)
    _require_none_behind(export, source)
    options = f"retry=0,nfsvers={export.version},{entries}"
    command = ["mount.nfs", source, str(target), "-o", options]
    patience_s = _MOUNT_PATIENCE_S
    while True:
        try:
            done = run(
                command,
                deadline_s=min(patience_s, deadline.remaining_s()),
                allowed=range(256),
            )
            break
        except DeadlineError as error:
            if deadline.passed():
                raise NfsTimeoutError("mount.nfs did not end", source) from error
            # It would wait for minutes for a server that has died meanwhile. One that
            # is only slow gets more time.
            ping(export)
            patience_s *= 3
    if done.exit_status != 0 and mounted_at(target) is None:
        text = " ".join(done.errors.split()) or f"exit {done.exit_status}"
        said = from_mount_output(text.removeprefix("mount.nfs: "), source)
        if said.code == "NFS-NOEXPORT":
            said.hint = version_paths.hint_for(export, subdir, deadline) or said.hint
        raise said
    _have_no_directories_delegated()


def _require_none_behind(export: Export, source: str) -> None:
    """Raise NfsError MOVED if a mount would wait where the server was before."""
    if behind := left_behind(export):
        raise NfsError(
            "MOVED",
            f"the server has another address now; {behind[0].mount_point} is mounted "
            f"from {address_of(behind[0])}, where nobody answers",
            source,
        )


def _have_no_directories_delegated() -> None:
    """Turn delegated directories off; a kernel has the setting once it has mounted."""
    with suppress(OSError):  # An older kernel, or /sys is read-only: doctor tells.
        if DELEGATED_DIRECTORIES.read_text("ascii").strip() != "N":
            DELEGATED_DIRECTORIES.write_text("N", "ascii")
            log.info("%s is N now", DELEGATED_DIRECTORIES)


def bind(share: Path, directory: str, target: Path, *, where: str) -> None:
    """
    Make *directory* of the share that is mounted at *share* appear at *target*.

    Raises:
        NfsError: there is no such directory.
        BackendError: the kernel refused.

    """
    done = run(
        own_program(bind_once, str(share), directory, str(target)),
        deadline_s=_MOUNT_PATIENCE_S,
    )
    if said := done.output.strip():
        if said == os.strerror(errno.ENOENT):
            raise NfsError("STALE", f"directory '{directory}' is gone", where)
        raise BackendError(f"cannot bind '{directory}' to {target}: {said}; {where}")


def unmount(target: Path, *, where: str, export: Export | None = None) -> bool:
    """
    Unmount *target* and remove it; with a dead server by force, step by step.

    Nothing is forced while the server answers where it is mounted from: then "busy"
    means that somebody works there. Without *export* it counts as dead. Each step runs
    in a process of its own, which may never come back. The server is asked while the
    first one runs: a plain unmount of what a dead server has delegated to us waits for
    it, and the caller would wait for one after the other.

    Return whether it was kept waiting, and the server does not answer.

    Raises:
        VolumeBusyError: a process of this node works below *target*.
        BackendError: it is mounted still.

    """
    entry = mounted_at(target)
    if entry is None:
        return False

    def server_answers() -> bool:
        return export is not None and answers(export, address_of(entry))

    alive = begun(server_answers, name="nfs:ping")
    _unmount_below(target)
    said = _in_child(target, libc.UMOUNT_NOFOLLOW)
    if mounted_at(target) is None:
        # If it was done at once, no server has kept it waiting: we need no answer.
        return bool(said) and not alive.result()
    log.warning("%s was not unmounted plainly: %s", target, said)
    # Before anything is forced, a server that was alive is asked again, for it may have
    # died since. "Busy" came at once, before there could be an answer.
    alive_before = "busy" in said or alive.result()
    if not (alive_before and server_answers()):
        for flags, how in _ladder(entry, export):
            said = _in_child(target, libc.UMOUNT_NOFOLLOW | flags)
            if mounted_at(target) is None:
                log.warning("%s was unmounted %s: %s", target, how, where)
                return True
            log.warning("%s was not unmounted %s: %s", target, how, said)
    elif "busy" not in said:
        said = _in_child(target, libc.UMOUNT_NOFOLLOW, deadline_s=_UNMOUNT_PATIENCE_S)
        if mounted_at(target) is None:
            return False
    if "busy" in said:
        raise VolumeBusyError(
            f"{target} is in use by a process of this machine; {where}",
            hint=f"fuser -vm {target} names it",
        )
    raise BackendError(f"cannot unmount {target}: {said}; {where}")


def _unmount_below(target: Path) -> None:
    """
    Unmount the exports below the one at *target*, as far as that goes at once.

    The kernel mounts them itself when somebody walks there, and would unmount them
    after minutes.
    """
    below = [
        Path(each.mount_point)
        for each in mount_table()
        if Path(each.mount_point).is_relative_to(target)
        and each.mount_point != str(target)
        and each.filesystem.startswith("nfs")
    ]
    for each in reversed(below[:_BELOW_MAX]):
        if _in_child(each, libc.UMOUNT_NOFOLLOW):
            return  # somebody works there, or the server is dead


def _ladder(entry: MountEntry, export: Export | None) -> list[tuple[int, str]]:
    """
    Return the flags with which a dead server's mount is taken away, mildest first.

    Force ends whatever the kernel waits for on that filesystem, and volumes of one
    share are one filesystem: the others' writes would be lost. Where the server of
    *export* has moved to another address, they are; one of several addresses may
    come back.
    """
    lazily = [(libc.MNT_DETACH, "lazily")]
    moved = (
        export is not None
        and has_moved(export, Path(entry.mount_point))
        and not is_named(export, address_of(entry))
    )
    if not moved and [each.device for each in mount_table()].count(entry.device) > 1:
        return lazily
    return [(libc.MNT_FORCE, "by force"), (0, "plainly again"), *lazily]


def remove_mount_point(target: Path) -> None:
    """
    Remove the directory *target*, on which nothing is mounted, if it is there.

    Raises:
        BackendError: it is there still.

    """
    if os.path.lexists(target):
        said = _in_child(target)
        if os.path.lexists(target):
            raise BackendError(f"mount point {target}: {said}")


def _in_child(target: Path, *flags: int, deadline_s: float = _UNMOUNT_STEP_S) -> str:
    """Return what one umount2(2) or rmdir(2) said, "" if it succeeded."""
    try:
        command = own_program(unmount_once, str(target), *map(str, flags))
        return run(command, deadline_s=deadline_s).output.strip()
    except (BackendError, DeadlineError) as error:
        return error.cause
