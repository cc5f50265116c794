"""
Mounting and unmounting NFS within a deadline, and asking a server whether it is there.

Source: nfs(5), mount.nfs(8), umount2(2), RFC 5531 (the NULL call); how dead servers
behave was measured: docs/adr/0008-nfs.md.
"""

from __future__ import annotations

import logging
import secrets
import socket
import struct
from pathlib import Path
from typing import Final

from backends.errors import BackendError, DeadlineError, VolumeBusyError
from backends.nfs import agent
from backends.nfs.agent import unmount as unmount_once
from backends.nfs.errors import NfsError, NfsTimeoutError, from_mount_output
from backends.nfs.options import Export
from backends.system.clock import Deadline
from backends.system.mounts import mounted_at
from backends.system.run import run

log = logging.getLogger(__name__)

_PING_TIMEOUT_S: Final = 3.0
_NFS_PROGRAM: Final = 100003
# How long one attempt at umount2(2) may take: with a dead server it may never return.
_UNMOUNT_STEP_S: Final = 3.0
_MNT_FORCE: Final = 1
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8


def ping(export: Export) -> None:
    """
    Return if the server answers an empty RPC call of the wanted NFS version.

    Raises:
        NfsError: DNS, REFUSED, UNREACHABLE or VERSION, within a few seconds.

    """
    where = str(export)
    call = _null_call(int(export.version[0]))
    try:
        with socket.create_connection(
            (export.server, export.port), timeout=_PING_TIMEOUT_S
        ) as connection:
            connection.sendall(call)
            answer = connection.recv(1024)
    except socket.gaierror as error:
        raise NfsError("DNS", f"'{export.server}': {error.strerror}", where) from error
    except ConnectionRefusedError as error:
        raise NfsError("REFUSED", "nobody serves NFS there", where) from error
    except OSError as error:
        cause = "no answer" if isinstance(error, TimeoutError) else str(error)
        raise NfsError("UNREACHABLE", cause, where) from error
    _check_answer(answer, export)


def _null_call(version: int) -> bytes:
    """Return an RPC call of procedure 0 with no credentials, as one TCP record."""
    transaction = secrets.randbits(32)
    body = struct.pack(">10I", transaction, 0, 2, _NFS_PROGRAM, version, 0, 0, 0, 0, 0)
    return struct.pack(">I", 0x8000_0000 | len(body)) + body


def _check_answer(answer: bytes, export: Export) -> None:
    """Raise VERSION if the server says that it does not have ours."""
    # record mark, transaction, REPLY, accepted, verifier (2), accept state, low, high
    if len(answer) < 28:
        raise NfsError("UNREACHABLE", "it closed the connection", str(export))
    state = struct.unpack_from(">I", answer, 24)[0]
    if state == 2 and len(answer) >= 36:
        low, high = struct.unpack_from(">2I", answer, 28)
        raise NfsError(
            "VERSION",
            f"the server has NFS {low} to {high}, not {export.version}",
            str(export),
        )
    if state == 1:
        raise NfsError("VERSION", "the server has no NFS", str(export))


def mount(
    export: Export, target: Path, *, subdir: str, entries: str, deadline: Deadline
) -> None:
    """
    Mount *subdir* of *export* at the existing directory *target*.

    Raises:
        NfsError: what mount.nfs said, as a code.
        NfsTimeoutError: it did not end in time; it has been killed.

    """
    source = export.source(subdir)
    options = f"retry=0,nfsvers={export.version},{entries}"
    try:
        done = run(
            ["mount.nfs", source, str(target), "-o", options],
            deadline_s=deadline.remaining_s(),
            allowed=range(256),
        )
    except DeadlineError as error:
        raise NfsTimeoutError("mount.nfs did not end", source) from error
    if done.exit_status != 0 and mounted_at(target) is None:
        text = " ".join(done.errors.split()) or f"exit {done.exit_status}"
        raise from_mount_output(text.removeprefix("mount.nfs: "), source)


def unmount(target: Path, *, where: str, server_answers: bool) -> None:
    """
    Unmount *target*; with a dead server by force, step by step.

    Nothing is forced while the server answers: then "busy" means that somebody works
    there. Each step runs in a process of its own, which may never come back.

    Raises:
        VolumeBusyError: a process of this node works below *target*.
        BackendError: it is mounted still.

    """
    if mounted_at(target) is None:
        return
    ladder = (
        ((_UMOUNT_NOFOLLOW, "plainly"),)
        if server_answers
        else (
            (_UMOUNT_NOFOLLOW, "plainly"),
            (_UMOUNT_NOFOLLOW | _MNT_FORCE, "by force"),
            (_UMOUNT_NOFOLLOW, "plainly again"),
            (_UMOUNT_NOFOLLOW | _MNT_DETACH, "lazily"),
        )
    )
    said = ""
    for flags, how in ladder:
        said = _try_unmount(target, flags)
        if mounted_at(target) is None:
            if how != "plainly":
                log.warning("%s was unmounted %s: %s", target, how, where)
            return
        log.warning("%s was not unmounted %s: %s", target, how, said)
    if "busy" in said:
        raise VolumeBusyError(
            f"{target} is in use by a process of this machine; {where}",
            hint=f"fuser -vm {target} names it",
        )
    raise BackendError(f"cannot unmount {target}: {said}; {where}")


def _try_unmount(target: Path, flags: int) -> str:
    """Return what one umount2(2) said, "" if it succeeded."""
    try:
        command = agent.command(unmount_once, str(target), str(flags))
        return run(command, deadline_s=_UNMOUNT_STEP_S).output.strip()
    except (BackendError, DeadlineError) as error:
        return error.cause
