"""
Copies a directory tree; a program of its own, so that it can be killed.

File contents are shared where the filesystem can (FICLONE), else copied by it or by
its server (copy_file_range), else by reading and writing; holes stay holes. Owners,
modes, times, extended attributes with ACLs, and hard links are kept. What lies on
another filesystem below the source is left out.

The source may be written to by others, who may swap a directory for a symbolic link at
any moment: nothing is opened by a path of more than one component.

It takes one JSON argument (`Request`), prints lines of JSON while it works, `files` and
`bytes` so far, and at last one with `done` or `error`. Source: ioctl_ficlone(2),
copy_file_range(2), lseek(2), openat(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from backends.system.clock import monotonic_s

_FICLONE = 0x40049409
_CHUNK_SIZE = 64 * 2**20
_BUFFER_SIZE = 2**20
_REPORT_INTERVAL_S = 0.5
# What filesystems, and pairs of them, say when they cannot do it: try the next way.
_CANNOT = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.ENOSYS, errno.EINVAL}
)
# Kept by the filesystem itself, or another name of the mode.
_NOT_COPIED = frozenset({"system.nfs4_acl", "system.nfs4_dacl", "security.selinux"})


@dataclass
class _Level:
    """A directory that is being copied, and what of it is still to come."""

    source: int
    target: int
    path: str
    names: Iterator[str]
    status: os.stat_result


@dataclass
class TreeCopy:
    """One copy; ``fsync`` has each file flushed, for servers that only then say no."""

    fsync: bool = False
    files: int = 0
    bytes: int = 0
    attributes_lost: int = 0
    _root_target: int = -1
    _device: int = 0
    _share_contents: bool = True
    _copy_in_kernel: bool = True
    _linked: dict[int, str] = field(default_factory=dict)
    _reported_at: float = 0.0

    def run(self, source: int, target: int) -> None:
        """Copy directory *source* into the empty directory *target*; durably."""
        levels = [self._open_level(source, target, "")]
        self._root_target = os.dup(levels[0].target)
        self._device = levels[0].status.st_dev
        while levels:
            level = levels[-1]
            name = next(level.names, None)
            if name is None:
                self._finish_level(levels.pop())
                continue
            below = self._copy_entry(level, name)
            if below is not None:
                levels.append(below)
            self._report()
        sync_filesystem(self._root_target)
        os.close(self._root_target)

    def _open_level(self, source: int, target: int, path: str) -> _Level:
        names = iter(os.listdir(source))
        return _Level(source, target, path, names, os.fstat(source))

    def _finish_level(self, level: _Level) -> None:
        """Give the directory its owner and times, which its entries have changed."""
        self._copy_attributes(level.source, level.target, level.status)
        os.close(level.source)
        os.close(level.target)

    def _copy_entry(self, level: _Level, name: str) -> _Level | None:
        """
        Copy one entry; return the level below if it is a directory.

        What vanishes from the source while we look was not there.
        """
        try:
            status = os.stat(name, dir_fd=level.source, follow_symlinks=False)
        except FileNotFoundError:
            return None
        path = f"{level.path}/{name}" if level.path else name
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            return self._enter(level, name, path, status)
        self.files += 1
        linked = self._linked.get(status.st_ino) if status.st_nlink > 1 else None
        if linked is not None:
            os.link(
                linked,
                name,
                src_dir_fd=self._root_target,
                dst_dir_fd=level.target,
                follow_symlinks=False,
            )
            return None
        if kind == stat.S_IFREG:
            copied = self._copy_file(level, name)
        else:
            copied = self._copy_special(level, name, status)
        if copied and status.st_nlink > 1:
            self._linked[status.st_ino] = path
        return None

    def _enter(
        self, level: _Level, name: str, path: str, status: os.stat_result
    ) -> _Level | None:
        os.mkdir(name, 0o700, dir_fd=level.target)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        target = os.open(name, flags, dir_fd=level.target)
        if status.st_dev != self._device:
            os.close(target)
            return None
        try:
            source = os.open(name, flags, dir_fd=level.source)
        except (FileNotFoundError, NotADirectoryError):
            os.close(target)
            os.rmdir(name, dir_fd=level.target)
            return None
        return self._open_level(source, target, path)

    def _copy_file(self, level: _Level, name: str) -> bool:
        """Return whether the file is there now; it may have vanished, or changed."""
        # O_NONBLOCK: what has become a pipe since we looked must not stop us.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            source = os.open(name, flags, dir_fd=level.source)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                raise
            return False
        try:
            status = os.fstat(source)
            if not stat.S_ISREG(status.st_mode):
                return False
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            target = os.open(name, flags, 0o600, dir_fd=level.target)
            try:
                self._copy_content(source, target, status.st_size)
                self._copy_attributes(source, target, status)
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

    def _copy_content(self, source: int, target: int, size: int) -> None:
        if size == 0:
            return
        if self._share_contents:
            try:
                fcntl.ioctl(target, _FICLONE, source)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                # EINVAL can be about this file alone; the others are about the pair.
                self._share_contents = error.errno == errno.EINVAL
            else:
                self.bytes += size
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
            self.bytes += done
            self._report()

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

    def _copy_special(self, level: _Level, name: str, status: os.stat_result) -> bool:
        """Copy a symbolic link, pipe, socket or device; return whether it was there."""
        if stat.S_ISLNK(status.st_mode):
            try:
                content = os.readlink(name, dir_fd=level.source)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINVAL):
                    raise
                return False
            os.symlink(content, name, dir_fd=level.target)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=level.target)
        os.chown(
            name,
            status.st_uid,
            status.st_gid,
            dir_fd=level.target,
            follow_symlinks=False,
        )
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=level.target)
        os.utime(
            name,
            ns=(status.st_atime_ns, status.st_mtime_ns),
            dir_fd=level.target,
            follow_symlinks=False,
        )
        return True

    def _copy_attributes(
        self, source: int, target: int, status: os.stat_result
    ) -> None:
        # In this order: chown clears set-id bits and capabilities, chmod an ACL's mask.
        shown = os.fstat(target)
        if (shown.st_uid, shown.st_gid) != (status.st_uid, status.st_gid):
            os.fchown(target, status.st_uid, status.st_gid)
        os.fchmod(target, stat.S_IMODE(status.st_mode))
        for key in _attribute_names(source):
            try:
                os.setxattr(target, key, os.getxattr(source, key))
            except OSError as error:
                if error.errno not in (*_CANNOT, errno.ENODATA, errno.EPERM):
                    raise
                self.attributes_lost += 1
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _report(self) -> None:
        now_s = monotonic_s()
        if now_s - self._reported_at >= _REPORT_INTERVAL_S:
            self._reported_at = now_s
            say({"files": self.files, "bytes": self.bytes})


def _attribute_names(descriptor: int) -> list[str]:
    try:
        return [key for key in os.listxattr(descriptor) if key not in _NOT_COPIED]
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return []


def sync_filesystem(descriptor: int) -> None:
    """Make the whole filesystem durable, or raise. Source: syncfs(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(descriptor):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def say(line: dict[str, Any]) -> None:
    """Print *line* at once."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Do what the first argument asks for: flush, become the owner, copy."""
    request = json.loads(sys.argv[1])
    os.umask(0)
    copy = TreeCopy(fsync=request["fsync"])
    try:
        for path in request["flush"]:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            sync_filesystem(descriptor)
            os.close(descriptor)
        # The owner that we become may not pass the way to the two mounts.
        at = [os.open(request[key][0], os.O_PATH) for key in ("source", "target")]
        if request["uid"]:
            os.setegid(request["gid"])
            os.seteuid(request["uid"])
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        copy.run(
            os.open(request["source"][1], flags, dir_fd=at[0]),
            os.open(request["target"][1], flags, dir_fd=at[1]),
        )
    except OSError as error:
        name = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        say({"error": f"{error.strerror}{name}", "errno": error.errno})
    else:
        say(
            {
                "done": True,
                "files": copy.files,
                "bytes": copy.bytes,
                "attributes_lost": copy.attributes_lost,
            }
        )
