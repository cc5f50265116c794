"""
A volume's bytes at a path that somebody else has named, below a directory of his.

Others write below that directory, too: the path is walked without a link, and what is
made or taken away there is one name in a directory that is held open.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from backends.errors import BackendError, InvalidRequestError
from backends.system import libc
from backends.system.beneath import open_beneath, opened
from backends.system.mounts import mounted, mounted_at, unmount

_WAY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# What stands where a volume was taken away: nothing can be started with it.
_SIGN: Final = b"remora: "
_SIGN_SIZE_MAX: Final = 4096
_NO_WAY: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV})


class WayError(BackendError):
    """The directory in which a path is to be made is not there."""

    code = "path-not-found"


def bind(source: Path, path: Path, *, root: Path, read_only: bool) -> None:
    """
    Make what is mounted on *source* appear at *path* below *root*; there is success.

    A server that is dead is not asked for what is there already.

    Raises:
        WayError: the directory of *path* is not there, or a link leads to it.
        InvalidRequestError: something else is at *path*.
        BackendError: the kernel refused.

    """
    with _parent(path, root) as (parent, name):
        if shown := mounted_at(path):
            require_shown(source, path)
            if read_only and not shown.read_only:
                raise InvalidRequestError(f"{path} is mounted to be written to")
            return
        try:
            _make_directory(path, parent)
            attributes = libc.MOUNT_NODEV | (libc.MOUNT_READ_ONLY if read_only else 0)
            libc.bind(os.fsencode(source), name, attributes, directory=parent)
        except OSError as error:
            with suppress(OSError):
                os.rmdir(name, dir_fd=parent)
            hint = (
                "the daemon needs CAP_SYS_ADMIN" if error.errno == errno.EPERM else ""
            )
            raise BackendError(
                f"cannot bind {source} to {path}: {error.strerror}", hint=hint
            ) from error


def unbind(path: Path, *, root: Path) -> None:
    """
    Take away what is mounted at *path*, and its directory; nothing there is success.

    Raises:
        VolumeBusyError: a process of this machine works below it.
        BackendError: the kernel refused, or the directory has something in it.

    """
    with suppress(WayError), _parent(path, root) as (parent, name):
        # By its directory, which is open: its path may lead elsewhere by now.
        unmount(path, by=f"/proc/self/fd/{parent}/{path.name}")
        try:
            os.rmdir(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            if _is_sign(parent, name):
                os.unlink(name, dir_fd=parent)
        except OSError as error:
            raise BackendError(
                f"{path} is not empty: {error.strerror}",
                hint="something wrote there while it was unmounted: move it away",
            ) from error


def take_away(path: Path, *, root: Path, why: str) -> None:
    """
    Do as `unbind`, and leave a file that says *why*: no container starts with that.

    An engine would make a directory that is not there, and start a database in it.
    """
    unbind(path, root=root)
    with suppress(WayError), _parent(path, root) as (parent, name):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            sign = os.open(name, flags, 0o444, dir_fd=parent)
        except FileExistsError:
            return
        except OSError as error:
            raise BackendError(f"cannot make {path}: {error.strerror}") from error
        try:
            os.write(sign, _SIGN + why.encode()[:_SIGN_SIZE_MAX] + b"\n")
        finally:
            os.close(sign)


def require_shown(source: Path | None, path: Path) -> None:
    """Raise InvalidRequestError if *path* shows something else than *source* does."""
    table = mounted()
    shown, wanted = table.get(str(path)), table.get(str(source or ""))
    if shown is None:
        return
    if wanted is None or (shown.device, shown.root) != (wanted.device, wanted.root):
        raise InvalidRequestError(
            f"something else is mounted at {path}",
            hint=f"findmnt {path} shows what; Remora takes away its own volumes alone",
        )


@contextmanager
def _parent(path: Path, root: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the directory of *path*, opened, and the name in it."""
    inside = path.relative_to(root)
    try:
        with opened(root) as top:
            parent = open_beneath(str(inside.parent), _WAY, top=top)
    except OSError as error:
        if error.errno not in _NO_WAY:
            raise BackendError(
                f"cannot open {path.parent}: {error.strerror}"
            ) from error
        raise WayError(
            f"{path.parent} is no directory that is reached without a link: "
            f"{error.strerror}",
            hint="whoever asks for a path makes the directory that it is in",
        ) from error
    try:
        yield parent, os.fsencode(inside.name)
    finally:
        os.close(parent)


def _make_directory(path: Path, parent: int) -> None:
    """Have an empty directory at *path*."""
    name = path.name
    with suppress(FileExistsError):
        os.mkdir(name, 0o750, dir_fd=parent)
        return
    if _is_sign(parent, os.fsencode(name)):
        os.unlink(name, dir_fd=parent)
        os.mkdir(name, 0o750, dir_fd=parent)
        return
    try:
        with opened(name, dir_fd=parent) as directory:
            is_empty = not os.listdir(directory)  # noqa: PTH208 - it is open
    except NotADirectoryError:
        is_empty = False
    if not is_empty:
        raise InvalidRequestError(
            f"{path} has something in it, or is no directory",
            hint="move away what is there: a volume would hide it",
        )


def _is_sign(parent: int, name: bytes) -> bool:
    """Return whether the name is a file that `take_away` has left."""
    try:
        if not stat.S_ISREG(os.lstat(name, dir_fd=parent).st_mode):
            return False
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.open(name, flags, dir_fd=parent)
    except OSError:
        return False
    try:
        # A crash may have come before it said why.
        return os.read(file, len(_SIGN)) in (b"", _SIGN)
    finally:
        os.close(file)
