"""
Copies a directory tree; a program of its own, so that it can be killed.

Each file is copied as `copy_file.py` does it. Owners, modes, times, extended attributes
with ACLs, and hard links are kept. What lies on another filesystem below the source is
left out.

The source may be written to by others, who may swap a directory for a symbolic link at
any moment: nothing is opened by a path of more than one component, and that in a jail.

It takes one JSON argument (`Request`), prints lines of JSON while it works, `files` and
`bytes` so far, and at last one with `done` or `error`.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from backends.system import jail, libc
from backends.system.beneath import Beneath, name_in, open_directory, opened
from backends.system.clock import monotonic_s
from backends.system.copy_file import FileCopier
from backends.system.first_names import FirstNames, identity_of
from backends.system.walk import walk

_REPORT_INTERVAL_S = 0.5
# Of deeper trees, the paths that have to be kept would take gigabytes.
_PATH_LENGTH_MAX = 16 * 1024
_NESTED = "what a container has made a subvolume cannot be copied: remove it"
_INTO_ITSELF = "the copy would hold itself: what it is made in lies in the source"
_AFTER_SLASH = b"0"  # the byte after "/": so all that begins with "a/" is before "a0"


@dataclass(frozen=True)
class _Directory:
    """A directory of the copy, and what it gets when all that is in it is there."""

    path: bytes
    status: os.stat_result
    has_acls: bool


class _Ends(NamedTuple):
    source: Beneath
    target: Beneath
    target_top: int

    def is_target(self, status: os.stat_result) -> bool:
        """
        Return whether *status* is the target's, through whatever mount it was seen.

        Another mount of an NFS export has another device's number.
        """
        target = os.fstat(self.target_top)
        return (status.st_ino, status.st_ctime_ns) == (
            target.st_ino,
            target.st_ctime_ns,
        )


@dataclass
class TreeCopy:
    """One copy, file by file with *copier*."""

    copier: FileCopier
    files: int = 0
    # Directories that may still get an entry, each after the one that it is in.
    _unfinished: list[_Directory] = field(default_factory=list)
    _first_names: FirstNames = field(default_factory=FirstNames)
    _reported_at: float = 0.0

    def run(self, source: int, target: int) -> None:
        """Copy directory *source* into the empty directory *target*; durably."""
        self.copier.on_progress = self._report
        device = os.fstat(source).st_dev
        with Beneath(source) as original, Beneath(target) as made:
            ends = _Ends(original, made, target)
            self._begin(b"", source, b".", ends)
            for path, name, directory, status in walk(
                source, enter=lambda path: self._is_begun(path, ends)
            ):
                self._finish_before(path, ends)
                if not stat.S_ISDIR(status.st_mode):
                    self._copy_file(path, name, status, directory, made)
                elif status.st_dev != device:
                    # A mount was not shown to this program: see `jail.enter`.
                    raise OSError(errno.EXDEV, _NESTED, path)
                else:
                    self._begin(path, directory, name, ends)
                self._report()
            while self._unfinished:
                self._finish_last(ends)
        libc.sync_filesystem(target)

    def _begin(self, path: bytes, above: int, name: bytes, ends: _Ends) -> None:
        """Make directory *name* as *path* in the copy, if it is still there."""
        if len(path) > _PATH_LENGTH_MAX:
            raise OSError(errno.ENAMETOOLONG, "a path is too long", path[:100])
        try:
            directory = open_directory(name, dir_fd=above)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            status = os.fstat(directory)
            if ends.is_target(status):
                raise OSError(errno.ELOOP, _INTO_ITSELF, path)
            if path:
                at, _ = ends.target.at(path)
                os.mkdir(name, 0o700, dir_fd=at)
            with ends.target.opened(path) as made:
                has_acls = self.copier.begin_directory(directory, made)
            self._unfinished.append(_Directory(path, status, has_acls))
        finally:
            os.close(directory)

    def _is_begun(self, path: bytes, ends: _Ends) -> bool:
        """Return whether there is a copy of the directory *path* to copy into."""
        self._finish_before(path + b"/", ends)
        return self._unfinished[-1].path == path

    def _finish_before(self, path: bytes, ends: _Ends) -> None:
        """Finish the directories that nothing can come into from *path* on."""
        while (last := self._unfinished[-1].path) and path >= last + _AFTER_SLASH:
            self._finish_last(ends)

    def _finish_last(self, ends: _Ends) -> None:
        """Give the last directory its owner and times, which its entries change."""
        done = self._unfinished.pop()
        acls_of = ends.source if done.has_acls else None
        self.copier.finish_directory(ends.target, done.path, done.status, acls_of)

    def _copy_file(
        self,
        path: bytes,
        name: bytes,
        status: os.stat_result,
        directory: int,
        made: Beneath,
    ) -> None:
        """Copy what is no directory; what vanishes while we look was not there."""
        self.files += 1
        linked = status.st_nlink > 1
        is_file = identity_of(name, directory=directory) if linked else None
        if is_file and (first := self._first_names.find(is_file)) is not None:
            made.link(first, path)
            return
        target, _ = made.at(path)
        copied = self.copier.copy(name, status, source=directory, target=target)
        # Another one may have come to the name before it was opened.
        if copied and is_file and identity_of(name, directory=directory) == is_file:
            self._first_names.add(is_file, path)

    def _report(self) -> None:
        now_s = monotonic_s()
        if now_s - self._reported_at >= _REPORT_INTERVAL_S:
            self._reported_at = now_s
            say({"files": self.files, "bytes": self.copier.size_bytes})


def say(line: dict[str, Any]) -> None:
    """Print *line* at once."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Do what the first argument asks for: flush, go into a jail, copy there."""
    request = json.loads(sys.argv[1])
    os.umask(0)
    copy = TreeCopy(FileCopier(fsync=request["fsync"]))
    try:
        for path in request["flush"]:
            with opened(path) as directory:
                libc.sync_filesystem(directory)
        uid, gid = request["uid"], request["gid"]
        (top, path), (new_top, new_path) = request["source"], request["target"]
        jail.enter(
            jail.Shown("source", top, path, uid=uid, gid=gid),
            jail.Shown("target", new_top, new_path, writable=True, uid=uid, gid=gid),
            capabilities=jail.WRITING_AS_OWNER,
            own_files=True,
        )
        with jail.as_user(uid, gid):
            copy.run(open_directory("/source"), open_directory("/target"))
    except OSError as error:
        name = f" ({found})" if (found := name_in(error)) else ""
        say({"error": f"{error.strerror}{name}", "errno": error.errno})
    else:
        say(
            {
                "done": True,
                "files": copy.files,
                "bytes": copy.copier.size_bytes,
                "attributes_lost": copy.copier.attributes_lost,
            }
        )
