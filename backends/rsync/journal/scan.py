"""
Compares a volume's directory with its manifest: what has to be sent, and what not.

Names come from whoever writes to the volume, and may be swapped while we look: no path
of more than one component is opened, no link is followed, and what vanishes meanwhile
has gone. What lies below a mount is left as the manifest has it: hidden, not gone.

A file whose ctime has moved counts as changed even if all else is as before: its times
can have been put back after a write, and nothing but its content would tell.

What has changed may be everything, and memory is not for that: it is told in parts, and
where hints lead to much, all is looked at instead.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from backends.errors import BackendError
from backends.replication_options import MAX_NAMES
from backends.rsync.journal import refusals
from backends.rsync.journal.entries import (
    Known,
    is_below,
    is_path,
    led_on,
    look,
    look_at,
    parent,
    same,
    topmost,
    untouched,
)
from backends.rsync.journal.manifest import Manifest
from backends.system import btrfs, libc
from backends.system.beneath import Beneath, name_in, opened
from backends.system.walk import Found, name_bytes_max, walk

# A changed path takes some 600 bytes; up to three parts are there at a time.
PART_MAX: Final = 10_000
# rsync gets it below "tree/", and takes 4,094 bytes. Source: rsync.h, MAXPATHLEN.
PATH_MAX_BYTES: Final = 4089
# Beyond, all names are looked at: that takes longer, but no more memory.
HINTED_MAX: Final = 50_000


class _TooManyError(Exception):
    """Hints lead to more than `HINTED_MAX` changes."""


@dataclass(frozen=True, slots=True)
class Changes:
    """
    What differs from the manifest; ``changed`` and ``deleted`` are for `record`.

    ``changed`` is in the order of the paths, parents first, and has all names of a file
    if it has one. ``deleted`` has the uppermost of what is gone. ``touched`` is for
    `touch`: nothing to send. The ``rest`` is found while `record` goes through it.
    """

    changed: list[Known]
    deleted: list[bytes]
    touched: list[Known]
    rest: Iterable[Changes] = ()

    def __bool__(self) -> bool:
        """Return whether there is anything to send, or may be."""
        return bool(self.changed or self.deleted or self.rest)


NOTHING: Final = Changes([], [], [])


def scan_all(
    root: Path,
    manifest: Manifest,
    *,
    written: Collection[bytes] = frozenset(),
    max_names: int = MAX_NAMES,
) -> Changes:
    """
    Return how the directory *root* differs from *manifest*; *written* as `scan_paths`.

    Raises:
        BackendError: *root*, or something in it, cannot be read, or has more than
            *max_names* names, or they are too long together.

    """
    parts = _parts(root, manifest, written, max_names)
    first = next(parts)
    return replace(first, rest=parts) if first.rest else first


def _parts(
    root: Path, manifest: Manifest, written: Collection[bytes], max_names: int
) -> Iterator[Changes]:
    """Yield what `scan_all` finds; all but the last part say that there is a rest."""
    with _scan(root, manifest, written, max_names) as scan:
        for _ in scan.look_at_everything():
            if scan.names > max_names:
                raise refusals.too_many_names(max_names)
            if scan.count() >= PART_MAX:
                yield replace(scan.pop(), rest=(NOTHING,))
        yield scan.pop()


def scan_paths(
    root: Path,
    manifest: Manifest,
    paths: Iterable[bytes],
    *,
    trees: Collection[bytes] = frozenset(),
    written: Collection[bytes] = frozenset(),
    max_names: int = MAX_NAMES,
) -> Changes:
    """
    Return how *root* differs from *manifest* at *paths*, which are only hints.

    The files in *written* count as changed if they are there. Looked at are also the
    directories of what has changed, all that is below new ones and *trees*, and the
    other names of files.

    Raises:
        BackendError: *root*, or something in it, cannot be read.

    """
    try:
        with _scan(root, manifest, written, max_names) as scan:
            scan.look_at_all({*paths, *written}, trees)
            return scan.pop()
    except _TooManyError:
        return scan_all(root, manifest, written=written, max_names=max_names)


@contextmanager
def _scan(
    root: Path, manifest: Manifest, written: Collection[bytes], max_names: int
) -> Iterator[_Scan]:
    try:
        # Not its name, which a snapshot gets while it is scanned.
        with opened(root) as top, Beneath(top) as beneath:
            yield _Scan(beneath, manifest, written, max_names)
    except OSError as error:
        if error.errno == errno.E2BIG:
            raise refusals.too_many_names(max_names) from error
        if error.errno == errno.ENAMETOOLONG:
            name = os.fsencode(name_in(error))
            raise refusals.too_long_names(name, max_names) from error
        raise BackendError(f"cannot scan {root}: {error}") from error


class _Scan:
    """One scan, and what it has found so far."""

    def __init__(
        self,
        beneath: Beneath,
        manifest: Manifest,
        written: Collection[bytes],
        max_names: int,
    ) -> None:
        self._max_names = max_names
        self.names = 0  # found by going through directories
        self._bytes_left = name_bytes_max(max_names)  # of their paths
        self._beneath = beneath
        self._manifest = manifest
        self._written = written
        self._trees: Collection[bytes] = ()
        # A root that is missing is an error, and not an empty volume.
        with beneath.opened(b"") as directory:
            self._device = os.fstat(directory).st_dev
            self._on_btrfs = libc.filesystem_type(directory) == btrfs.FILESYSTEM_TYPE
        self._changed: dict[bytes, Known] = {}
        self._touched: dict[bytes, Known] = {}
        self._deleted: set[bytes] = set()
        self._hidden: set[bytes] = set()
        self._walked: set[bytes] = set()
        self._inodes: set[int] = set()

    def look_at_all(self, paths: Iterable[bytes], trees: Collection[bytes]) -> None:
        """Compare *paths*, and what they lead to; of *trees* all that is below."""
        self._trees = trees
        done: set[bytes] = set()
        inodes: set[int] = set()
        wanted = {path for path in paths if is_path(path)}
        while wanted:
            leads: set[bytes] = set()
            for path in sorted(wanted):  # a new tree before what is in it
                if self.look_at(path):
                    leads.add(parent(path))
                self._require_few()
            done |= wanted
            for inode in self._inodes - inodes:
                leads.update(self._manifest.names(inode))
            inodes |= self._inodes
            wanted = leads - done

    def look_at(self, path: bytes) -> bool:
        """Compare *path*; return whether its directory has to be looked at too."""
        if is_below(path, self._walked) or is_below(path, self._deleted):
            return False
        found = self._beneath.find(path)
        if found is None:
            return True  # where its directory should be tells what has happened
        if path and os.fstat(found[0]).st_dev != self._device:
            self._hidden.add(parent(path))
            return False
        row = self._manifest.get(path)
        status = self._beneath.status(path)
        if status is not None and self._is_foreign(path, found, status):
            return False
        known = self._compare(path, found, status, row) if status is not None else None
        if known is None and row is not None:
            self._gone(row)
        is_directory = known is not None and known.entry.kind == "directory"
        was_directory = row is not None and row.entry.kind == "directory"
        if was_directory and not is_directory:
            for below in self._manifest.below(path):
                self._gone(below)
                self._require_few()
        # A directory with the same inode has sent its own hints for its entries; only
        # a new one has to be walked.
        same = was_directory and _same_inode(row, known) and path not in self._trees
        if is_directory and not same and path not in self._walked:
            for _ in self._look_below(path):
                self._require_few()
        # A name that was made and deleted between two looks leaves no row, but it has
        # moved its directory's mtime; so has one that looks as the one before it.
        is_new = known is None or path in self._changed
        return is_new or not _same_inode(row, known)

    def look_at_everything(self) -> Iterator[None]:
        """Compare all that there is; yield after each name, between which to `pop`."""
        with self._beneath.opened(b"") as directory:
            status = os.fstat(directory)
        row = self._manifest.get(b"")
        self._compare(b"", self._beneath.at(b""), status, row)
        yield from self._look_below(b"")

    def _look_below(self, path: bytes) -> Iterator[None]:
        """Compare all that is below the directory *path*; yield after each name."""
        rows = self._manifest.below(path)
        row = next(rows, None)
        for at, name, directory, status in self._walk(path):
            self.names += 1
            self._bytes_left -= len(at)
            if self._bytes_left < 0:
                raise refusals.too_long_names(at, self._max_names)
            if self._is_foreign(at, (directory, name), status):
                continue
            while row is not None and row.entry.path < at:
                self._gone(row)
                row = next(rows, None)
                yield
            if row is None or row.entry.path != at:
                self._compare(at, (directory, name), status, None)
            else:
                if self._compare(at, (directory, name), status, row) is None:
                    self._gone(row)
                row = next(rows, None)
            yield
        while row is not None:
            self._gone(row)
            row = next(rows, None)
            yield
        self._walked.add(path)

    def _is_foreign(
        self, path: bytes, found: tuple[int, bytes], status: os.stat_result
    ) -> bool:
        """
        Return whether what is at *path* is hidden by another filesystem, mounted there.

        Raises:
            BackendError: a subvolume is there, and no commit could have what is in it.

        """
        if status.st_dev == self._device:
            if not (self._on_btrfs and status.st_ino == btrfs.PLACEHOLDER_INODE):
                return False
        elif libc.is_mount(found[1], directory=found[0]):
            self._hidden.add(path)
            return True
        raise refusals.nested(path)

    def _require_few(self) -> None:
        if self.count() > HINTED_MAX:
            raise _TooManyError

    def count(self) -> int:
        """Return how many changes were found since the last `pop`."""
        return len(self._changed) + len(self._touched) + len(self._deleted)

    def pop(self) -> Changes:
        """Return what was found since the last call."""
        found = self._found()
        for each in (self._changed, self._touched, self._deleted, self._inodes):
            each.clear()
        return found

    def _found(self) -> Changes:
        self._complete_links()
        deleted = list(topmost(sorted(self._deleted - self._changed.keys())))
        gone = set(deleted)
        kept = [p for p in sorted(self._changed) if not is_below(p, gone)]
        return Changes(
            changed=[self._changed[path] for path in kept],
            deleted=deleted,
            touched=[self._touched[path] for path in sorted(self._touched)],
        )

    def _compare(
        self,
        path: bytes,
        found: tuple[int, bytes],
        status: os.stat_result,
        row: Known | None,
    ) -> Known | None:
        """Return what *path* is, and note whether that is as *row* has it."""
        written = path in self._written
        if row is not None and not written and untouched(row, status):
            return row
        if row is None and (len(path) > PATH_MAX_BYTES or not is_path(path)):
            raise refusals.too_long(path)
        refusals.require_few_holes(path, status)
        directory, name = found
        known = look(name, directory=directory, path=path)
        if known is not None:
            self._note(known, row, written=written)
        return known

    def _note(self, known: Known, row: Known | None, *, written: bool) -> None:
        path = known.entry.path
        is_file = known.entry.kind == "file"
        if row is not None and same(row.entry, known.entry):
            moved = (row.inode, row.ctime_ns) != (known.inode, known.ctime_ns)
            if not moved and not (written and is_file):
                return
            if not is_file:
                self._touched[path] = known
                return
        self._changed[path] = known if written else led_on(row, known)
        for each in (known, row):
            if each is not None and each.entry.kind != "directory":
                self._inodes.add(each.inode)

    def _gone(self, row: Known) -> None:
        path = row.entry.path
        if path in self._hidden or is_below(path, self._hidden):
            return
        self._deleted.add(path)
        if row.entry.links:
            self._inodes.add(row.inode)

    def _complete_links(self) -> None:
        """Add the other names of changed files: a member may not have them linked."""
        linked = {each.inode for each in self._changed.values() if each.entry.links}
        for inode in linked:
            for row in self._manifest.with_inode(inode):
                path = row.entry.path
                if path in self._changed:
                    continue
                status = self._beneath.status(path)
                if status is None or status.st_dev != self._device:
                    continue
                known = look_at(self._beneath, path)
                if known is not None and known.inode == inode:
                    self._changed[path] = led_on(row, known)
                    self._touched.pop(path, None)

    def _walk(self, path: bytes) -> Iterator[Found]:
        """Yield what is below the directory *path*, nothing if that has gone."""
        with ExitStack() as stack:
            # Of the opening alone: an error on the way is no end of what there is.
            try:
                directory = stack.enter_context(self._beneath.opened(path))
            except (FileNotFoundError, NotADirectoryError):
                return
            yield from walk(directory, path=path, names_max=self._max_names)


def _same_inode(one: Known | None, other: Known | None) -> bool:
    return one is not None and other is not None and one.inode == other.inode
