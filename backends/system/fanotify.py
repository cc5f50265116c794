"""
The kernel's news of a whole filesystem: fanotify(7), and what it needs of file handles.

An event names a directory by its file handle, which stays the same wherever the
directory is moved, the name in the directory, and the file that was written to: its
name may be one that it had once. The C library has the four calls;
this module is what ctypes has to know of them.

Source: fanotify_init(2), fanotify_mark(2), fanotify(7), open_by_handle_at(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from backends.system import libc

MODIFY: Final = 0x2
ATTRIB: Final = 0x4
CLOSE_WRITE: Final = 0x8
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
ON_DIRECTORY: Final = 0x4000_0000

MOVED: Final = MOVED_FROM | MOVED_TO
# What changes the directory's own entry as well: its times, its number of links.
NAME_CHANGED: Final = MOVED | CREATE | DELETE
_MASK: Final = NAME_CHANGED | MODIFY | ATTRIB | CLOSE_WRITE | ON_DIRECTORY

_CLOEXEC: Final = 0x1
_NONBLOCK: Final = 0x2
_UNLIMITED_QUEUE: Final = 0x10
_REPORT_FILE: Final = 0x200
_REPORT_DIRECTORY_AND_NAME: Final = 0x400 | 0x800
_REPORT: Final = _REPORT_FILE | _REPORT_DIRECTORY_AND_NAME
_QUEUE: Final = _CLOEXEC | _NONBLOCK | _UNLIMITED_QUEUE | _REPORT
_MARK_ADD_FILESYSTEM: Final = 0x1 | 0x100
# Ignore one file, not what a link leads to, and go on after it was written to.
_MARK_ADD_IGNORED: Final = 0x1 | 0x4 | 0x20 | 0x40
_MARK_FLUSH_FILES: Final = 0x80
_READ_SIZE: Final = 64 * 1024

_METADATA: Final = struct.Struct("=IBBHQii")
_METADATA_VERSION: Final = 3
_INFO: Final = struct.Struct("=BBH8s")  # type, padding, length, filesystem id
_INFO_FILE: Final = 1
_INFO_NAMED: Final = 2
_INFO_UNNAMED: Final = 3
_HANDLE: Final = struct.Struct("=Ii")  # length of what follows, type
# What begins with an inode's number, by the type of the handle: ext4's, and XFS's.
_INODES: Final = {0x01: struct.Struct("=I"), 0x81: struct.Struct("=Q")}
HANDLE_HEADER_SIZE: Final = _HANDLE.size
# The filesystem has no handles, or longer ones than the kernel tells.
NO_HANDLE: Final = (errno.EOPNOTSUPP, errno.EOVERFLOW)
_HANDLE_SIZE_MAX: Final = 128
_AT_EMPTY_PATH: Final = 0x1000

_BTRFS_FIRST_INODE: Final = 256
_BTRFS_TOP_LEVEL: Final = 5
_BTRFS_HANDLE: Final = struct.Struct("=QQI")  # inode, subvolume, generation
_BTRFS_HANDLE_TYPE: Final = 0x4D


class Event(NamedTuple):
    """
    What happened to *name* in the directory with *handle*; "." is the directory.

    ``handle`` is empty where the kernel named none: a queue that overflowed. ``inode``
    is that of the file, 0 if it is not told.
    """

    mask: int
    handle: bytes
    name: bytes
    inode: int = 0


def open_queue() -> int:
    """
    Return a new queue of events, a descriptor that never blocks.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN, EINVAL before Linux 5.9.

    """
    return libc.call("fanotify_init", _QUEUE, os.O_RDONLY | os.O_CLOEXEC)


def mark_filesystem(queue: int, directory: int) -> None:
    """
    Have *queue* told of every change in the filesystem of the open *directory*.

    btrfs takes the mark on its top level alone, which most distributions do not mount:
    it is opened by its handle then.

    Raises:
        OSError: ENODEV, EOPNOTSUPP: a filesystem without identity or handles; ESTALE: a
            kernel that does not open the top level like this.

    """
    try:
        _mark(queue, directory)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        top_level = _open_btrfs_top_level(directory)
        try:
            _mark(queue, top_level)
        finally:
            os.close(top_level)


def ignore_writes(queue: int, directory: int, name: bytes) -> None:
    """
    Tell *queue* no more of writes to file *name* in the open *directory*.

    Raises:
        OSError: it has gone, or there are too many.

    """
    libc.call("fanotify_mark", queue, _MARK_ADD_IGNORED, MODIFY, directory, name)


def ignore_nothing(queue: int) -> None:
    """Tell *queue* of all writes again."""
    libc.call("fanotify_mark", queue, _MARK_FLUSH_FILES, 0, -1, None)


def read(queue: int) -> bytes:
    """Return the next of the events that *queue* holds, b"" if it is empty."""
    try:
        return os.read(queue, _READ_SIZE)
    except BlockingIOError:
        return b""


def parse(content: bytes) -> Iterator[Event]:
    """Yield the events in *content*, which `read` has returned, in order."""
    at = 0
    while at < len(content):
        length, version, _, start, mask, _, _ = _METADATA.unpack_from(content, at)
        if version != _METADATA_VERSION:
            raise OSError(errno.EPROTO, f"fanotify speaks version {version}")
        event = _event(mask, content, at + start, at + length)
        if event is not None:
            yield event
        at += length


def handle_of(directory: int) -> bytes:
    """
    Return the file handle of the open *directory*.

    Raises:
        OSError: NO_HANDLE, if this filesystem has none for us.

    """
    buffer = ctypes.create_string_buffer(_HANDLE.size + _HANDLE_SIZE_MAX)
    _HANDLE.pack_into(buffer, 0, _HANDLE_SIZE_MAX, 0)
    mount_id = ctypes.c_int()
    libc.call(
        "name_to_handle_at",
        *(directory, b"", buffer, ctypes.byref(mount_id), _AT_EMPTY_PATH),
    )
    length, _ = _HANDLE.unpack_from(buffer)
    return buffer.raw[: _HANDLE.size + length]


def open_handle(handle: bytes, *, mount: int) -> int:
    """
    Return a descriptor (O_PATH) for *handle* in the filesystem of the open *mount*.

    Raises:
        OSError: ESTALE: it was deleted; EPERM without CAP_DAC_READ_SEARCH.

    """
    return libc.call("open_by_handle_at", mount, handle, os.O_PATH | os.O_CLOEXEC)


def path_of(descriptor: int) -> bytes:
    """
    Return where what *descriptor* has open is now.

    Raises:
        OSError: ENAMETOOLONG: below more directories than a path can have.

    """
    # Path does not know names that are bytes.
    return os.readlink(f"/proc/self/fd/{descriptor}".encode())  # noqa: PTH115


def _mark(queue: int, directory: int) -> None:
    libc.call("fanotify_mark", queue, _MARK_ADD_FILESYSTEM, _MASK, directory, None)


def _open_btrfs_top_level(directory: int) -> int:
    # A handle without a generation asks for any. Source: fs/btrfs/export.c.
    content = _BTRFS_HANDLE.pack(_BTRFS_FIRST_INODE, _BTRFS_TOP_LEVEL, 0)
    handle = _HANDLE.pack(len(content), _BTRFS_HANDLE_TYPE) + content
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    return libc.call("open_by_handle_at", directory, handle, flags)


def _event(mask: int, content: bytes, at: int, end: int) -> Event | None:
    """
    Return the event that the records from *at* to *end* tell of.

    None is one of a file alone: it has a name more or less, and another event tells of
    that name.
    """
    directory, name, inode, is_file = b"", b"", 0, False
    while at < end:
        kind, _, length, _ = _INFO.unpack_from(content, at)
        handle_at = at + _INFO.size
        handle_length, handle_type = _HANDLE.unpack_from(content, handle_at)
        name_at = handle_at + _HANDLE.size + handle_length
        if kind in (_INFO_NAMED, _INFO_UNNAMED):
            directory, name = content[handle_at:name_at], b"."
            if kind == _INFO_NAMED:  # zeros fill the record up
                name = content[name_at : at + length].partition(b"\0")[0]
        elif kind == _INFO_FILE:
            is_file = True
            if number := _INODES.get(handle_type):
                [inode] = number.unpack_from(content, handle_at + _HANDLE.size)
        at += length
    if is_file and not directory:
        return None
    return Event(mask, directory, name, inode)
