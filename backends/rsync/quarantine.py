"""
What was set apart: trees of bytes that a node wrote and that the cluster never got.

    <pool>/volumes/<id>/quarantine/<epoch.seq>/    one tree, under its commit's number

`Journal.keep_apart` puts them there. Only people delete them: `discard` renames one
into the trash. They are read by rsync and tar, which can be killed, and by `walk`,
which follows no link. Nobody writes to them any more. They are compared with `live`,
and containers may write to that.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from backends.base import VOLUME_ID
from backends.errors import BackendError, InvalidRequestError
from backends.rsync.pool import Pool, failed
from backends.system import files
from backends.system.beneath import Beneath, opened
from backends.system.clock import Deadline, rfc3339
from backends.system.jail import Shown
from backends.system.lines import lines_of
from backends.system.programs import in_jail
from backends.system.run import stream
from backends.system.walk import walk

_NAME: Final = "quarantine"
_SECTOR_BYTES: Final = 512  # of st_blocks, stat(2)
_COMMIT: Final = re.compile(r"(?:0|[1-9][0-9]{0,18})\.(?:0|[1-9][0-9]{0,18})")
# rsync is silent while it finds no difference: for as long as a scan of millions of
# names takes, or the reading of all that is in them.
_SCAN_STALL_S: Final = 600.0
_READ_STALL_S: Final = 6 * 3600.0
_TAR_STALL_S: Final = 300.0
# What a line of `rsync --itemize-changes` is. Source: rsync(1).
_ITEM: Final = re.compile(rb"@(\*deleting  |[<>ch.][fdLDS][^ ]{9}) (.+)", re.DOTALL)
_LINE_END: Final = re.compile(rb"\n")
_ESCAPED: Final = re.compile(rb"\\#([0-7]{3})")
_KINDS: Final = {"f": "file", "d": "directory", "L": "link", "D": "device", "S": "pipe"}
_WHAT: Final = {
    "c": "content",
    "s": "size",
    "t": "time",
    "T": "time",
    "p": "mode",
    "o": "owner",
    "g": "group",
    "a": "acl",
    "x": "attributes",
}


@dataclass(frozen=True, slots=True)
class Tree:
    """Bytes of volume *volume_id* that were set apart as *commit*, in *path*."""

    volume_id: str
    commit: str
    path: Path
    set_apart_at: str


@dataclass(frozen=True, slots=True)
class Size:
    """How much a tree holds; if it was not counted to its end (*whole*), at least."""

    files: int
    size_bytes: int
    whole: bool


@dataclass(frozen=True, slots=True)
class Change:
    """
    One path in which a tree differs from the volume's `live`.

    *added* is in the tree alone, *removed* in `live` alone; *what* of it *changed*.
    """

    change: Literal["added", "removed", "changed"]
    kind: str
    path: bytes
    what: tuple[str, ...] = ()


def check_commit(commit: str) -> str:
    """Return *commit* if it is a commit's number, or raise InvalidRequestError."""
    if _COMMIT.fullmatch(commit):
        return commit
    raise InvalidRequestError(
        f"'{commit[:80]}' is not a commit", hint="two numbers, such as 7.12"
    )


class Quarantine:
    """What was set apart of the volumes of *pool*."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def everything(self) -> list[Tree]:
        """
        Return every tree of the pool.

        Raises:
            BackendError: the pool is not there, or cannot be read.

        """
        self._pool.require()
        found = []
        try:
            for home in sorted(self._pool.volumes.iterdir()):
                found += self.of(home.name)
        except OSError as error:
            raise failed("cannot read the pool", error) from error
        self._pool.require()  # a disk that was unmounted meanwhile has shown nothing
        return found

    def of(self, volume_id: str) -> list[Tree]:
        """
        Return the trees of a volume, the oldest commit first; [] if it is no id.

        Raises:
            BackendError: they cannot be seen.

        """
        if not VOLUME_ID.fullmatch(volume_id):
            return []
        found = []
        try:
            with os.scandir(self._pool.volumes / volume_id / _NAME) as entries:
                for entry in entries:
                    if not (
                        _COMMIT.fullmatch(entry.name)
                        and entry.is_dir(follow_symlinks=False)
                    ):
                        continue
                    # The renaming that set it apart was the last change of it.
                    at = rfc3339(entry.stat(follow_symlinks=False).st_ctime)
                    found.append(Tree(volume_id, entry.name, Path(entry.path), at))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise failed("cannot see what was set apart", error) from error
        return sorted(found, key=lambda each: tuple(map(int, each.commit.split("."))))

    def find(self, volume_id: str, commit: str) -> Tree | None:
        """Return the tree of *commit*, None if there is none here."""
        check_commit(commit)
        return next(
            (each for each in self.of(volume_id) if each.commit == commit), None
        )

    def is_empty(self, volume_id: str) -> bool:
        """Return whether nothing lies there, not even what was never a commit."""
        try:
            with os.scandir(self._pool.volumes / volume_id / _NAME) as entries:
                return next(entries, None) is None
        except FileNotFoundError:
            return True
        except OSError as error:
            raise failed("cannot see what was set apart", error) from error

    def measure(self, tree: Tree, *, deadline_s: float) -> Size:
        """Return how much *tree* holds, as far as it is counted within *deadline_s*."""
        try:
            return _measured(tree.path, Deadline(deadline_s))
        except OSError as error:
            raise failed(f"cannot count commit {tree.commit}", error) from error

    def differences(self, tree: Tree, *, contents: bool) -> Iterator[Change | None]:
        """
        Yield in what *tree* differs from `live`, and None in each second of silence.

        Files of one size and time are the same, unless *contents* has them compared.

        Raises:
            BackendError, DeadlineError: it broke off; what was yielded is not all.

        """
        live = self._pool.volumes / tree.volume_id / "live"
        if not live.is_dir():
            raise BackendError(f"there is nothing to compare with: {live} has gone")
        command = [
            *("rsync", "--dry-run", "-aAXx", "--numeric-ids", "--modify-window=-1"),
            *("--omit-dir-times", "--omit-link-times", "--delete"),
            *(["--checksum"] if contents else []),
            *("--out-format=@%i %n", "--", "/apart/", "/live/"),
        ]
        jailed = in_jail(
            command,
            Shown("apart", str(tree.path)),
            Shown("live", str(live.parent), live.name),
        )
        stall_s = _READ_STALL_S if contents else _SCAN_STALL_S
        with Beneath(live) as beneath:
            for line in lines_of(stream(jailed, stall_s=stall_s), _LINE_END):
                item = _ITEM.fullmatch(line) if line else None
                if not line:
                    yield None
                elif item is not None:
                    yield _change(item[1].decode("ascii"), _plain(item[2]), beneath)

    def archive(self, tree: Tree) -> Iterator[bytes]:
        """
        Yield *tree* as a tar archive, with attributes, ACLs and holes; b"" as `stream`.

        Raises:
            BackendError, DeadlineError: it broke off; what was yielded is not all.

        """
        command = [
            *("tar", "--create", "--file=-", "--directory=/apart"),
            *("--format=posix", "--xattrs", "--acls", "--sparse"),
            *("--numeric-owner", "--one-file-system", "--", "."),
        ]
        return stream(
            in_jail(command, Shown("apart", str(tree.path))), stall_s=_TAR_STALL_S
        )

    def discard(self, tree: Tree) -> None:
        """
        Rename *tree* into the trash; one that has gone is no error.

        Raises:
            BackendError: the pool refuses; the tree is where it was.

        """
        self._pool.require()
        try:
            self._pool.trash.throw_away(tree.path)
            files.sync_directory(tree.path.parent)
        except FileNotFoundError:
            return
        except OSError as error:
            raise failed(f"cannot discard commit {tree.commit}", error) from error


def shown(path: bytes) -> str:
    r"""Return *path* as printable text that is no other path's: `\n`, `\xff`, `\\`."""
    if not path:
        return "."
    text = path.decode("utf-8", "surrogateescape").replace("\\", "\\\\")
    return "".join(_printable(character) for character in text)


def _printable(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character if character.isprintable() else repr(character)[1:-1]


def _plain(name: bytes) -> bytes:
    r"""Return the path that rsync prints as *name*, `\#012` being a line feed."""
    path = _ESCAPED.sub(lambda found: bytes([int(found[1], 8) & 0xFF]), name)
    return b"" if path == b"./" else path.removesuffix(b"/")


def _change(flags: str, path: bytes, live: Beneath) -> Change:
    """Return what an item of rsync's says; it names no kind of what it would delete."""
    if flags.startswith("*"):
        status = live.status(path)
        kind = _kind(status.st_mode) if status else "file"
        return Change("removed", kind, path)
    kind = _KINDS[flags[1]]
    if "+" in flags:
        return Change("added", kind, path)
    what = (_WHAT[each] for each in flags[2:] if each in _WHAT)
    return Change("changed", kind, path, tuple(dict.fromkeys(what)))


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "directory"
    if stat.S_ISLNK(mode):
        return "link"
    if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        return "device"
    return "file" if stat.S_ISREG(mode) else "pipe"


def _measured(top: Path, deadline: Deadline) -> Size:
    count = size_bytes = 0
    linked = set[int]()
    with opened(top) as directory:
        for _, _, _, status in walk(directory):
            if deadline.passed():
                return Size(count, size_bytes, whole=False)
            if not stat.S_ISDIR(status.st_mode):
                count += 1
                if stat.S_ISREG(status.st_mode) and status.st_ino not in linked:
                    size_bytes += min(status.st_size, _SECTOR_BYTES * status.st_blocks)
                if status.st_nlink > 1:
                    linked.add(status.st_ino)
    return Size(count, size_bytes, whole=True)
