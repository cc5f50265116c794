"""Durable changes to files and directories."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from backends.system import libc
from backends.system.run import run

_PRIVATE: Final = 0o600
_REMOVE_WITHIN_S: Final = 600.0


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
        # rm never leaves the filesystem nor follows a link, however deep it is.
        run(["rm", "-rf", "--one-file-system", "--", str(path)], deadline_s=deadline_s)
