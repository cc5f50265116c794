"""
Files that keep their content: of them a commit carries attributes and a digest.

    attributes/    beside tree/ and redo/: empty files, for those that have extended
                   attributes, with these

Which file keeps its content the owner guesses, by inode, size and mtime. What it then
tells is no guess: a digest of the bytes that the file has. A member whose own file has
the same bytes gives it the attributes; any other one asks for the file. So nothing has
to be known of what the file was.
"""

from __future__ import annotations

import errno
import hashlib
import os
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from backends.errors import BackendError
from backends.rsync.journal.entries import (
    DIGEST_BYTES,
    DOUBTED,
    UNWRITTEN,
    Commit,
    Entry,
    Known,
    certain,
    look_at,
    same,
    untouched,
)
from backends.rsync.journal.fitting import Fitting
from backends.rsync.journal.giving import give_attributes
from backends.rsync.journal.large_files import is_large
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.outbox import SECTOR_BYTES, left_free_bytes
from backends.rsync.journal.redo_files import opened_file
from backends.system.beneath import Beneath
from backends.system.clock import Deadline, wall_ns
from backends.system.copy_file import FileCopier
from backends.system.files import free_bytes
from backends.system.libc import write_out

ATTRIBUTES_NAME: Final = "attributes"
# Who lacked so many that were only told of is sent the others as well: a program that
# puts times back has written them.
_REFUSED_MAX: Final = 100
# An owner waits for an answer, but not for ever; what a member has not read by then is
# sent.
_READ_WITHIN_S: Final = 300.0
# As large as inodes are, of which ext4 uses the rest (inline_data). Source: ext4(5).
_TINY_BYTES: Final = 4096
_CHUNK_BYTES: Final = 2**20


class _ChangedError(Exception):
    """A file is not what the look has found."""


class _TooLongError(Exception):
    """To read more would take too long."""


def chosen(
    rows: Iterable[Known],
    by_base: Mapping[Commit | None, Collection[bytes]],
    lacked: Collection[bytes],
) -> set[bytes]:
    """
    Return those of *rows* that seem to keep their content for all members at *by_base*.

    Not what one of them has *lacked*. Names of one file stay together.
    """
    found, broken, refused = dict[bytes, int](), set[int](), 0
    for row in rows:
        path, links = row.entry.path, row.entry.links
        bases = (base for base, paths in by_base.items() if path in paths)
        if row.alike_since == UNWRITTEN or not _is_worth_it(row.entry):
            broken.add(links)
        elif path in lacked:
            refused += 1
            broken.add(links)
        elif all(base is not None and row.alike_since <= base for base in bases):
            found[path] = links
        else:
            broken.add(links)
    if refused >= _REFUSED_MAX:
        return set()
    return {path for path, at in found.items() if not at or at not in broken}


def _is_worth_it(entry: Entry) -> bool:
    """
    Return whether *entry* may be told of and not sent.

    Large files travel as ranges, which may be none. A file with attributes is sent in
    any case; a tiny one may be kept in its inode, where they are too: then they do not
    fit as they did in an empty file, and nobody knows before it is tried.
    """
    return not is_large(entry) and not (entry.attributes and entry.size <= _TINY_BYTES)


class Telling:
    """What an owner tells of the files *paths*, in their order, and does not send."""

    def __init__(self, paths: Sequence[bytes] = ()) -> None:
        self.paths = paths
        # One after the other: there may be millions.
        self._digests = bytearray(len(paths) * DIGEST_BYTES)

    def read(
        self, source: Path, manifest: Manifest, outbox: Path, *, stands_still: bool
    ) -> Iterator[Known]:
        """
        Read the files in *source*; yield those of *manifest* to be recorded anew.

        Extended attributes go into *outbox*. What cannot be read is not told of, nor
        what has changed since the look: a member says that it lacks it. If the source
        *stands_still*, it has what the manifest says.
        """
        with Beneath(source) as tree, Beneath(outbox / ATTRIBUTES_NAME) as attributes:
            made = _Made(attributes, outbox, left_free_bytes(outbox))
            reading = _Reading(tree, made)
            for number, path in enumerate(self.paths):
                row, known = manifest.get(path), None
                with suppress(_ChangedError, BackendError, OSError):
                    if row is not None and stands_still:
                        digest, _ = reading.read(row)
                    elif row is not None:
                        digest, known = reading.read_live(row)
                    else:
                        continue
                    at = number * DIGEST_BYTES
                    self._digests[at : at + DIGEST_BYTES] = digest
                if known is not None:
                    yield known

    def digest_of(self, path: bytes) -> bytes:
        """Return the digest of what the file *path* holds, b"" if none is told."""
        number = bisect_left(self.paths, path)
        if number == len(self.paths) or self.paths[number] != path:
            return b""
        at = number * DIGEST_BYTES
        digest = bytes(self._digests[at : at + DIGEST_BYTES])
        return b"" if digest == bytes(DIGEST_BYTES) else digest

    def told(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Yield *entries* with the digests."""
        for entry in entries:
            digest = self.digest_of(entry.path)
            yield msgspec.structs.replace(entry, content=digest) if digest else entry

    def names(
        self, outbox: Path, manifest: Manifest, sent: Collection[bytes]
    ) -> tuple[bytes, int]:
        """
        Return the names that rsync has to send for those that are to be *sent*.

        With them what the attributes in *outbox* take.
        """
        names, size_bytes = bytearray(), 0
        with Beneath(outbox / ATTRIBUTES_NAME) as made:
            for path in self.paths:
                row = manifest.get(path) if path in sent else None
                if row and row.entry.attributes and self.digest_of(path):
                    names += ATTRIBUTES_NAME.encode() + b"/" + path + b"\0"
                    size_bytes += _held_bytes(made, path)
        return bytes(names), size_bytes


@dataclass(frozen=True, slots=True)
class _Made:
    """Attributes in *tree*; *left_bytes* stay free on the disk of *outbox*."""

    tree: Beneath
    outbox: Path
    left_bytes: int

    def write(self, path: bytes, file: int) -> None:
        """Write those of *path*, which is open as *file*."""
        if free_bytes(self.outbox)[1] <= self.left_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        directory, name = self.tree.at(path, make=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        target = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            FileCopier().copy_attributes(file, target, os.fstat(file))
        finally:
            os.close(target)


@dataclass(frozen=True, slots=True)
class _Reading:
    """Reads files in *tree*, each once; their attributes go into *made*."""

    tree: Beneath
    made: _Made
    # By inode and ctime, of files with several names: what `read` has returned.
    _first: dict[tuple[int, int], tuple[bytes, int]] = field(default_factory=dict)

    def read_live(self, row: Known) -> tuple[bytes, Known | None]:
        """
        Return the digest, and *row* if it has to be recorded anew.

        What has been written to since, unseen, or may be yet, is of this commit for
        all.
        """
        now = look_at(self.tree, row.entry.path)
        is_same = (
            now is not None
            and same(now.entry, row.entry)
            and now.inode == row.inode
            and row.ctime_ns in (DOUBTED, now.ctime_ns)
        )
        if now is None or not is_same:
            raise _ChangedError
        digest, begun_ns = self.read(now)
        status = self.tree.status(row.entry.path)
        if status is None or not untouched(now, status):
            raise _ChangedError
        known = certain(
            msgspec.structs.replace(now, alike_since=row.alike_since),
            begun_ns,
            is_read=True,
        )
        is_certain = known.ctime_ns == row.ctime_ns != DOUBTED
        return digest, None if is_certain else known

    def read(self, row: Known) -> tuple[bytes, int]:
        """Return the digest of *row*'s file, and a wall time from before that."""
        entry, begun_ns = row.entry, wall_ns()
        with opened_file(self.tree, entry.path) as file:
            if file is None:
                raise _ChangedError
            write_out(file)  # a page that is dirty takes stores without another time
            status = os.fstat(file)
            # What several names lead to is read once, and doubted alike.
            key = status.st_ino, status.st_ctime_ns
            found = self._first.get(key)
            if found is None:
                found = _digest(file, entry.size), begun_ns
                if entry.links:
                    self._first[key] = found
            if os.fstat(file).st_size != entry.size:
                raise _ChangedError
            if entry.attributes:
                self.made.write(entry.path, file)
        return found


@dataclass(frozen=True, slots=True)
class KeptFiles:
    """Those of the commit that has come, in *live*; *tree* has their attributes."""

    tree: Beneath
    live: Beneath
    read_within: Deadline = field(default_factory=lambda: Deadline(_READ_WITHIN_S))

    def has(self, group: Sequence[Entry], fitting: Fitting) -> bool:
        """
        Return whether *group*, all names of one file, need nothing but attributes.

        Those have come.
        """
        first, inodes = group[0], set[int]()
        if not first.content:
            return False
        for entry in group:
            status = self.live.status(entry.path)
            alike = entry.content == first.content and entry.size == first.size
            if status is None or not alike or status.st_nlink != len(group):
                return False
            inodes.add(status.st_ino)
            if entry.attributes and not self._have_come(entry, fitting):
                return False
        if len(inodes) != 1 or not self._holds(first):
            return False
        fitting.note_time(first)
        return True

    def _have_come(self, entry: Entry, fitting: Fitting) -> bool:
        """Return whether the attributes of *entry* have come, and fit here."""
        come = look_at(self.tree, entry.path)
        if come is None or come.entry.attributes != entry.attributes:
            return False
        found = msgspec.structs.replace(come.entry, size=entry.size, links=entry.links)
        return fitting.fits(entry, found)

    def _holds(self, entry: Entry) -> bool:
        """Return whether the file in the volume has the content, if time is left."""
        with (
            suppress(OSError, _TooLongError),
            opened_file(self.live, entry.path) as file,
        ):
            if file is not None and os.fstat(file).st_size == entry.size:
                return _digest(file, entry.size, self.read_within) == entry.content
        return False

    def to_write_bytes(self, entry: Entry) -> int:
        """Return what `give` may need of the disk for *entry*, which `has` has."""
        now = look_at(self.live, entry.path) if entry.attributes else None
        if now is None or now.entry.attributes == entry.attributes:
            return 0
        return _held_bytes(self.tree, entry.path)

    def give(self, entry: Entry, fitting: Fitting) -> None:
        """Give *entry*'s file, whose content is in place, its attributes."""
        now = look_at(self.live, entry.path) if entry.content else None
        if now is None:
            return
        is_done = now.entry.attributes == entry.attributes
        if is_done and fitting.fits(entry, now.entry):
            return
        if entry.attributes and not self._have_come(entry, fitting):
            return  # it came whole
        with (
            opened_file(self.live, entry.path) as target,
            opened_file(self.tree, entry.path) as like,
        ):
            if target is not None:
                give_attributes(entry, target, like if entry.attributes else None)


def _held_bytes(tree: Beneath, path: bytes) -> int:
    """Return what the empty file *path* takes: its attributes, if not in its inode."""
    status = tree.status(path)
    return status.st_blocks * SECTOR_BYTES if status else 0


def _digest(file: int, size: int, deadline: Deadline | None = None) -> bytes:
    """Return the digest of the first *size* bytes: somebody may make more of them."""
    digest, at = hashlib.blake2b(digest_size=DIGEST_BYTES), 0
    while data := os.pread(file, min(_CHUNK_BYTES, size - at), at):
        if deadline is not None and deadline.passed():
            raise _TooLongError
        digest.update(data)
        at += len(data)
    return digest.digest()
