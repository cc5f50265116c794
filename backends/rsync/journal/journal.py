"""
One volume's copy as a series of commits: the journal engine as others use it.

    <home>/live/          the bytes
    <home>/manifest.db    what they were at the last commit
    <home>/outbox/*/      what is being sent
    <home>/staging/       what is being received
    <home>/applying       the commit that is being applied
    <home>/commits/       the last commit as a snapshot, where live/ is a subvolume

The owner *looks* (what has changed), *records* it as a commit and *packs* it for the
members that stand at one base; a member *stages*, *marks* and *applies*. Which commits
there are, and who may send them, is the caller's to know.

On btrfs both keep the last commit as a snapshot: the owner looks at and sends from what
stands still. Elsewhere, files are copied while others write to them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Final, Literal

from backends.errors import BackendError
from backends.replication_options import MAX_NAMES
from backends.rsync.journal.applying import apply
from backends.rsync.journal.commits import Commits
from backends.rsync.journal.delta import Delta, Header, write_delta
from backends.rsync.journal.entries import UNWRITTEN, Commit, Entry, Known, certain
from backends.rsync.journal.manifest import DamagedManifestError, Manifest
from backends.rsync.journal.outbox import (
    fill,
    fill_from,
    held_bytes,
    listed,
    new_outbox,
    require_space,
    unpack,
    writing,
)
from backends.rsync.journal.scan import NOTHING, Changes, scan_all, scan_paths
from backends.rsync.journal.staging import LIVE_NAME, Staging
from backends.rsync.journal.watch import Hints
from backends.system import files
from backends.system.beneath import Beneath
from backends.system.clock import wall_ns

DELTA_NAME: Final = "delta"
OUTBOX_NAME: Final = "outbox"
QUARANTINE_NAME: Final = "quarantine"
EVERYTHING: Final = Hints(everything=True)
# After so many bytes of changed names all are counted once more.
_GROWN_MAX_BYTES: Final = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Package:
    """
    A commit that is ready to be sent from ``directory``.

    ``names`` are rsync's, each ended by a zero byte.
    """

    directory: Path
    commit: Commit
    names: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class _Packed:
    """The paths in the outbox, and those that are to be sent of them, by base."""

    paths: Collection[bytes] = ()
    by_base: Mapping[Commit | None, set[bytes]] = field(default_factory=dict)


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
        self._outbox: Path | None = None
        self._path = home / "manifest.db"
        self._commits = Commits(home, self.live)
        self.by_snapshot = self._commits.possible()
        self.manifest = self._open()
        self._packed = _Packed()
        # Whether the last look was at all names; those that others have found since.
        self._at_all = False
        self._grown_bytes = 0

    def close(self) -> None:
        """Close the manifest, and remove what was packed."""
        self.manifest.close()
        if self.by_snapshot:
            self._commits.drop()
        self.unpack()

    def commit(self) -> Commit:
        """Return the commit that the manifest describes."""
        return self.manifest.commit()

    def forget(self) -> None:
        """Forget what was known of the bytes, which are others now."""
        self.manifest.close()
        Manifest.discard(self._path)
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
        if self.by_snapshot:
            return self._look_at_snapshot(hints)
        begun_ns = wall_ns()
        self._at_all |= hints.everything or self.commit() == UNWRITTEN
        if self._at_all:
            changes = scan_all(self.live, self.manifest, max_names=self._max_names)
        else:
            changes = scan_paths(
                *(self.live, self.manifest, hints.paths),
                trees=hints.trees,
                max_names=self._max_names,
            )
        return _certain(changes, begun_ns)

    def _look_at_snapshot(self, hints: Hints) -> Changes:
        commit = self.manifest.commit()
        if hints == Hints() and self._commits.is_unchanged(commit):
            return NOTHING
        new = self._commits.create()
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
        if self.by_snapshot:
            self._commits.keep(commit, same_as=None if changes else self.commit())
        parts = self._counted(chain([changes], changes.rest))
        self.manifest.record_parts(
            ((each.changed, each.deleted, each.touched) for each in parts),
            commit=commit,
        )
        if self._at_all:
            self._grown_bytes = 0
        if self.by_snapshot:
            self._commits.prune(commit)

    def _counted(self, parts: Iterable[Changes]) -> Iterator[Changes]:
        for each in parts:
            self._grown_bytes += sum(len(known.entry.path) for known in each.changed)
            yield each

    def source(self) -> Path:
        """Return where the files of the commit are: what stands still, if possible."""
        return self._commits.of(self.manifest.commit()) or self.live

    def quality(self) -> Literal["fuzzy", "snapshot"]:
        """Return "snapshot" if the commit's files are of one moment, else "fuzzy"."""
        return "fuzzy" if self.source() == self.live else "snapshot"

    def pack(
        self,
        base: Commit | None,
        *others: Commit | None,
        only: Collection[bytes] = (),
        valid: Callable[[], bool] = lambda: True,
    ) -> Package:
        """
        Return what leads a copy from *base* to this one's commit.

        Without a base everything is named and the files of *only* are sent: the others
        are there already. What has changed since it was recorded is recorded as it is
        sent, and is the same commit to everybody: call this once for each, with all
        bases that it is to be led to from; those of *others* are `repack`'s.

        Raises:
            BackendError: the base is too old or not known; send a full one. Or the
                files are not *valid* any more: a later owner may have written to them,
                and nothing was recorded.
            CopyError: there is not enough space for the copies.

        """
        commit = self.manifest.commit()
        by_base = {each: self._wanted(each, only) for each in (base, *others)}
        wanted = sorted(set[bytes]().union(*by_base.values()))
        self.unpack()
        outbox = self._outbox = new_outbox(self.home / OUTBOX_NAME)
        snapshot = self._commits.of(commit)
        if snapshot:
            fill_from(snapshot, outbox)
        else:
            with Beneath(self.live) as live:
                known = self._known(wanted)
                size_bytes = sum(held_bytes(live, each.entry) for each in known)
            require_space(self.home, size_bytes)
            filled = fill(self.live, self._known(wanted), outbox)
        if not valid():
            raise BackendError("the volume has changed hands meanwhile")
        if not snapshot:
            self.manifest.record(filled.entries, filled.gone, commit=commit)
        self._packed = _Packed(wanted, by_base)
        return self.repack(base)

    def repack(self, base: Commit | None) -> Package:
        """
        Return what was packed last, for copies at another of its bases.

        Raises:
            BackendError: the base is not known, or the disk refuses.

        """
        packed, outbox, commit = self._packed, self._outbox, self.manifest.commit()
        if outbox is None:
            raise BackendError("nothing is packed")
        header = Header(volume=self._volume_id, base=base, commit=commit)
        named, deletions = self._after(base)
        with writing(outbox):
            write_delta(outbox / DELTA_NAME, header, named, deletions)
        wanted = packed.by_base[base]
        if base is not None:
            # What others lacked has been copied and recorded anew: it is sent to all.
            wanted = wanted.union(self.changed_since(base))
        chosen = self._known(path for path in packed.paths if path in wanted)
        names, size_bytes = listed(outbox, chosen)
        return Package(outbox, commit, f"{DELTA_NAME}\0".encode() + names, size_bytes)

    def unpack(self) -> None:
        """Remove what `pack` has made."""
        outbox, self._outbox = self._outbox, None
        if outbox is not None:
            unpack(outbox)

    def leave_packed(self) -> Path | None:
        """Return the directory of what `pack` has made, which is the caller's now."""
        outbox, self._outbox = self._outbox, None
        return outbox

    def changed_since(self, commit: Commit) -> set[bytes]:
        """Return the paths of what was written after *commit*, as far as is known."""
        since = self.manifest.since(commit)
        return {entry.path for entry in since[0]} if since else set()

    def _wanted(self, base: Commit | None, only: Collection[bytes]) -> set[bytes]:
        """Return the paths whose contents are to be sent, files with all names."""
        since = self._after(base)[0] if base is not None else ()
        found, inodes = set[bytes](), set[int]()
        for entry in chain((known.entry for known in self._known(only)), since):
            found.add(entry.path)
            if entry.links:
                inodes.add(entry.links)
        for inode in inodes:
            found.update(self.manifest.names(inode))
        return found

    def _known(self, paths: Iterable[bytes]) -> Iterator[Known]:
        """Yield what the manifest knows of *paths*."""
        return filter(None, map(self.manifest.get, paths))

    def _after(self, base: Commit | None) -> tuple[Iterator[Entry], Iterator[bytes]]:
        """Return what the delta from *base* names; without one, everything."""
        if base is None:
            return (known.entry for known in self.manifest.all()), iter(())
        since = self.manifest.since(base)
        if since is None:
            raise BackendError(f"what has changed since {base} is not known")
        return since

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
        if self.staging.marked() is None:
            return
        commit = apply(self.home, self.manifest)
        if self.by_snapshot and self.commit() == commit:
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


def _certain(changes: Changes, begun_ns: int) -> Changes:
    """Return *changes* of a look that began at *begun_ns*; see `certain`."""
    return replace(
        changes,
        changed=[certain(known, begun_ns) for known in changes.changed],
        rest=changes.rest and (_certain(each, begun_ns) for each in changes.rest),
    )
