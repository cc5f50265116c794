"""Durable changes to files and directories."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from backends.errors import BackendError
from backends.system import libc
from backends.system.changeable import make_changeable
from backends.system.clock import Deadline
from backends.system.run import run

log = logging.getLogger(__name__)
_PRIVATE: Final = 0o600
# What is root's alone: no others may read, write or pass through.
_OTHERS: Final = 0o077
_OTHERS_WRITE: Final = 0o022
_REMOVE_WITHIN_S: Final = 600.0


def read(path: str) -> bytes:
    """Return what is in a small file: with four system calls, not ten."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.read()


def sync_directory(path: Path) -> None:
    """Make the names in directory *path* durable. Source: fsync(2), NOTES."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_filesystem(path: Path) -> None:
    """Make all that was written to the filesystem of *path* durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        libc.sync_filesystem(descriptor, about=str(path))
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes, *, mode: int = _PRIVATE) -> None:
    """Replace *path* with *content*; see `replacing`."""
    with replacing(path, mode=mode) as file:
        file.write(content)


def write_new(path: Path, content: bytes) -> None:
    """
    Make the file *path*, which is not there, with *content*; it and its name last.

    A power loss may leave a part of it: this is for what is thrown away then. All that
    is new in its directory gets to the disk with it, in one write of the journal.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(path, flags, _PRIVATE), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)


@contextmanager
def replacing(path: Path, *, mode: int = _PRIVATE) -> Iterator[BinaryIO]:
    """
    Yield a new file that takes the place of *path* at the end.

    After a power loss *path* is the old one or the new one, whole. It gets *mode*,
    whatever it had and whatever the umask is. What raises meanwhile leaves the old one.
    """
    # A fixed suffix would let two crashed writers share a temporary file.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if mode != _PRIVATE:
                os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def make_directories(path: Path, *, mode: int) -> None:
    """Create *path* and its parents, durably; only *path* itself gets *mode*."""
    missing = []
    at = path
    while not at.is_dir():
        missing.append(at)
        at = at.parent
    for directory in reversed(missing):
        directory.mkdir(mode=mode if directory == path else 0o755, exist_ok=True)
        sync_directory(directory.parent)


def keep_private(path: Path) -> None:
    """
    Make the directory *path*, or see to it that others cannot get into it.

    Its mode is mended, which is told: it may have been so for long. Its owner is not.

    Raises:
        OSError: it cannot be made, or belongs to somebody else.

    """
    make_directories(path, mode=0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            advice = f"if all in it is yours: chown root {shlex.quote(str(path))}"
            told = f"it belongs to user {found.st_uid}; {advice}"
            raise PermissionError(errno.EPERM, told, str(path))
        mode = stat.S_IMODE(found.st_mode)
        if mode & _OTHERS:
            os.fchmod(descriptor, mode & ~_OTHERS)
            log.warning("%s was open to others (mode %04o), and is shut", path, mode)
    finally:
        os.close(descriptor)


def secret_fault(path: Path) -> str:
    """Return why *path* is no file that only root can read, "" if it is one."""
    try:
        found = path.stat()
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if not stat.S_ISREG(found.st_mode):
        return f"{path} is no regular file"
    return _fault(path, found, _OTHERS, "is open to others", "chmod 600")


def writer_fault(path: Path) -> str:
    """Return who but root can write to the file *path*, "" if nobody; OSError."""
    told = "can be written to by others"
    return _fault(path, path.stat(), _OTHERS_WRITE, told, "chmod go-w")


def _fault(path: Path, found: os.stat_result, bits: int, told: str, do: str) -> str:
    """Return what is wrong with the owner of *path*, or *told* of any of *bits*."""
    quoted, mode = shlex.quote(str(path)), stat.S_IMODE(found.st_mode)
    if found.st_uid not in {0, os.geteuid()}:
        return (
            f"{path} belongs to user {found.st_uid}, not to root: chown root {quoted}"
        )
    return f"{path} {told} (mode {mode:04o}): {do} {quoted}" if mode & bits else ""


def way_fault(path: Path) -> str:
    """
    Return who but root could put something else in the place of *path*, "" if nobody.

    All directories on the way count, and those on the way to where links lead.
    """
    real = Path(os.path.realpath(path))
    for at in dict.fromkeys((*reversed(path.parents), path, *reversed(real.parents))):
        found = at.stat()
        if found.st_uid not in {0, os.geteuid()}:
            return f"{at} belongs to user {found.st_uid}"
        shared = found.st_mode & stat.S_ISVTX and at != path
        if found.st_mode & _OTHERS_WRITE and not shared:
            return (
                f"{at} can be written to by others (mode {found.st_mode & 0o7777:04o})"
            )
    return ""


def free_bytes(path: Path) -> tuple[int, int]:
    """Return *path*'s filesystem's (total, available) bytes."""
    usage = os.statvfs(path)
    return usage.f_blocks * usage.f_frsize, usage.f_bavail * usage.f_frsize


def remove_tree(path: Path, *, deadline_s: float = _REMOVE_WITHIN_S) -> None:
    """
    Remove the directory *path*, whose parent is ours alone, with all below.

    Raises:
        BackendError, DeadlineError: something of it is left.

    """
    try:
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError:
        _remove(path, Deadline(deadline_s))


def _remove(path: Path, deadline: Deadline) -> None:
    """Remove a directory that is not empty, whatever containers have made of it."""
    # rm never leaves the filesystem nor follows a link, however deep it is.
    command = ["rm", "-rf", "--one-file-system", "--", str(path)]
    try:
        run(command, deadline_s=deadline.remaining_s())
    except BackendError:
        try:
            if not path.is_dir() or not make_changeable(path):
                raise
        except OSError as error:
            told = f"{error.strerror} {error.filename!r}"
            raise BackendError(f"cannot remove {path}: {told}") from error
        run(command, deadline_s=deadline.remaining_s())
