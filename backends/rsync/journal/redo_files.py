"""The redo files of a commit: how they are made, and what a member does with them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backends.errors import BackendError
from backends.rsync.journal.delta import Header
from backends.rsync.journal.entries import (
    Commit,
    Entry,
    Known,
    certain,
    look_at,
    untouched,
)
from backends.rsync.journal.fitting import Fitting
from backends.rsync.journal.giving import give_attributes
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.redo import DataWriter, Redo
from backends.system.beneath import Beneath
from backends.system.copy_file import (
    FileCopier,
    is_cloned,
)
from backends.system.ranges import Range
from backends.system.regular_files import NotRegularError, open_regular


@contextmanager
def opened_file(
    tree: Beneath, path: bytes, flags: int = os.O_RDONLY
) -> Iterator[int | None]:
    """Yield the regular file *path* in *tree*, opened; None if there is none."""
    found = tree.find(path)
    try:
        file = found and open_regular(found[1], flags, dir_fd=found[0])
    except (FileNotFoundError, NotRegularError):
        file = None
    try:
        yield file
    finally:
        if file is not None:
            os.close(file)


@contextmanager
def opened_in(top: Path, path: bytes) -> Iterator[int | None]:
    """Yield the regular file *path* in *top*, opened; None if there is none."""
    with Beneath(top) as tree, opened_file(tree, path) as file:
        yield file


def row_of(
    redo_files: Beneath, before: Known, begun_ns: int, *, is_read: bool
) -> Known:
    """Return the row of the file that was *before*, and has a redo file now."""
    path = before.entry.path
    made = look_at(redo_files, path)
    with opened_file(redo_files, path) as file:
        if made is None or file is None:
            raise BackendError(f"the redo file of {path!r} has vanished")
        size = Redo(file).table.size
    entry = msgspec.structs.replace(made.entry, size=size)
    known = Known(entry, before.inode, before.ctime_ns)
    return certain(known, begun_ns, is_read=is_read)


@dataclass(frozen=True, slots=True)
class Made:
    """What a redo file that is made leads on: *path*, from *base* to *commit*."""

    path: bytes
    base: Commit
    commit: Commit


@contextmanager
def writing_redo(tree: Beneath, path: bytes) -> Iterator[int]:
    """Yield a new file *path* in *tree*, opened; if the block fails, it goes."""
    directory, name = tree.at(path, make=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW
    redo = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        yield redo
    except BaseException:
        # The file's copy needs the room.
        directory, name = tree.at(path)
        os.unlink(name, dir_fd=directory)
        raise
    finally:
        os.close(redo)


def write_redo(
    tree: Beneath,
    made: Made,
    parts: Iterable[tuple[int, Iterable[Range]]],
    *,
    size: int,
    like: tuple[int, os.stat_result],
) -> None:
    """
    Write the redo file *made* into *tree*, of a file of *size* bytes.

    It has what each open file of *parts*, to which nobody writes, has in the ranges
    beside it. Owner, mode, times and attributes are those of the open file *like*, as
    its status says.
    """
    with writing_redo(tree, made.path) as redo:
        writer = DataWriter(redo)
        for source, ranges in parts:
            writer.copy(source, ranges)
        writer.finish(made.path, made.base, made.commit, size)
        file, status = like
        FileCopier().copy_attributes(file, redo, status)


@dataclass(frozen=True, slots=True)
class RedoFiles:
    """Those in *tree*, for the commit of *header* and the files in *live*."""

    tree: Beneath
    live: Beneath
    header: Header

    @contextmanager
    def opened(self, path: bytes) -> Iterator[tuple[Redo, int] | None]:
        """Yield the redo file of *path*, and what it is open as; None without one."""
        with opened_file(self.tree, path) as file:
            redo = None
            if file is not None and self._is_ours(path, found := Redo(file)):
                redo = found, file
            yield redo

    def _is_ours(self, path: bytes, redo: Redo) -> bool:
        table, header, base = redo.table, self.header, self.header.base
        ours = (table.path, table.commit) == (path, header.commit)
        return ours and base is not None and table.base <= base

    def lead_to(self, entry: Entry, manifest: Manifest, fitting: Fitting) -> int | None:
        """
        Return the bytes to write into *entry*'s file; None if all of it has to come.

        The file has to be as *manifest* knows it, and what came to be whole. It is
        opened as when it will be written: once marked, there is no other way.
        """
        row, status = manifest.get(entry.path), self.live.status(entry.path)
        if row is None or status is None or not untouched(row, status):
            return None
        if entry.links or row.entry.kind != "file":
            return None
        try:
            with (
                self.opened(entry.path) as found,
                opened_file(self.live, entry.path, os.O_RDWR),
            ):
                if found is None or not self._looks_like(entry, found[0], fitting):
                    return None
                found[0].require_data()
                return sum(length for _, length in found[0].ranges)
        except (BackendError, OSError):
            return None  # rsync leaves a part of one, or it came from who knows when

    def _looks_like(self, entry: Entry, redo: Redo, fitting: Fitting) -> bool:
        """Return whether *redo*'s file has all of *entry* but the content."""
        known = look_at(self.tree, entry.path)
        if known is None:
            return False
        found = msgspec.structs.replace(known.entry, size=redo.table.size)
        return fitting.fits(entry, found)

    def write(
        self, entry: Entry, staged: Beneath | None, note: Callable[[Redo, int], None]
    ) -> bool:
        """
        Write *entry*'s redo file into its file; return whether there is one.

        *note* is called with both, as long as they are open. What an earlier run has
        written is written once more. If *staged* is given, the file is cloned there,
        and written to there: a volume with a limit would count what is written over
        until it is freed. That file may not be cloned (its blocks are never copied on
        write, or the filesystem's cannot be shared): then what is written over is not
        counted twice either.
        """
        if staged is not None and self._write_clone(entry, staged, note):
            return True
        with (
            self.opened(entry.path) as found,
            opened_file(self.live, entry.path, os.O_RDWR) as target,
        ):
            if found is None or target is None:
                return False
            _write(entry, *found, target)
            note(found[0], target)
        return True

    def _write_clone(
        self, entry: Entry, staged: Beneath, note: Callable[[Redo, int], None]
    ) -> bool:
        with (
            self.opened(entry.path) as found,
            opened_file(self.live, entry.path) as source,
        ):
            if found is None or source is None:
                return False
            directory, name = staged.at(entry.path, make=True)
            made = secrets.token_hex(8).encode()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            target = os.open(made, flags, 0o600, dir_fd=directory)
            try:
                if not is_cloned(source, target):
                    os.unlink(made, dir_fd=directory)
                    return False
                _write(entry, *found, target)
                note(found[0], target)
            finally:
                os.close(target)
            os.rename(made, name, src_dir_fd=directory, dst_dir_fd=directory)
        return True


def _write(entry: Entry, redo: Redo, file: int, target: int) -> None:
    """Give the open *target* what *entry* and *redo*, open as *file*, say and have."""
    redo.write_to(target)
    give_attributes(entry, target, file)
