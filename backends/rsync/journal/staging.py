"""
What has come from another node and is not yet part of the volume.

    <home>/staging/delta        what the commit changes
    <home>/staging/tree/        the files, links and the like that it changes
    <home>/staging/redo/        what changes in large files, which do not come whole
    <home>/staging/attributes/  of files that keep their content
    <home>/applying             the commit point: this commit is ours now
    <home>/receiving            locked by each rsync that writes, and by us to look

rsync writes into the first four, in a jail. Only when all of it is here and durable
the marker is written; from then on the commit is applied through any crash
(`applying.py`). An rsync may live on for a while after its sender has gone. What it
writes then must not get into the volume unseen: so we wait for the last one to end
before we look.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from backends.errors import BackendError, DeadlineError
from backends.rsync.journal.arrivals import Arrivals
from backends.rsync.journal.completeness import Completeness
from backends.rsync.journal.delta import Delta
from backends.rsync.journal.entries import Commit, Entry
from backends.rsync.journal.fitting import Fitting, Unfit
from backends.rsync.journal.kept_files import ATTRIBUTES_NAME, KeptFiles
from backends.rsync.journal.manifest import TOMBSTONES_MAX, Manifest
from backends.rsync.journal.outbox import TREE_NAME, lacking_space
from backends.rsync.journal.parents import require_parents
from backends.rsync.journal.redo import TREE_NAME as REDO_NAME
from backends.rsync.journal.redo_files import RedoFiles
from backends.system import files
from backends.system.beneath import Beneath, opened
from backends.system.clock import Deadline, pause, wall_ns
from backends.system.decoding import from_json
from backends.system.run import run
from backends.system.walk import walk

LIVE_NAME: Final = "live"
_MISSING_MAX: Final = 500
_MAX_NAMES: Final = 10**9  # no volume's option says more
_LOOK_AGAIN_S: Final = 0.02
_COUNT_WITHIN_S: Final = 5.0


class Marker(msgspec.Struct, frozen=True):
    """
    What the marker holds.

    ``work`` is a name in live/ that no volume has, for what is being removed;
    ``deleted`` says that what the commit deletes is gone: it must not be done again
    when the commit's own files are in place. What is ``urgent`` may be waited for.
    """

    commit: Commit
    work: str
    deleted: bool = False
    urgent: bool = False


class Staging:
    """The staging directory of the volume whose directory is *home*."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._directory = home / "staging"
        self._marker = home / "applying"
        self.lock = home / "receiving"
        self._fitting: Fitting | None = None

    def directory(self) -> Path:
        """Return the directory for rsync, made if it is missing."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        return self._directory

    def tree(self) -> Path:
        """Return where the files are, made if it is missing."""
        path = self.directory() / TREE_NAME
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    @property
    def attributes(self) -> Path:
        """Where attributes of files are that do not come, if any have."""
        return self._directory / ATTRIBUTES_NAME

    @property
    def redo(self) -> Path:
        """Where redo files are, if any have come."""
        return self._directory / REDO_NAME

    def lacking_space(self, size_bytes: int) -> str:
        """Return why the disk cannot take *size_bytes*, "" if it can; see `outbox`."""
        lacking = lacking_space(self.home, size_bytes)
        if lacking and size_bytes and self._directory.is_dir():
            # A part of it may have come already, before the sender was interrupted.
            rest_bytes = max(0, size_bytes - self._staged_bytes())
            lacking = lacking_space(self.home, rest_bytes)
        return lacking

    def _staged_bytes(self) -> int:
        """Return what the files here take on the disk, 0 if that cannot be counted."""
        options = ("--summarize", "--block-size=1", "--one-file-system", "--")
        with suppress(BackendError, DeadlineError, ValueError):
            done = run(
                ["du", *options, str(self._directory)], deadline_s=_COUNT_WITHIN_S
            )
            return int(done.output.partition("\t")[0])
        return 0

    @contextmanager
    def still(self, deadline: Deadline) -> Iterator[None]:
        """
        Let no rsync write here meanwhile; one that comes waits.

        Raises:
            BackendError: one did not end before *deadline*.

        """
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self.lock, flags, 0o600)
        try:
            while not _locked(descriptor):
                if deadline.passed():
                    raise BackendError(
                        f"an earlier transfer still writes to {self._directory}",
                        hint="retry; it ends by itself when its sender is gone",
                    )
                pause(_LOOK_AGAIN_S)
            yield
        finally:
            os.close(descriptor)

    def drop_later(self) -> None:
        """
        Remove files that seem to be of later than now: the clock was put back since.

        Once it is that late, they would seem to have come with whatever comes next.

        Raises:
            BackendError: what is here cannot be gone through.

        """
        now_ns = wall_ns()
        try:
            with (
                suppress(FileNotFoundError),
                opened(self._directory / TREE_NAME) as top,
            ):
                for _, name, directory, status in walk(top):
                    if stat.S_ISREG(status.st_mode) and status.st_ctime_ns > now_ns:
                        os.unlink(name, dir_fd=directory)
        except OSError as error:
            raise BackendError(
                f"{self._directory} cannot be gone through: {error.strerror}"
            ) from error

    def delta(self, *, max_names: int = _MAX_NAMES) -> Delta:
        """
        Return the delta that has come; the caller closes it.

        Raises:
            BackendError: there is none, or it is not to be trusted.

        """
        # Somewhat more than a look at all of them lets through, or as many deletions.
        records_max = 2 * max_names + TOMBSTONES_MAX
        return Delta.open(self._directory / "delta", records_max=records_max)

    def missing(
        self,
        delta: Delta,
        manifest: Manifest,
        arrivals: Arrivals | None = None,
        *,
        refused: dict[bytes, str] | None = None,
    ) -> list[bytes]:
        """
        Return paths that have yet to be sent, some 500 of them at most, sorted.

        Of a file with several names all are sent together, in one run of rsync. What
        does not fit here is sent twice; *refused* remembers it, see `Fitting`.

        Raises:
            BackendError: the delta does not fit to what *manifest* describes, or there
                is no room for what is to be written in place once it is marked.

        """
        require_base(delta, manifest)
        require_parents(delta, manifest)
        groups: dict[int, list[Entry]] = {}
        found: list[bytes] = []
        with (
            Beneath(self.tree()) as staged,
            Beneath(self.home / LIVE_NAME) as live,
            Beneath(self.redo) as redo,
            Beneath(self.attributes) as attributes,
        ):
            # A part of a commit may not be what the volume happens to have.
            source = live if delta.header.base is None else None
            self._fitting = Fitting(self.home, refused)
            check = Completeness(
                *(self._directory, staged, source, manifest, arrivals, self._fitting),
                *(RedoFiles(redo, live, delta.header), KeptFiles(attributes, live)),
            )
            for entry in delta.entries():
                if entry.links:
                    groups.setdefault(entry.links, []).append(entry)
                elif not check.has([entry]) and len(found) < _MISSING_MAX:
                    found.append(entry.path)
            for group in groups.values():
                if not check.has(group) and len(found) < _MISSING_MAX:
                    found += [entry.path for entry in group]
            check.discard()
        # In place, nothing may be in the way of what is marked.
        to_write_bytes = check.to_write_bytes
        if to_write_bytes and (lack := lacking_space(self.home, to_write_bytes)):
            raise BackendError(lack)
        return sorted(found)

    def mark(self, delta: Delta, *, urgent: bool = False) -> list[Unfit]:
        """
        Make *delta*'s commit ours, to be applied through any crash.

        Return what of it this copy cannot hold, and could before.

        Nothing may be missing, nobody may write here any more, and what has come has to
        be durable: only who was there before it came can tell (`Writeback`).

        Raises:
            BackendError: another commit is being applied.

        """
        commit = delta.header.commit
        marked = self.marked()
        if marked == commit:
            return []
        if marked is not None:
            raise BackendError(f"commit {marked} has to be applied before {commit}")
        unfit = (self._fitting or Fitting(self.home)).keep(delta)
        work = f".remora.{secrets.token_hex(16)}"
        self.write_marker(Marker(commit, work, urgent=urgent))
        return unfit

    def marked(self) -> Commit | None:
        """Return the commit that is to be applied, None if there is none."""
        marker = self.read_marker()
        return marker.commit if marker else None

    def read_marker(self) -> Marker | None:
        """
        Return the marker.

        Raises:
            BackendError: it cannot be read.

        """
        try:
            return from_json(self._marker.read_bytes(), Marker)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise BackendError(f"{self._marker} cannot be read: {error}") from error

    def write_marker(self, marker: Marker) -> None:
        """Replace the marker, durably."""
        files.write_durably(self._marker, msgspec.json.encode(marker))

    def unmark(self) -> None:
        """
        Remove the marker, durably: the commit has been applied.

        Whoever gives a commit up with this has a volume between two commits, and has to
        remove its manifest as well.
        """
        self._marker.unlink(missing_ok=True)
        files.sync_directory(self.home)

    def clear(self) -> None:
        """
        Remove what has come; a later transfer cannot make use of it.

        Raises:
            BackendError: it is a commit that has to be applied.

        """
        if (marked := self.marked()) is not None:
            raise BackendError(f"commit {marked} has to be applied, not removed")
        files.remove_tree(self._directory)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def require_base(delta: Delta, manifest: Manifest) -> None:
    """Raise BackendError unless *delta* is full, or its base is *manifest*'s commit."""
    base, at = delta.header.base, manifest.commit()
    if base is not None and base != at:
        raise BackendError(
            f"the delta leads on from commit {base}, this copy is at {at}",
            hint="a full one is needed",
        )
