"""
Commits as read-only snapshots, where a copy's live directory is a btrfs subvolume.

    <home>/commits/new/             what may become the next commit
    <home>/commits/aside/           of several volumes' moment, not yet looked at
    <home>/commits/<epoch>.<seq>/   the commit that the manifest describes

A snapshot has what was there at one moment, and stands still while it is compared and
sent. Two of them, and the kernel's list of the inodes that changed in between, show all
that differs: also stores through mappings, which no event tells of.

A snapshot gets its name before the manifest says so, and the older ones go afterwards.
So the one that the manifest needs is there after a crash, whatever else is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from backends.errors import BackendError
from backends.rsync.journal.entries import Commit
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.refusals import too_many_names
from backends.system import btrfs
from backends.system.beneath import Beneath

DIRECTORY_NAME: Final = "commits"
_NEW_NAME: Final = "new"
_ASIDE_NAME: Final = "aside"
_NAMED: Final = re.compile(r"([0-9]{1,19})\.([0-9]{1,19})")


@dataclass(frozen=True, slots=True)
class Differences:
    """
    Where two snapshots differ: paths to compare.

    ``written`` are the files among them that have other content, whatever they look
    like.
    """

    paths: set[bytes]
    written: set[bytes]


@dataclass(frozen=True, slots=True)
class Moments:
    """Snapshots of the commit before and of this one; ``since`` made the first."""

    before: Path
    now: Path
    since: int


class Commits:
    """The snapshots of the copy in *home*, whose live directory is *live*."""

    def __init__(self, home: Path, live: Path) -> None:
        self._live = live
        self._directory = home / DIRECTORY_NAME
        self.new = self._directory / _NEW_NAME
        self._aside = self._directory / _ASIDE_NAME

    def possible(self) -> bool:
        """Return whether the live directory is a subvolume."""
        return btrfs.subvolume(self._live) is not None

    def of(self, commit: Commit) -> Path | None:
        """Return the snapshot that is *commit*, None if there is none."""
        path = self._path(commit)
        return path if btrfs.subvolume(path) else None

    def last(self) -> Commit | None:
        """
        Return the newest commit of which there is a snapshot, None without any.

        While nobody else uses the copy, that is what the manifest describes.
        """
        found: list[Commit] = []
        with suppress(FileNotFoundError):
            names = (each.name for each in self._directory.iterdir())
            named = filter(None, map(_NAMED.fullmatch, names))
            found = [(int(each[1]), int(each[2])) for each in named]
        return max(filter(self.of, found), default=None)

    def is_unchanged(self, commit: Commit) -> bool:
        """
        Return whether no inode of the live directory has changed since *commit*.

        Stores through mappings count. What `write` has put into the page cache counts
        when it comes to the disk: of that, events tell before.
        """
        live, before = btrfs.subvolume(self._live), btrfs.subvolume(self._path(commit))
        return (
            live is not None
            and before is not None
            and before.taken_of == live.identity
            and live.changed_in <= before.transaction
        )

    def create(self) -> None:
        """
        Take a snapshot of what is in the live directory now; it is ``new``.

        Raises:
            BackendError: btrfs has none to give, for want of space for instance.

        """
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self.drop()
            btrfs.snapshot(self._live, self.new)
        except OSError as error:
            raise _failed(f"cannot take a snapshot of {self._live}", error) from error

    def drop(self) -> None:
        """Delete what `create` has taken and `keep` has not kept."""
        btrfs.delete(self.new)

    def set_aside(self) -> None:
        """
        Take a snapshot beside that of `create`, as quickly as it can be had.

        Raises:
            BackendError: btrfs has none to give.

        """
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            btrfs.snapshot(self._live, self._aside)
        except OSError as error:
            raise _failed(f"cannot take a snapshot of {self._live}", error) from error

    def use_set_aside(self) -> None:
        """Have what was set aside as if `create` had taken it."""
        self.drop()
        try:
            self._aside.rename(self.new)
        except OSError as error:
            raise _failed(f"cannot use {self._aside}", error) from error

    def drop_set_aside(self) -> None:
        """Delete what was set aside, if it was not used."""
        btrfs.delete(self._aside)

    def keep(self, commit: Commit, *, same_as: Commit | None = None) -> None:
        """
        Give what `create` has taken its name as *commit*.

        If nothing was taken, for want of a change, the snapshot of *same_as* gets it.
        """
        taken = self.new
        if same_as is not None and not btrfs.subvolume(taken):
            taken = self._path(same_as)
        target = self._path(commit)
        try:
            if taken != target and btrfs.subvolume(taken):
                # Another one of that name is what a crash has left.
                btrfs.delete(target)
                taken.rename(target)
        except OSError as error:
            raise _failed(f"cannot keep {taken}", error) from error

    def between(self, base: Commit, commit: Commit) -> Moments | None:
        """Return the snapshots of both; None if they are not two of one directory."""
        before, now = self._path(base), self._path(commit)
        old, new = btrfs.subvolume(before), btrfs.subvolume(now)
        if base == commit or old is None or new is None:
            return None
        if old.taken_of != new.taken_of:
            return None
        return Moments(before, now, old.transaction)

    def prune(self, commit: Commit) -> None:
        """Delete all snapshots but *commit*'s."""
        with suppress(FileNotFoundError):
            for each in self._directory.iterdir():
                if each != self._path(commit):
                    btrfs.delete(each)

    def differences(self, manifest: Manifest, max_names: int) -> Differences | None:
        """
        Return where what was taken now differs from the commit that *manifest* is.

        None if that is not known: there is no snapshot of it, or of another directory.

        Raises:
            BackendError: a snapshot cannot be read, or a directory that has changed has
                more than *max_names* names.

        """
        old = self._path(manifest.commit())
        try:
            origin, before = btrfs.subvolume(self._live), btrfs.subvolume(old)
            if origin is None or before is None or before.taken_of != origin.identity:
                return None
            changed = btrfs.changed(self.new, since=before.transaction)
            with Beneath(old) as then, Beneath(self.new) as now:
                return _compared(manifest, changed, then, now, max_names)
        except PermissionError:
            return None  # without CAP_SYS_ADMIN all is looked at
        except OSError as error:
            raise _failed(f"cannot compare {self.new} with {old}", error) from error

    def _path(self, commit: Commit) -> Path:
        return self._directory / f"{commit[0]}.{commit[1]}"


def _compared(
    manifest: Manifest,
    changed: btrfs.Changed,
    then: Beneath,
    now: Beneath,
    max_names: int,
) -> Differences:
    """Return the paths of what has changed, as the manifest and directories tell."""
    files, directories, written = set[bytes](), set[bytes](), set[bytes]()
    for number in changed.files:
        names = manifest.names(number)
        files.update(names)
        if number in changed.written:
            written.update(names)
    for number in changed.directories:
        if number == btrfs.ROOT_INODE:
            directories.add(b"")
        for row in manifest.with_inode(number, directory=True):
            directories.add(row.entry.path)
    # The versions before took what stands for a subvolume for an empty directory.
    for row in manifest.with_inode(btrfs.PLACEHOLDER_INODE, directory=True):
        files.add(row.entry.path)
    differing = {
        name for each in directories for name in _differing(then, now, each, max_names)
    }
    return Differences(files | directories | differing, written)


def _differing(
    then: Beneath, now: Beneath, path: bytes, max_names: int
) -> Iterator[bytes]:
    """Yield the names of directory *path* that stand for something else than before."""
    before, after = _names(then, path), _names(now, path, max_names + 1)
    if len(after) > max_names:
        raise too_many_names(max_names)
    for name in {each for each, _ in before.items() ^ after.items()}:
        yield path + b"/" + name if path else name


def _names(tree: Beneath, path: bytes, count: int | None = None) -> dict[bytes, int]:
    """Return the inodes of *count* names in directory *path*, none if it has gone."""
    try:
        with tree.opened(path) as directory, os.scandir(directory) as entries:
            some = islice(entries, count)
            return {os.fsencode(each.name): each.inode() for each in some}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _failed(what: str, error: OSError) -> BackendError:
    return BackendError(f"{what}: {error.strerror}")
