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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from backends.errors import BackendError
from backends.rsync.journal.entries import Known, certain, look_at
from backends.system import btrfs
from backends.system.beneath import Beneath
from backends.system.clock import wall_ns
from backends.system.copy_file import FileCopier
from backends.system.copying import CopyError
from backends.system.files import free_bytes, remove_tree
from backends.system.first_names import FirstNames, identity_of

TREE_NAME: Final = "tree"
# Most files that are written to hold still for as long as it takes to copy a small one.
_TRIES_MAX: Final = 4
_SMALL_MAX_BYTES: Final = 16 * 2**20
# What stays free for others: a part of the filesystem, but no more than so much.
_RESERVE: Final = 20
_RESERVE_BYTES_MAX: Final = 4 * 2**30
# What is to come without a size may be deletions, which a full disk needs most.
_LEAST_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class Filled:
    """
    What is in the outbox now.

    Each of ``entries`` describes a copy; its inode and ctime are the source's from
    before copying, so that a later write shows. The files ``gone`` have vanished.
    """

    entries: list[Known]
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
    reserve = min(total // _RESERVE, _RESERVE_BYTES_MAX) if size_bytes else _LEAST_BYTES
    if available >= size_bytes + reserve:
        return ""
    return (
        f"{path} has {available >> 20} MiB free; {size_bytes >> 20} MiB and "
        f"{reserve >> 20} MiB of reserve are needed"
    )


def fill(root: Path, entries: Iterable[Known], outbox: Path) -> Filled:
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
        filling = _Filling(source, target, FileCopier(flush_source=True))
        try:
            for known in entries:
                filling.copy(known.entry.path)
            return filling.finish()
        except OSError as error:
            name = os.fsdecode(error.filename or "")
            raise CopyError(
                f"cannot copy {root}: {error.strerror} {name}".rstrip(),
                no_space=error.errno in (errno.ENOSPC, errno.EDQUOT),
            ) from error


def fill_from(snapshot: Path, entries: list[Known], outbox: Path) -> Filled:
    """
    Make *outbox*/tree a snapshot of *snapshot*, which has *entries*.

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
    return Filled(entries, [])


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
    gone: set[bytes] = field(default_factory=set)
    # What each copied path was in the source, and from when that is.
    before: dict[bytes, tuple[os.stat_result, int]] = field(default_factory=dict)
    first: FirstNames = field(default_factory=FirstNames)
    attributes: dict[bytes, dict[str, bytes]] = field(default_factory=dict)

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
            self.before.setdefault(path, (status, begun_ns))
            if not tries_left or not self._has_changed(path, status):
                return
            directory, name = self.target.at(path)
            os.unlink(name, dir_fd=directory)
            del self.before[path]

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
            return self._copy_directory(path)
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

    def _copy_directory(self, path: bytes) -> bool:
        """Make the directory; it gets its owner and times when it has its entries."""
        try:
            with self.source.opened(path) as directory:
                attributes = self.copier.read_attributes(directory)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if path:
            above, name = self.target.at(path, make=True)
            os.mkdir(name, 0o700, dir_fd=above)
        if attributes:
            self.attributes[path] = attributes
        return True

    def finish(self) -> Filled:
        """Give directories what they have to have, and look at what has been made."""
        for path, (status, _) in sorted(self.before.items(), reverse=True):
            if stat.S_ISDIR(status.st_mode):
                with self.target.opened(path) as directory:
                    attributes = self.attributes.get(path, {})
                    self.copier.put_attributes(directory, status, attributes)
        entries = [self._made(path) for path in sorted(self.before)]
        return Filled(entries, sorted(self.gone))

    def _made(self, path: bytes) -> Known:
        before, begun_ns = self.before[path]
        made = look_at(self.target, path)
        if made is None:
            raise BackendError(f"{path!r} has vanished from the outbox")
        entry = made.entry
        links = before.st_ino if entry.links else 0
        linked = msgspec.structs.replace(entry, links=links)
        return certain(Known(linked, before.st_ino, before.st_ctime_ns), begun_ns)
