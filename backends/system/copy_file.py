"""
Copies one file, link, pipe, socket or device: the part that tree and outbox share.

File contents are shared where the filesystem can (FICLONE), else copied by it or by
its server (copy_file_range), else by reading and writing; holes stay holes. Names are
looked up in open directories and never followed. `opening.py` opens the copies, or an
NFS server would not keep their times. Standard library alone: `tree.py` is a program of
its own.

Source: ioctl_ficlone(2), copy_file_range(2), lseek(2), openat(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from backends.system.attributes import is_copied
from backends.system.beneath import Beneath
from backends.system.libc import write_out
from backends.system.opening import Opener
from backends.system.regular_files import NotRegularError, open_regular

_FICLONE = 0x40049409
_FICLONERANGE = 0x4020940D
_CLONE_RANGE = struct.Struct("=qQQQ")
_CHUNK_SIZE = 64 * 2**20
_BUFFER_SIZE = 2**20
_SECTOR_SIZE = 512  # of st_blocks, stat(2)
# What filesystems, and pairs of them, say when they cannot do it: try the next way.
_CANNOT = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.ENOSYS, errno.EINVAL}
)


def can_share(directory: str | os.PathLike[str]) -> bool:
    """Return whether copies in *directory* share their blocks with what they are of."""
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    made = list[int]()
    try:
        made += [os.open(directory, flags, 0o600)]
        made += [os.open(directory, flags, 0o600)]
        os.write(made[0], bytes(4096))
        clone(made[0], made[1])
    except OSError:
        return False
    else:
        return True
    finally:
        for each in made:
            os.close(each)


# ACLs, and how btrfs compresses.
_INHERITED = ("system.", "btrfs.")
_OTHERS = 0o077


@dataclass
class FileCopier:
    """
    Copies files between two filesystems, and remembers what these cannot do.

    ``fsync`` has each copy flushed, for servers that only then say no. ``flush_source``
    has what is copied written out before it is read: a page that stays dirty takes more
    stores through a mapping without moving any time of its file.
    """

    fsync: bool = False
    flush_source: bool = False
    on_progress: Callable[[], None] = lambda: None
    size_bytes: int = 0
    attributes_lost: int = 0
    _share_contents: bool = True
    _copy_in_kernel: bool = True
    _opener: Opener | None = None

    def copy(
        self, name: str | bytes, status: os.stat_result, *, source: int, target: int
    ) -> bool:
        """
        Copy *name*, which *status* says is no directory, between open directories.

        Return whether it was there; it may have vanished, or become something else.
        """
        if stat.S_ISREG(status.st_mode):
            return self._copy_file(name, source, target)
        return self._copy_special(name, status, source, target)

    def _copy_file(self, name: str | bytes, source_at: int, target_at: int) -> bool:
        try:
            source = open_regular(name, dir_fd=source_at)
        except (FileNotFoundError, NotRegularError):
            return False
        try:
            status = os.fstat(source)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            if self._opener is None:
                self._opener = Opener(target_at)
            target = self._opener.open(name, flags, dir_fd=target_at)
            try:
                if self.flush_source:
                    write_out(source)
                self._copy_content(source, target, status)
                self.copy_attributes(source, target, status)
                if self.fsync:
                    os.fsync(target)
            except OSError:
                # What comes next, to clean up, needs room on a full disk as well.
                os.ftruncate(target, 0)
                raise
            finally:
                os.close(target)  # raises what a server says only now
        finally:
            os.close(source)
        return True

    def _copy_content(self, source: int, target: int, status: os.stat_result) -> None:
        size = status.st_size
        if size == 0:
            return
        if self._share_contents:
            try:
                clone(source, target)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                # EINVAL can be about this file alone; the others are about the pair.
                self._share_contents = error.errno == errno.EINVAL
            else:
                self.size_bytes += min(size, status.st_blocks * _SECTOR_SIZE)
                return
        os.ftruncate(target, size)
        end = 0
        while end < size:
            try:
                begin = os.lseek(source, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # the rest is a hole
            end = min(os.lseek(source, begin, os.SEEK_HOLE), size)
            self._copy_range(source, target, begin, end)

    def _copy_range(self, source: int, target: int, begin: int, end: int) -> None:
        while begin < end:
            count = min(end - begin, _CHUNK_SIZE)
            done = self._copy_chunk(source, target, begin, count)
            if done == 0:
                return  # it was cut shorter while we copied
            begin += done
            self.size_bytes += done
            self.on_progress()

    def _copy_chunk(self, source: int, target: int, at: int, count: int) -> int:
        if self._copy_in_kernel:
            try:
                return os.copy_file_range(source, target, count, at, at)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                self._copy_in_kernel = False
        data = os.pread(source, min(count, _BUFFER_SIZE), at)
        done = 0
        while done < len(data):
            done += os.pwrite(target, data[done:], at + done)
        return done

    def _copy_special(
        self, name: str | bytes, status: os.stat_result, source: int, target: int
    ) -> bool:
        """Copy a symbolic link, pipe, socket or device; return whether it was there."""
        if stat.S_ISLNK(status.st_mode):
            try:
                content = os.readlink(os.fsencode(name), dir_fd=source)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINVAL):
                    raise
                return False
            os.symlink(content, name, dir_fd=target)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
        owner = status.st_uid, status.st_gid
        os.chown(name, *owner, dir_fd=target, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)
        # There is no *at() call for extended attributes of what cannot be opened.
        try:
            self.copy_extended(_path(name, source), _path(name, target))
        except FileNotFoundError:
            os.unlink(name, dir_fd=target)
            return False
        times = status.st_atime_ns, status.st_mtime_ns
        os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)
        return True

    def copy_attributes(self, source: int, target: int, status: os.stat_result) -> None:
        """Give open *target* the owner, mode and times of *status*, and the rest."""
        # In this order: chown clears set-id bits and capabilities, chmod an ACL's mask.
        _put_owner_and_mode(target, status)
        self.copy_extended(source, target)
        _put_times(target, status)

    def begin_directory(self, source: int, target: int) -> bool:
        """
        Give new open *target* the extended attributes of *source*, but for ACLs.

        What is made in it would inherit those. Return whether there are some.
        """
        late = _inherited(source)
        own = [key for key in attribute_names(source) if key not in late]
        self._copy_each(own, source, target)
        return bool(late)

    def finish_directory(
        self,
        tree: Beneath,
        path: bytes,
        status: os.stat_result,
        acls_of: Beneath | None,
    ) -> None:
        """
        Give the directory *path* of *tree* what *status* says, and its ACLs.

        They are those that the same directory in *acls_of* has now. If it has gone, the
        copy is its owner's alone: a mode without its ACL may let others in.
        """
        with tree.opened(path) as target:
            _put_owner_and_mode(target, status)
            if acls_of is not None:
                try:
                    with acls_of.opened(path) as source:
                        self._copy_each(_inherited(source), source, target)
                except (FileNotFoundError, NotADirectoryError):
                    os.fchmod(target, stat.S_IMODE(status.st_mode) & ~_OTHERS)
            _put_times(target, status)

    def copy_extended(self, source: int | bytes, target: int | bytes) -> None:
        """
        Copy the extended attributes of *source*: open, or a path not followed.

        One is in memory at a time: a container may make gigabytes of them.
        """
        self._copy_each(attribute_names(source), source, target)

    def _copy_each(
        self, names: list[str], source: int | bytes, target: int | bytes
    ) -> None:
        for key in names:
            with self._counting_lost():
                value = os.getxattr(source, key, follow_symlinks=_is_open(source))
                os.setxattr(target, key, value, follow_symlinks=_is_open(target))

    @contextmanager
    def _counting_lost(self) -> Iterator[None]:
        """Count an attribute that is not there any more, or cannot be kept."""
        try:
            yield
        except OSError as error:
            if error.errno not in (*_CANNOT, errno.ENODATA, errno.EPERM):
                raise
            self.attributes_lost += 1


def clone(source: int, target: int) -> None:
    """Let the open *target* share the blocks of *source*. Source: ioctl_ficlone(2)."""
    fcntl.ioctl(target, _FICLONE, source)


def is_cloned(source: int, target: int) -> bool:
    """Return whether the open *target* shares the blocks of *source* now."""
    return _is_shared(clone, source, target)


def is_range_cloned(source: int, target: int, at: int, length: int, to: int) -> bool:
    """Return whether *target* shares at *to* what *source* has *at* a place now."""
    return _is_shared(partial(clone_range, to=to), source, target, at, length)


def _is_shared(share: Callable[..., None], *arguments: int) -> bool:
    try:
        share(*arguments)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def clone_range(
    source: int, target: int, offset: int, length: int, *, to: int | None = None
) -> None:
    """Let the open *target* share a range of *source*, at *to*. Source: as `clone`."""
    request = _CLONE_RANGE.pack(source, offset, length, offset if to is None else to)
    fcntl.ioctl(target, _FICLONERANGE, request)


def _put_owner_and_mode(target: int, status: os.stat_result) -> None:
    shown = os.fstat(target)
    if (shown.st_uid, shown.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))


def _put_times(target: int, status: os.stat_result) -> None:
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def attribute_names(source: int | bytes) -> list[str]:
    """Return the names of *source*'s extended attributes that a copy has as well."""
    try:
        names = os.listxattr(source, follow_symlinks=_is_open(source))
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return []
    return [key for key in names if is_copied(key)]


def have_same_attributes(one: int, other: int) -> bool:
    """Return whether two open files have the same extended attributes."""
    names = attribute_names(one)
    return sorted(names) == sorted(attribute_names(other)) and all(
        os.getxattr(one, key) == os.getxattr(other, key) for key in names
    )


def _inherited(source: int) -> list[str]:
    """Return the names of the attributes that what is made in *source* would get."""
    return [key for key in attribute_names(source) if key.startswith(_INHERITED)]


def _is_open(source: int | bytes) -> bool:
    # For a descriptor Python refuses "do not follow", which has no meaning there.
    return isinstance(source, int)


def _path(name: str | bytes, directory: int) -> bytes:
    # Leads to the open directory itself, whoever renames or replaces what is above it.
    return f"/proc/self/fd/{directory}/".encode() + os.fsencode(name)
