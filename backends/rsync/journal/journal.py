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

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final, Literal

from backends.errors import BackendError
from backends.rsync.journal.applying import apply
from backends.rsync.journal.arrivals import Arrivals
from backends.rsync.journal.commits import Commits
from backends.rsync.journal.delta import Delta, Header, write_delta
from backends.rsync.journal.entries import UNWRITTEN, Commit, Entry, Known, certain
from backends.rsync.journal.manifest import DamagedManifestError, Manifest
from backends.rsync.journal.outbox import (
    TREE_NAME,
    Filled,
    fill,
    fill_from,
    new_outbox,
    require_space,
    unpack,
    writing,
)
from backends.rsync.journal.scan import NOTHING, Changes, scan_all, scan_paths
from backends.rsync.journal.staging import LIVE_NAME, Staging
from backends.rsync.journal.watch import Hints
from backends.system import files
from backends.system.clock import wall_ns

DELTA_NAME: Final = "delta"
OUTBOX_NAME: Final = "outbox"
QUARANTINE_NAME: Final = "quarantine"
EVERYTHING: Final = Hints(everything=True)


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
    """What is in the outbox, and the paths that are to be sent of it, by base."""

    filled: Filled
    paths: Mapping[Commit | None, Collection[bytes]]


class Journal:
    """
    The copy of volume *volume_id* in *home*; use it in one thread at a time.

    A manifest that cannot be used is made anew: all is then compared once.
    """

    def __init__(self, home: Path, volume_id: str) -> None:
        self.home = home
        self.live = home / LIVE_NAME
        self.staging = Staging(home)
        self._volume_id = volume_id
        self._outbox: Path | None = None
        self._path = home / "manifest.db"
        self._commits = Commits(home, self.live)
        self.by_snapshot = self._commits.possible()
        self.manifest = self._open()
        self._packed = _Packed(Filled([], []), {})

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
        if self.by_snapshot:
            return self._look_at_snapshot(hints)
        begun_ns = wall_ns()
        if hints.everything or self.commit() == UNWRITTEN:
            changes = scan_all(self.live, self.manifest)
        else:
            changes = scan_paths(
                self.live, self.manifest, hints.paths, trees=hints.trees
            )
        return _certain(changes, begun_ns)

    def _look_at_snapshot(self, hints: Hints) -> Changes:
        commit = self.manifest.commit()
        if hints == Hints() and self._commits.is_unchanged(commit):
            return NOTHING
        new = self._commits.create()
        found = self._commits.differences(self.manifest)
        if found is None:
            return scan_all(new, self.manifest)
        changes = scan_paths(new, self.manifest, found.paths, written=found.written)
        if not changes:
            # Reading a file changes its inode, too: the next look is not for that.
            self.manifest.touch(changes.touched)
            self._commits.keep(commit)
        return changes

    def record(self, changes: Changes, commit: Commit) -> None:
        """Make *changes* the commit; what is not in them is as it was."""
        if self.by_snapshot:
            self._commits.keep(commit, same_as=None if changes else self.commit())
        parts = chain([changes], changes.rest)
        self.manifest.record_parts(
            ((each.changed, each.deleted, each.touched) for each in parts),
            commit=commit,
        )
        if self.by_snapshot:
            self._commits.prune(commit)

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
        found = {path: each for part in by_base.values() for path, each in part.items()}
        wanted = [found[path] for path in sorted(found)]
        self.unpack()
        outbox = self._outbox = new_outbox(self.home / OUTBOX_NAME)
        snapshot = self._commits.of(commit)
        if snapshot:
            filled = fill_from(snapshot, wanted, outbox)
        else:
            require_space(self.home, sum(each.entry.size for each in wanted))
            filled = fill(self.live, wanted, outbox)
        if not valid():
            raise BackendError("the volume has changed hands meanwhile")
        if not snapshot:
            self.manifest.record(filled.entries, filled.gone, commit=commit)
        self._packed = _Packed(filled, {k: v.keys() for k, v in by_base.items()})
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
        wanted = set(packed.paths[base])
        if base is not None:
            # What others lacked has been copied and recorded anew: it is sent to all.
            wanted |= self.changed_since(base)
        entries = [each for each in packed.filled.entries if each.entry.path in wanted]
        return Package(
            outbox,
            commit,
            b"".join(name + b"\0" for name in _names(entries)),
            sum({each.inode: each.entry.size for each in entries}.values()),
        )

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

    def _wanted(
        self, base: Commit | None, only: Collection[bytes]
    ) -> dict[bytes, Known]:
        """Return the entries whose contents are to be sent, files with all names."""
        if base is None:
            paths = set(only)
        else:
            paths = {entry.path for entry in self._after(base)[0]} | set(only)
        found: dict[bytes, Known] = {}
        for path in paths:
            known = self.manifest.get(path)
            if known is None:
                continue
            found[path] = known
            if known.entry.links:
                for each in self.manifest.with_inode(known.inode):
                    found[each.entry.path] = each
        return found

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
        delta = self.staging.delta()
        fault = ""
        if delta.header.volume != self._volume_id:
            fault = "the delta is of another volume"
        elif delta.header.base is None and not delta.header.entries:
            fault = "the delta says that the volume has not even a root"
        if fault:
            delta.close()
            raise BackendError(fault)
        return delta

    def missing(self, delta: Delta, arrivals: Arrivals | None = None) -> list[bytes]:
        """Return paths that have yet to be sent; see `Staging.missing`."""
        return self.staging.missing(delta, self.manifest, arrivals)

    def mark(self, delta: Delta) -> None:
        """Make the commit ours, through any crash; `apply` then has to be called."""
        self.staging.mark(delta)

    def marked(self) -> Commit | None:
        """Return the commit that has to be applied, None if there is none."""
        return self.staging.marked()

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


def _names(entries: list[Known]) -> Iterator[bytes]:
    """Yield what rsync has to send of *entries*: other directories are made there."""
    yield DELTA_NAME.encode()
    for known in entries:
        entry = known.entry
        if entry.kind != "directory" or entry.attributes:
            path = TREE_NAME.encode()
            yield path + b"/" + entry.path if entry.path else path
