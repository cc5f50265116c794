"""
Copies a directory tree; a program of its own, so that it can be killed.

Each file is copied as `copy_file.py` does it. Owners, modes, times, extended attributes
with ACLs, and hard links are kept. What lies on another filesystem below the source is
left out.

The source may be written to by others, who may swap a directory for a symbolic link at
any moment: nothing is opened by a path of more than one component.

It takes one JSON argument (`Request`), prints lines of JSON while it works, `files` and
`bytes` so far, and at last one with `done` or `error`.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from backends.system import libc
from backends.system.clock import monotonic_s
from backends.system.copy_file import FileCopier

_REPORT_INTERVAL_S = 0.5


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
    """One copy, file by file with *copier*."""

    copier: FileCopier
    files: int = 0
    _root_target: int = -1
    _device: int = 0
    _linked: dict[int, str] = field(default_factory=dict)
    _reported_at: float = 0.0

    def run(self, source: int, target: int) -> None:
        """Copy directory *source* into the empty directory *target*; durably."""
        self.copier.on_progress = self._report
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
        libc.sync_filesystem(self._root_target)
        os.close(self._root_target)

    def _open_level(self, source: int, target: int, path: str) -> _Level:
        names = iter(os.listdir(source))
        return _Level(source, target, path, names, os.fstat(source))

    def _finish_level(self, level: _Level) -> None:
        """Give the directory its owner and times, which its entries have changed."""
        self.copier.copy_attributes(level.source, level.target, level.status)
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
        copied = self.copier.copy(
            name, status, source=level.source, target=level.target
        )
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
    """Do what the first argument asks for: flush, become the owner, copy."""
    request = json.loads(sys.argv[1])
    os.umask(0)
    copy = TreeCopy(FileCopier(fsync=request["fsync"]))
    try:
        for path in request["flush"]:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            libc.sync_filesystem(descriptor)
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
                "bytes": copy.copier.size_bytes,
                "attributes_lost": copy.copier.attributes_lost,
            }
        )
