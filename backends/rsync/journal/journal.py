"""
One volume's copy as a series of commits: the journal engine as others use it.

    <home>/live/          the bytes
    <home>/manifest.db    what they were at the last commit
    <home>/outbox/*/      what is being sent
    <home>/staging/       what is being received
    <home>/applying       the commit that is being applied
    <home>/commits/       the last commit as a snapshot, where live/ is a subvolume
    <home>/ranges/, bases/, indexes/   of large files, see `large_files.py`

The owner *looks* (what has changed), *records* it as a commit and *packs* it for the
members that stand at one base; a member *stages*, *marks* and *applies*. Which commits
there are, and who may send them, is the caller's to know.

On btrfs both keep the last commit as a snapshot: the owner looks at and sends from what
stands still. Elsewhere, files are copied while others write to them, or set aside
before it is recorded, while nobody does (`moment.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Final, Literal

from backends.errors import BackendError
from backends.replication_options import MAX_NAMES
from backends.rsync.journal.commits import Commits, Moments
from backends.rsync.journal.delta import Delta
from backends.rsync.journal.entries import UNWRITTEN, Commit, certain
from backends.rsync.journal.fitting import forget_unfit
from backends.rsync.journal.large_files import LargeFiles
from backends.rsync.journal.manifest import DamagedManifestError, Manifest, Part
from backends.rsync.journal.moment_taking import MomentTaking
from backends.rsync.journal.outbox import unpack
from backends.rsync.journal.packing import Package, Packing
from backends.rsync.journal.portions import used_bytes
from backends.rsync.journal.rolling_forward import apply
from backends.rsync.journal.scan import NOTHING, Changes, scan_all, scan_paths
from backends.rsync.journal.snapshot_taking import SnapshotTaking
from backends.rsync.journal.staging import LIVE_NAME, Staging
from backends.rsync.journal.watch import Hints
from backends.system import files
from backends.system.changeable import make_movable
from backends.system.clock import wall_ns
from backends.system.copy_file import can_share

QUARANTINE_NAME: Final = "quarantine"
EVERYTHING: Final = Hints(everything=True)
# After so many bytes of changed names all are counted once more.
_GROWN_MAX_BYTES: Final = 256 * 2**20


class Journal:
    """
    The copy of volume *volume_id* in *home*; use it in one thread at a time.

    A manifest that cannot be used is made anew: all is then compared once.
    """

    def __init__(
        self, home: Path, volume_id: str, *, max_names: int = MAX_NAMES
    ) -> None:
        self.home = home
        self._max_names = max_names
        self.live = home / LIVE_NAME
        self.staging = Staging(home)
        self._volume_id = volume_id
        self._path = home / "manifest.db"
        self._commits = Commits(home, self.live)
        self.by_snapshot = self._commits.possible()
        # Whether files are read while others write to them, and not cloned.
        self._is_read = not (self.by_snapshot or can_share(home))
        self.manifest = self._open()
        self._large_files = LargeFiles(home)
        self._packing: Packing | None = None
        self.moments: MomentTaking | SnapshotTaking = (
            SnapshotTaking(self._commits, self._differences)
            if self.by_snapshot
            else MomentTaking(self.live, self._large_files, self._look_at)
        )
        # The moment that the commit shares with other volumes, "" without one.
        self.moment = ""
        # Whether the commit's files are of one moment, without a snapshot.
        self._is_moment = False
        # How long large files were read to find what has changed in them.
        self.reading_s = 0.0
        # Whether the last look was at all names; those that others have found since.
        self._at_all = False
        self._grown_bytes = 0

    def close(self) -> None:
        """Close the manifest, and remove what was packed."""
        self.manifest.close()
        if self.by_snapshot:
            self._commits.drop()
        self.moments.drop()
        self.unpack()

    def commit(self) -> Commit:
        """Return the commit that the manifest describes."""
        return self.manifest.commit()

    def forget(self) -> None:
        """Forget what was known of the bytes, which are others now."""
        self.manifest.close()
        Manifest.discard(self._path)
        self._large_files.forget()
        self.manifest = self._open()

    # The owner's side

    def look(self, hints: Hints) -> Changes:
        """
        Return what has changed since the last commit, as far as *hints* lead.

        With ``by_snapshot`` they only say whether a snapshot is needed. A manifest
        of no commit knows nothing of what they leave out: all names are looked at.

        Raises:
            BackendError: something cannot be read, or no snapshot be taken.

        """
        self._at_all = self._grown_bytes > _GROWN_MAX_BYTES
        self.moments.drop()
        self.moment = ""
        if self.by_snapshot:
            return self._look_at_snapshot(hints)
        begun_ns = wall_ns()
        self._at_all |= hints.everything or self.commit() == UNWRITTEN
        if not self._at_all:
            return self._look_at(hints)
        changes = scan_all(self.live, self.manifest, max_names=self._max_names)
        return _certain(changes, begun_ns, is_read=self._is_read)

    def _look_at(self, hints: Hints) -> Changes:
        begun_ns = wall_ns()
        names = chain.from_iterable(map(self.manifest.names, hints.inodes))
        changes = scan_paths(
            *(self.live, self.manifest, hints.paths.union(names)),
            trees=hints.trees,
            max_names=self._max_names,
        )
        return _certain(changes, begun_ns, is_read=self._is_read)

    def _look_at_snapshot(self, hints: Hints) -> Changes:
        if hints == Hints() and self._commits.is_unchanged(self.commit()):
            return NOTHING
        self._commits.create()
        return self._differences()

    def _differences(self) -> Changes:
        """Return what the newest snapshot differs in from the commit."""
        commit, new = self.manifest.commit(), self._commits.new
        found = self._commits.differences(self.manifest, self._max_names)
        if found is None or self._at_all:
            self._at_all = True
            return scan_all(
                *(new, self.manifest),
                written=found.written if found else (),
                max_names=self._max_names,
            )
        changes = scan_paths(
            *(new, self.manifest, found.paths),
            written=found.written,
            max_names=self._max_names,
        )
        if not changes:
            # Reading a file changes its inode, too: the next look is not for that.
            self.manifest.touch(changes.touched)
            self._commits.keep(commit)
        return changes

    def record(self, changes: Changes, commit: Commit) -> None:
        """Make *changes* the commit; what is not in them is as it was."""
        self._is_moment = self.moments.moment is not None
        moments = None
        forget_unfit(self.home)
        if self.by_snapshot:
            self._commits.keep(commit, same_as=None if changes else self.commit())
            moments = self._commits.between(self.commit(), commit)
        self.manifest.record_parts(
            self._noted(chain([changes], changes.rest), commit, moments), commit=commit
        )
        if self._at_all:
            self._grown_bytes = 0
        if self.by_snapshot:
            self._commits.prune(commit)
        if changes.deleted or changes.rest:
            self._large_files.prune(self.manifest)

    def _noted(
        self, parts: Iterable[Changes], commit: Commit, moments: Moments | None
    ) -> Iterator[Part]:
        """Yield *parts* for `record`, each once its large files and names are noted."""
        for each in parts:
            self._grown_bytes += sum(len(known.entry.path) for known in each.changed)
            if moments or not self.by_snapshot:
                self._large_files.note(each.changed, self.manifest, commit, moments)
            yield each.changed, each.deleted, each.touched

    def source(self) -> Path:
        """Return where the files of the commit are: what stands still, if possible."""
        return self._commits.of(self.manifest.commit()) or self.live

    def quality(self) -> Literal["fuzzy", "snapshot"]:
        """Return "snapshot" if the commit's files are of one moment, else "fuzzy"."""
        is_one = self._is_moment or self.source() != self.live
        return "snapshot" if is_one else "fuzzy"

    def pack(
        self,
        base: Commit | None,
        *others: Commit | None,
        only: Collection[bytes] = (),
        valid: Callable[[], bool] = lambda: True,
        stands_still: bool = False,
    ) -> Package:
        """Return what leads a copy from *base* to this one's commit; see `Packing`."""
        commit = self.manifest.commit()
        self.unpack()
        self._packing = Packing(
            *(self.home, self._volume_id, self.manifest),
            source=self.moments.moment or self._commits.of(commit),
            valid=valid,
            stands_still=stands_still,
        )
        self._packing.pack((base, *others), only=only)
        if self._packing.is_live:
            self._is_moment, self.moment = False, ""
        self.reading_s += self._packing.reading_s
        return self._packing.package(base)

    def repack(self, base: Commit | None) -> Package:
        """
        Return what was packed last, for copies at another of its bases.

        Raises:
            BackendError: the base is not known, or the disk refuses.

        """
        if self._packing is None:
            raise BackendError("nothing is packed")
        return self._packing.package(base)

    def unpack(self) -> None:
        """Remove what `pack` has made."""
        if (outbox := self.leave_packed()) is not None:
            unpack(outbox)

    def leave_packed(self) -> Path | None:
        """Return the directory of what `pack` has made, which is the caller's now."""
        self.advance_bases()
        packing, self._packing = self._packing, None
        return packing.outbox if packing else None

    def advance_bases(self) -> None:
        """Do what `pack` has left for the time in which its package is on the way."""
        if self._packing is not None:
            self._packing.advance_bases()

    def seal(self) -> None:
        """Have what is known of large files outlive a power failure, if possible."""
        with suppress(OSError):
            self._large_files.seal()

    def used_bytes(self) -> int:
        """Return what the files of the copy hold: no holes, each once."""
        return used_bytes(self.manifest, self.live)

    def changed_since(self, commit: Commit) -> set[bytes]:
        """Return the paths of what was written after *commit*, as far as is known."""
        since = self.manifest.since(commit)
        return {entry.path for entry in since[0]} if since else set()

    def _open(self) -> Manifest:
        """
        Return the manifest, made anew if it is damaged.

        A passing error (no descriptor left, a full disk) discards nothing: without its
        manifest a whole volume would have to be sent again.
        """
        try:
            return Manifest(self._path)
        except DamagedManifestError:
            Manifest.discard(self._path)
            return Manifest(self._path)

    # The member's side

    def staged(self) -> Delta:
        """
        Return the delta that has come; the caller closes it.

        Raises:
            BackendError: there is none, it is of another volume, or it names everything
                but not even the root: who made it knew nothing of the volume.

        """
        delta = self.staging.delta(max_names=self._max_names)
        fault = ""
        if delta.header.volume != self._volume_id:
            fault = "the delta is of another volume"
        elif delta.header.base is None and not delta.header.entries:
            fault = "the delta says that the volume has not even a root"
        if fault:
            delta.close()
            raise BackendError(fault)
        return delta

    def apply(self) -> None:
        """
        Bring the marked commit, if there is one, into ``live``.

        If the manifest has been lost meanwhile, it describes nothing afterwards: the
        copy has the commit, and is compared with another member's before the next one.
        """
        if self.staging.marked() is not None:
            apply(self.home, self.manifest, self._keep_applied)

    def _keep_applied(self) -> None:
        """Keep what was applied, if the manifest knows it; nobody writes to it yet."""
        if self.by_snapshot and (commit := self.commit()) == self.staging.marked():
            # Without it, the next look is at everything.
            with suppress(BackendError):
                self._commits.create()
                self._commits.keep(commit)
                self._commits.prune(commit)

    def keep_apart(self, name: str) -> Path:
        """
        Move the bytes to quarantine/*name*; return where they are.

        There is no `live` then until the caller has made one, so that a crash in
        between is seen: see `Copies.begin_empty`.

        Raises:
            BackendError: they were not moved; there may be such a commit already.

        Source: replication protocol, divergence.

        """
        quarantine = self.home / QUARANTINE_NAME
        target = quarantine / name
        try:
            quarantine.mkdir(mode=0o700, exist_ok=True)
            make_movable(self.live)
            self.live.rename(target)
            files.sync_directory(quarantine)
            files.sync_directory(self.home)
        except OSError as error:
            raise BackendError(
                f"cannot set the bytes in {self.live} apart: {error.strerror}",
                hint=f"see what is in {quarantine}",
            ) from error
        self.forget()
        return target


def _certain(changes: Changes, begun_ns: int, *, is_read: bool) -> Changes:
    """Return *changes* of a look that began at *begun_ns*; see `certain`."""
    return replace(
        changes,
        changed=[certain(e, begun_ns, is_read=is_read) for e in changes.changed],
        rest=changes.rest
        and (_certain(each, begun_ns, is_read=is_read) for each in changes.rest),
    )
