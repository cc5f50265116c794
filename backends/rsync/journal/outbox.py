"""
Copies what has changed once, so that all members get the same bytes.

Containers write to the source meanwhile. So each copy is looked at when it is made, and
its entry says what the copy holds. What is remembered of the source is from before it
was copied: a file that changes while it is copied counts as changed at the next look.
Small files are copied again until they are of one moment, four times at most.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from backends.errors import BackendError
from backends.rsync.journal import refusals
from backends.rsync.journal.entries import Entry, Known, certain_ns, look_at
from backends.rsync.journal.redo import TREE_NAME as REDO_NAME
from backends.system import btrfs
from backends.system.beneath import Beneath, name_in, open_directory
from backends.system.clock import wall_ns
from backends.system.copy_file import FileCopier, can_share
from backends.system.copying import CopyError
from backends.system.files import free_bytes, remove_tree
from backends.system.first_names import FirstNames, identity_of

OUTBOX_NAME: Final = "outbox"
TREE_NAME: Final = "tree"
# Most files that are written to hold still for as long as it takes to copy a small one.
_TRIES_MAX: Final = 4
_SMALL_MAX_BYTES: Final = 16 * 2**20
# Holes in smaller files are not looked for. Source: stat(2), st_blocks.
SPARSE_FROM_BYTES: Final = 16 * 2**20
SECTOR_BYTES: Final = 512
# What stays free for others: a part of the filesystem, but no more than so much.
_RESERVE: Final = 20
_RESERVE_BYTES_MAX: Final = 4 * 2**30
_SMALL_PART: Final = 16
# What is to come without a size may be deletions, which a full disk needs most.
_LEAST_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class Filled:
    """
    What is in the outbox now.

    Each of ``entries`` describes a copy; its inode and ctime are the source's from
    before copying, so that a later write shows. They are looked up while they are gone
    through: there may be millions. The files ``gone`` have vanished.
    """

    entries: Iterable[Known]
    gone: list[bytes]


def require_space(path: Path, size_bytes: int) -> None:
    """
    Check that *size_bytes* more fit on *path*'s filesystem, with a reserve to spare.

    Raises:
        CopyError: they do not.

    """
    if lacking := lacking_space(path, size_bytes):
        raise CopyError(lacking, no_space=True)


def lacking_space(path: Path, size_bytes: int) -> str:
    """Return why *size_bytes* more do not fit on *path*'s filesystem, "" if they do."""
    total, available = free_bytes(path)
    reserve = _reserve_bytes(total) if size_bytes else _LEAST_BYTES
    if available >= size_bytes + reserve:
        return ""
    return (
        f"{path} has {available >> 20} MiB free; {size_bytes >> 20} MiB and "
        f"{reserve >> 20} MiB of reserve are needed"
    )


def room_bytes(path: Path) -> int:
    """Return how much more fits on *path*'s filesystem, with the reserve to spare."""
    total, available = free_bytes(path)
    return available - _reserve_bytes(total)


def left_free_bytes(path: Path) -> int:
    """
    Return what has to stay free on *path*'s filesystem when a redo file is written.

    A small part of what is free may be taken in any case: to send the file whole, for
    lack of room here, costs much elsewhere.
    """
    total, available = free_bytes(path)
    return min(_reserve_bytes(total), available - available // _SMALL_PART)


def _reserve_bytes(total_bytes: int) -> int:
    return min(total_bytes // _RESERVE, _RESERVE_BYTES_MAX)


def fill(
    root: Path,
    entries: Iterable[Known],
    outbox: Path,
) -> Filled:
    """
    Copy *entries*, in order of their paths, from *root* into *outbox*/tree, made anew.

    Names of one file are linked with each other. Directories that *entries* lack, with
    entries below, are made for root alone.

    Raises:
        CopyError: a file could not be read or written.

    """
    tree = outbox / TREE_NAME
    remove_tree(tree)
    with writing(outbox):
        tree.mkdir(mode=0o700, parents=True)
    with Beneath(root) as source, Beneath(tree) as target:
        copier = FileCopier(flush_source=True)
        filling = _Filling(source, target, copier, not can_share(tree))
        try:
            for known in entries:
                filling.copy(known.entry.path)
            return filling.finish(tree)
        except OSError as error:
            raise CopyError(
                f"cannot copy {root}: {error.strerror} {name_in(error)}".rstrip(),
                no_space=error.errno in (errno.ENOSPC, errno.EDQUOT),
            ) from error


def fill_from(snapshot: Path, outbox: Path) -> None:
    """
    Make *outbox*/tree a snapshot of *snapshot*.

    Raises:
        CopyError: btrfs has none to give.

    """
    try:
        btrfs.snapshot(snapshot, outbox / TREE_NAME)
    except OSError as error:
        raise CopyError(
            f"cannot take a snapshot of {snapshot}: {error.strerror}",
            no_space=error.errno in (errno.ENOSPC, errno.EDQUOT),
        ) from error


def held_bytes(tree: Beneath, entry: Entry) -> int:
    """
    Return what the file of *entry* in *tree* holds: less than its size, maybe.

    Raises:
        BackendError: it has holes that no commit can have.

    """
    if entry.size < SPARSE_FROM_BYTES:
        return entry.size
    status = tree.status(entry.path)
    if status is None:
        return 0
    refusals.require_few_holes(entry.path, status)
    return min(entry.size, status.st_blocks * SECTOR_BYTES)


def listed(
    outbox: Path, entries: Iterable[Known], redo: Collection[bytes]
) -> tuple[bytes, int]:
    """
    Return the names that rsync has to send for *entries*, and what they hold.

    Of the files *redo* that is only what changes in them.
    """
    names, size_bytes, linked = bytearray(), 0, set[int]()
    top, redo_top = TREE_NAME.encode(), REDO_NAME.encode()
    with Beneath(outbox / TREE_NAME) as tree, Beneath(outbox / REDO_NAME) as changes:
        for known in entries:
            entry = known.entry
            if entry.path in redo:
                names += redo_top + b"/" + entry.path + b"\0"
                status = changes.status(entry.path)
                size_bytes += status.st_size if status else 0
                continue
            if entry.kind != "directory" or entry.attributes:  # else it is made there
                names += b"/".join(filter(None, (top, entry.path))) + b"\0"
            if entry.links not in linked:
                size_bytes += held_bytes(tree, entry)
            linked.update(filter(None, (entry.links,)))
    return bytes(names), size_bytes


def new_outbox(directory: Path) -> Path:
    """
    Return a new directory in *directory*, which is made if need be.

    Raises:
        CopyError: the disk refuses.

    """
    with writing(directory):
        directory.mkdir(mode=0o700, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=directory, prefix=""))


def unpack(outbox: Path) -> None:
    """Remove *outbox*, and the directory of all of them if it was the last one."""
    btrfs.delete(outbox / TREE_NAME)
    remove_tree(outbox)
    with suppress(OSError):
        outbox.parent.rmdir()


def unpack_all(directory: Path) -> None:
    """Remove all outboxes of *directory*, and the one of earlier versions."""
    for tree in (directory / TREE_NAME, *directory.glob(f"*/{TREE_NAME}")):
        btrfs.delete(tree)
    remove_tree(directory)


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Raise CopyError if *directory* cannot be written to."""
    try:
        yield
    except OSError as error:
        raise CopyError(
            f"cannot write to {directory}: {error.strerror}",
            no_space=error.errno in (errno.ENOSPC, errno.EDQUOT),
        ) from error


@dataclass(slots=True)
class _Filling:
    source: Beneath
    target: Beneath
    copier: FileCopier
    is_read: bool
    gone: set[bytes] = field(default_factory=set)
    # Inode and ctime of each copied path in the source, from before.
    before: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    directories: dict[bytes, os.stat_result] = field(default_factory=dict)
    first: FirstNames = field(default_factory=FirstNames)
    with_acls: set[bytes] = field(default_factory=set)

    def copy(self, path: bytes) -> None:
        """Copy *path* if it is there, and a small file again while it changes."""
        for tries_left in range(_TRIES_MAX - 1, -1, -1):
            begun_ns = wall_ns()
            status = self.source.status(path)
            # A directory that has come back meanwhile is new in the next round.
            is_gone = status is None or path.rpartition(b"/")[0] in self.gone
            if status is None or is_gone or not self._copy(path, status):
                self.gone.add(path)
                return
            # A further name of a file is what its first one was.
            self.before.setdefault(path, self._known_by(status, begun_ns))
            if not tries_left or not self._has_changed(path, status):
                return
            directory, name = self.target.at(path)
            os.unlink(name, dir_fd=directory)
            del self.before[path]

    def _known_by(self, status: os.stat_result, begun_ns: int) -> tuple[int, int]:
        """Return the inode and ctime of what *status* says; see `certain`."""
        ctime_ns = status.st_ctime_ns
        if stat.S_ISREG(status.st_mode):
            ctime_ns = certain_ns(ctime_ns, begun_ns, is_read=self.is_read)
        return status.st_ino, ctime_ns

    def _has_changed(self, path: bytes, status: os.stat_result) -> bool:
        """Return whether a small file's copy may be of two moments."""
        is_small = stat.S_ISREG(status.st_mode) and status.st_size <= _SMALL_MAX_BYTES
        if not is_small or status.st_nlink > 1:
            return False
        now = self.source.status(path)
        return now is not None and (
            (now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
            != (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        )

    def _copy(self, path: bytes, status: os.stat_result) -> bool:
        """Return whether *path* was there to be copied."""
        if stat.S_ISDIR(status.st_mode):
            return self._copy_directory(path, status)
        where = self.source.find(path)
        if where is None:
            return False
        at, name = where
        is_file = identity_of(name, directory=at) if status.st_nlink > 1 else None
        if is_file and (first := self.first.find(is_file)) is not None:
            self.target.link(first, path)
            # The copy is what the first one was then: a change since is a change.
            self.before[path] = self.before[first]
            return True
        directory, name = self.target.at(path, make=True)
        done = self.copier.copy(name, status, source=at, target=directory)
        # Another one may have come to the name before it was opened.
        if done and is_file and identity_of(name, directory=at) == is_file:
            self.first.add(is_file, path)
        return done

    def _copy_directory(self, path: bytes, status: os.stat_result) -> bool:
        """Make the directory; it gets its owner and times when it has its entries."""
        try:
            at, name = self.source.at(path)
            source = open_directory(name, dir_fd=at)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            if path:
                above, name = self.target.at(path, make=True)
                os.mkdir(name, 0o700, dir_fd=above)
            with self.target.opened(path) as made:
                if self.copier.begin_directory(source, made):
                    self.with_acls.add(path)
        finally:
            os.close(source)
        self.directories[path] = status
        return True

    def finish(self, tree: Path) -> Filled:
        """Give directories what they have to have; return what is in *tree* now."""
        for path, status in sorted(self.directories.items(), reverse=True):
            acls_of = self.source if path in self.with_acls else None
            self.copier.finish_directory(self.target, path, status, acls_of)
        return Filled(_Made(tree, self.before), sorted(self.gone))


@dataclass(frozen=True, slots=True)
class _Made:
    """The copies in *tree*, by what each was *before* it was copied."""

    tree: Path
    before: Mapping[bytes, tuple[int, int]]

    def __iter__(self) -> Iterator[Known]:
        try:
            with Beneath(self.tree) as tree:
                for path in sorted(self.before):
                    yield self._known(tree, path)
        except OSError as error:
            raise CopyError(f"cannot read {self.tree}: {error.strerror}") from error

    def _known(self, tree: Beneath, path: bytes) -> Known:
        made = look_at(tree, path)
        if made is None:
            raise BackendError(f"{path!r} has vanished from the outbox")
        held_bytes(tree, made.entry)  # holes may have come since the last look
        inode, ctime_ns = self.before[path]
        links = inode if made.entry.links else 0
        linked = msgspec.structs.replace(made.entry, links=links)
        return Known(linked, inode, ctime_ns)
