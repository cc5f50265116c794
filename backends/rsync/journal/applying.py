"""
Brings the entries of a delta into place, through any crash; see `rolling_forward.py`.

First what the commit deletes goes, then its entries come into place, then directories
get their owners and times. Each step may be repeated: what is in place is no longer in
staging, or is put there once more. At the end the manifest says the new commit.

A first copy comes as a whole: what was sent takes the place of the empty live/ in one
step. Where live/ has a quota of XFS, files are given to its project before they are
renamed: a copy would need room for old and new content within the limit. Renaming is
impossible where live/ is a subvolume (EXDEV). Files are copied into it, sharing their
contents, and stay in staging until the end, so that a second run has all of them again.
What changes in a large file is written into it: it was at its base when it was marked.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from backends.errors import BackendError
from backends.rsync.journal.delta import Delta
from backends.rsync.journal.entries import Entry, Known, look_at
from backends.rsync.journal.excess import paths_beyond, rows_beyond
from backends.rsync.journal.fitting import Fitting
from backends.rsync.journal.kept_files import KeptFiles
from backends.rsync.journal.large_files import LargeFiles
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.redo_files import RedoFiles
from backends.rsync.journal.staging import LIVE_NAME, Marker, Staging
from backends.system import files, quota
from backends.system.beneath import Beneath, open_directory
from backends.system.copy_file import FileCopier, attribute_names
from backends.system.regular_files import open_regular
from backends.system.writeback import Writeback


class Applying:
    """Brings what *delta* has, and was *staged*, into the live/ of *home*."""

    def __init__(
        self,
        home: Path,
        manifest: Manifest,
        delta: Delta,
        staged: Beneath,
        redo_files: RedoFiles,
        kept_files: KeptFiles,
        *,
        lost: bool,
    ) -> None:
        """*lost*: the manifest knows no more what *delta* leads on from."""
        self._redo_files = redo_files
        self._kept_files = kept_files
        self._large_files = LargeFiles(home)
        self._top = home / LIVE_NAME
        self._manifest = manifest
        self._delta = delta
        self._full = delta.header.base is None
        self._lost = lost
        self._staged = staged
        self._live = redo_files.live
        self._work, self._work_at = self._top, -1
        self._renames, self._urgent = True, False
        self._limited = quota.is_limited(self._top)
        with self._live.opened(b"") as directory:
            self._project = quota.project_of(directory)
        self._copier = FileCopier()
        self._fitting = Fitting(home)
        # Where the first name of each copied file is.
        self._first: dict[int, bytes] = {}

    def run(self, staging: Staging, marker: Marker, *, whole: bool) -> None:
        """
        Do all of it; what an earlier run has done is found done.

        *whole*: live/ is what was sent, and lacks nothing but directories.
        """
        self._urgent = marker.urgent
        written = Writeback(self._top)
        # Our work changes the times of directories.
        times = self._times() if self._lost else {}
        self._work = self._top / marker.work
        # What is in it is lost work, or was to be removed.
        files.remove_tree(self._work)
        self._make_work()
        try:
            deletes = self._full or self._delta.header.deletions
            if deletes and not marker.deleted:
                self._delete()
                # Emptied at once: the files to come may need the room.
                self._remove_work()
                # Nothing is to come to a first copy: this may be done again.
                if not whole:
                    written.flush()
                    staging.write_marker(msgspec.structs.replace(marker, deleted=True))
                self._make_work()
            for entry in self._delta.entries():
                if entry.kind == "directory" or not whole:
                    self._place(entry)
        finally:
            self._remove_work()
        self._live.forget()
        for entry in self._delta.entries():
            if entry.kind == "directory":
                self._finish_directory(entry)
        restored = self._restore_times(times)
        written.flush()
        self._manifest.touch(restored)
        self._record()
        self._large_files.note_applied(self._top, self._delta, self._manifest)

    def _make_work(self) -> None:
        self._work.mkdir(mode=0o700)
        self._work_at = open_directory(self._work)
        # Neither an ACL nor a group is to be inherited by what is copied into it.
        for key in attribute_names(self._work_at):
            os.removexattr(self._work_at, key)
        os.fchmod(self._work_at, 0o700)

    def _remove_work(self) -> None:
        if self._work_at >= 0:
            os.close(self._work_at)
            self._work_at = -1
        files.remove_tree(self._work)

    def _delete(self) -> None:
        if not self._full:
            for path in self._delta.deletions():
                self._remove(path)
            return
        work = os.fsencode(self._work.name)
        for path in paths_beyond(self._live, self._delta.entries(), leave_out=work):
            self._remove(path)

    def _remove(self, path: bytes) -> None:
        """Remove *path* with all below it, if it is there."""
        status = self._live.status(path)
        if status is None:
            return
        directory, name = self._live.at(path)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=directory)
            return
        # One step, whatever is below; nothing but rm has to go down there.
        doomed = secrets.token_hex(8)
        os.rename(name, doomed, src_dir_fd=directory, dst_dir_fd=self._work_at)
        self._live.forget()

    def _place(self, entry: Entry) -> None:
        """Bring *entry* to its place, if it is not there yet."""
        present = self._live.status(entry.path)
        is_directory = present is not None and stat.S_ISDIR(present.st_mode)
        if entry.kind == "directory":
            if not is_directory:
                self._remove(entry.path)
                directory, name = self._live.at(entry.path)
                os.mkdir(name, 0o700, dir_fd=directory)
            return
        staged = look_at(self._staged, entry.path)
        if not is_directory and not self._has_come(entry, staged):
            staged = self._led_on(entry)
        if staged is None or not self._has_come(entry, staged):
            self._kept_files.give(entry, self._fitting)
            return  # it is there already; the last look will tell
        if is_directory:
            self._remove(entry.path)
        source, name = self._staged.at(entry.path)
        target, _ = self._live.at(entry.path)
        if present is not None and present.st_ino == staged.inode and self._renames:
            # Two names of one file: renaming one to the other would do nothing.
            os.unlink(name, dir_fd=source)
            return
        if not self._rename(name, source, target, is_file=entry.kind == "file"):
            self._copy(entry, name, source, target)

    def _has_come(self, entry: Entry, staged: Known | None) -> bool:
        return staged is not None and self._fitting.fits(entry, staged.entry)

    def _led_on(self, entry: Entry) -> Known | None:
        """Write what changes in *entry*'s file; return what is staged now, if any."""
        staged = self._staged if self._limited else None
        note = partial(
            self._large_files.note_patched,
            entry,
            self._manifest,
            advance=not self._urgent,
        )
        if not self._redo_files.write(entry, staged, note):
            return None
        return look_at(self._staged, entry.path)

    def _rename(self, name: bytes, source: int, target: int, *, is_file: bool) -> bool:
        """Return whether *name* could be renamed into the directory *target*."""
        if not self._renames:
            return False
        try:
            if self._project and is_file:
                with os.fdopen(open_regular(name, dir_fd=source)) as file:
                    quota.give_to_project(file.fileno(), self._project)
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # Links and the like have no project, and their copies need no room.
            self._renames = bool(self._project)
            return False
        return True

    def _copy(self, entry: Entry, name: bytes, source: int, target: int) -> None:
        """Copy a staged file beside its place, then put it there."""
        made = b"copy"
        first = self._first.get(entry.links) if entry.links else None
        if first is None:
            status = os.stat(name, dir_fd=source, follow_symlinks=False)
            self._copier.copy(name, status, source=source, target=self._work_at)
            os.rename(name, made, src_dir_fd=self._work_at, dst_dir_fd=self._work_at)
            if entry.links:
                self._first[entry.links] = entry.path
        else:
            at, known = self._live.at(first)
            places = {"src_dir_fd": at, "dst_dir_fd": self._work_at}
            os.link(known, made, **places, follow_symlinks=False)
            target, name = self._live.at(entry.path)
        os.rename(made, name, src_dir_fd=self._work_at, dst_dir_fd=target)
        # It is still there if both were names of one file already.
        with suppress(FileNotFoundError):
            os.unlink(made, dir_fd=self._work_at)

    def _finish_directory(self, entry: Entry) -> None:
        """Give the directory its owner, mode, ACLs and times."""
        known = look_at(self._live, entry.path)
        with self._live.opened(entry.path) as directory:
            os.fchown(directory, entry.uid, entry.gid)
            # What has not been sent is here, or what of it fits.
            is_sent = not entry.attributes or self._staged.status(entry.path)
            if known is None or known.entry.attributes != entry.attributes:
                for key in attribute_names(directory) if is_sent else ():
                    os.removexattr(directory, key)
                if entry.attributes and is_sent:
                    staged_at = self._staged.opened(entry.path)
                    with staged_at as staged, self._fitting.giving(entry):
                        self._copier.copy_extended(staged, directory)
            os.fchmod(directory, entry.mode)
            times = os.fstat(directory).st_atime_ns, entry.mtime_ns
            os.utime(directory, ns=times)

    def _worked_in(self) -> list[bytes]:
        """
        Return the directories that only our work changes, the innermost first.

        They are those that the commit does not name and changes something in. A full
        one names all.
        """
        if self._full:
            return []
        named = set()
        worked_in = {b""}
        for entry in self._delta.entries():
            worked_in.add(entry.path.rpartition(b"/")[0])
            if entry.kind == "directory":
                named.add(entry.path)
        last = b""
        for path in self._delta.deletions():
            parent = path.rpartition(b"/")[0]
            # Another node says how many there are, but not how many directories.
            if parent != last and self._live.status(parent):
                worked_in.add(parent)
            last = parent
        return sorted(worked_in - named, reverse=True)

    def _times(self) -> dict[bytes, int]:
        """Return when those directories were changed last, as they are now."""
        found = {path: self._live.status(path) for path in self._worked_in()}
        return {path: each.st_mtime_ns for path, each in found.items() if each}

    def _restore_times(self, times: Mapping[bytes, int]) -> list[Known]:
        """
        Return the directories that only our work has changed, their times put back.

        Those of *times* are for a manifest that does not know them.
        """
        restored = []
        for path in self._worked_in():
            row = self._manifest.get(path)
            mtime_ns = row.entry.mtime_ns if row else times.get(path)
            status = self._live.status(path)
            if mtime_ns is None or status is None or not stat.S_ISDIR(status.st_mode):
                continue
            directory, name = self._live.at(path)
            both = status.st_atime_ns, mtime_ns
            os.utime(name, ns=both, dir_fd=directory, follow_symlinks=False)
            known = look_at(self._live, path)
            if known is not None:
                restored.append(known)
        return restored

    def _record(self) -> None:
        commit = self._delta.header.commit
        if self._lost:
            for _ in self._placed():  # it has to be there
                pass
            return
        deleted: Iterable[bytes] = self._delta.deletions()
        if self._full:
            deleted = rows_beyond(self._manifest, self._delta.entries())
        self._manifest.record(self._placed(), deleted, commit=commit, whole=self._full)

    def _placed(self) -> Iterator[Known]:
        """Yield all that the commit has, as it is here now."""
        # Which number stands for which: that of the sender for one of ours.
        inodes: dict[int, int] = {}
        for entry in self._delta.entries():
            known = look_at(self._live, entry.path)
            if known is None or not self._fitting.fits(entry, known.entry):
                raise BackendError(
                    f"{entry.path!r} did not become what commit "
                    f"{self._delta.header.commit} has there",
                    hint="remove the volume's manifest; the copy is then made anew",
                )
            if entry.links and inodes.setdefault(entry.links, known.inode) != (
                known.inode
            ):
                raise BackendError(f"{entry.path!r} did not become a name of its file")
            written = msgspec.structs.replace(known.entry, commit=entry.commit)
            yield Known(written, known.inode, known.ctime_ns)
