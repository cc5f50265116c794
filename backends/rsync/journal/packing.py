"""
Packs one commit for members that stand at some bases, in an outbox of its own.

    <home>/outbox/*/delta    what it changes, for one base at a time
    <home>/outbox/*/tree/    copies of the files, or a snapshot with all of them
    <home>/outbox/*/redo/    what changes in large files
    <home>/outbox/*/attributes/   of files that keep their content
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from backends.errors import BackendError
from backends.rsync.journal.delta import Header, write_delta
from backends.rsync.journal.entries import Commit, Entry, Known, recounted
from backends.rsync.journal.kept_files import Telling, chosen
from backends.rsync.journal.large_files import LargeFiles
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.moment import Moment
from backends.rsync.journal.outbox import (
    OUTBOX_NAME,
    TREE_NAME,
    Filled,
    fill,
    fill_from,
    listed,
    new_outbox,
    writing,
)
from backends.rsync.journal.portions import portion
from backends.rsync.journal.range_packing import RangePacking
from backends.rsync.journal.staging import LIVE_NAME
from backends.system.beneath import Beneath

DELTA_NAME: Final = "delta"


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


class Packing:
    """
    The commit of *manifest*, of the volume *volume_id* in *home*.

    Its files are in *source*, a snapshot or a moment, or else in the live directory.
    """

    def __init__(
        self,
        home: Path,
        volume_id: str,
        manifest: Manifest,
        source: Path | Moment | None,
        *,
        valid: Callable[[], bool],
        stands_still: bool,
    ) -> None:
        """Nobody writes to what *stands_still*, as long as it is *valid*."""
        self.outbox: Path | None = None
        self._home = home
        self._live = home / LIVE_NAME
        self._volume_id = volume_id
        self._manifest = manifest
        self._commit = manifest.commit()
        self._source = source
        self._kept = LargeFiles(home)
        self._valid = valid
        self._ranges = RangePacking(self._kept, valid, stands_still=stands_still)
        self.reading_s = 0.0
        # Whether files were copied from the live directory.
        self.is_live = False
        self._paths: Sequence[bytes] = ()
        # Of others members get to know what they hold.
        self._telling = Telling()
        # The paths that are to be sent, by base.
        self._by_base: Mapping[Commit | None, set[bytes]] = {}
        # Who is at the commit of one of these, or a later one, gets its redo file.
        self._redo: Mapping[bytes, Commit] = {}

    def pack(
        self,
        bases: Sequence[Commit | None],
        *,
        only: Collection[bytes],
    ) -> None:
        """
        Copy what leads copies from *bases* to the commit.

        Without a base everything is named and the files of *only* are sent: the others
        are there already. What does not fit on the disk at once comes when members say
        that they lack it. What has changed since it was recorded is recorded as it is
        sent, and is the same commit to everybody: do this once for each, with all bases
        that it is to be led to from.

        Raises:
            BackendError: a base is too old or not known; send a full one. Or the files
                are not valid any more: a later owner may have written to them, and
                nothing was recorded.
            CopyError: there is not enough space for the copies.

        """
        manifest, filled = self._manifest, None
        self._by_base = {each: wanted(manifest, each, only) for each in bases}
        every = sorted(set[bytes]().union(*self._by_base.values()))
        kept = chosen(self._known(every), self._by_base, {*only})
        self._telling = Telling([path for path in every if path in kept])
        self._paths = [path for path in every if path not in kept]
        self._ranges.plan(self._known(self._paths), self._by_base, only)
        if isinstance(self._source, Moment) and self._source.has(every):
            self.outbox, found = self._source.take()
            leads = {path: found[path] for path in self._paths if path in found}
            outbox = self.outbox
            with writing(outbox):
                self._ranges.lead_on(outbox, self._commit, leads)
                self._require_valid()
                self._ranges.search(outbox, self._commit)
        else:
            self.outbox = outbox = new_outbox(self._home / OUTBOX_NAME)
            if isinstance(self._source, Path):
                fill_from(self._source, outbox)
            else:
                filled = self._fill(outbox, only)
        self._require_valid()
        self._record(filled, only)
        if self._telling.paths:
            manifest.record(self._told(outbox), (), commit=self._commit)
        with writing(outbox):
            self._redo = self._ranges.write(outbox, self._commit)

    def _require_valid(self) -> None:
        if not self._valid():
            raise BackendError("the volume has changed hands meanwhile")

    def _told(self, outbox: Path) -> Iterator[Known]:
        """Yield what is to be recorded anew of the files that are told of."""
        source = self._live if self.is_live else outbox / TREE_NAME
        yield from self._telling.read(
            *(source, self._manifest, outbox), stands_still=not self.is_live
        )
        self._require_valid()

    def _record(self, filled: Filled | None, lacked: Collection[bytes]) -> None:
        """Record the files as they are sent."""
        self.is_live = filled is not None
        if filled is not None:
            self._manifest.record(filled.entries, filled.gone, commit=self._commit)
        if isinstance(self._source, Path):
            with Beneath(self._source) as tree:
                counted_anew = recounted(tree, self._known(lacked))
            self._manifest.record(counted_anew, (), commit=self._commit)
        else:
            self._ranges.keep(self._commit)
            if None in self._by_base:
                self._kept.adopt(self._live, self._manifest)

    def advance_bases(self) -> None:
        """Do what the next commit is found by, and this one is sent without."""
        self._ranges.advance_bases(self._commit)

    def _fill(self, outbox: Path, lacked: Collection[bytes]) -> Filled:
        """
        Copy the files into *outbox*, but for large ones that are only read.

        If they do not all fit, the paths are those that do, *lacked* first.
        """
        with writing(outbox):
            read = self._ranges.read(self._live, outbox, self._commit)
        self._require_valid()
        done = {known.entry.path for known in read}
        to_copy = self._known(path for path in self._paths if path not in done)
        copied = portion(self._home, self._live, to_copy, lacked)
        self._paths = sorted([*done, *copied])
        filled = fill(self._live, self._known(copied), outbox)
        with writing(outbox):
            self._ranges.search(outbox, self._commit)
        self.reading_s = self._ranges.reading_s
        return dataclasses.replace(filled, entries=chain(read, filled.entries))

    def package(self, base: Commit | None) -> Package:
        """
        Return what was packed, for copies at *base*, one of those of `pack`.

        Raises:
            BackendError: the base is not known, or the disk refuses.

        """
        outbox = self.outbox
        if outbox is None:
            raise BackendError("nothing is packed")
        header = Header(volume=self._volume_id, base=base, commit=self._commit)
        named, deletions = after(self._manifest, base)
        with writing(outbox):
            told = self._telling.told(named)
            write_delta(outbox / DELTA_NAME, header, told, deletions)
        sent, led_on = self._by_base[base], set[bytes]()
        if base is not None:
            # What others lacked has been copied and recorded anew: it is sent to all.
            sent = sent.union(e.path for e in after(self._manifest, base)[0])
            led_on = {path for path, oldest in self._redo.items() if oldest <= base}
        rows = self._known(path for path in self._paths if path in sent)
        names, size_bytes = listed(outbox, rows, led_on)
        own, own_bytes = self._telling.names(outbox, self._manifest, sent)
        names = f"{DELTA_NAME}\0".encode() + names + own
        return Package(outbox, self._commit, names, size_bytes + own_bytes)

    def _known(self, paths: Iterable[bytes]) -> Iterator[Known]:
        """Yield what the manifest knows of *paths*."""
        return filter(None, map(self._manifest.get, paths))


def wanted(
    manifest: Manifest,
    base: Commit | None,
    only: Collection[bytes],
    *,
    enough: int = sys.maxsize,
) -> set[bytes]:
    """
    Return the paths whose contents are to be sent to who is at *base*, or lacks *only*.

    Files have all their names. Of more than *enough* some more than that are returned.

    Raises:
        BackendError: the base is too old or not known.

    """
    since = after(manifest, base)[0] if base is not None else ()
    lacked = (each.entry for each in map(manifest.get, only) if each is not None)
    found, inodes = set[bytes](), set[int]()
    for entry in chain(lacked, since):
        if len(found) > enough:
            break
        found.add(entry.path)
        if entry.links:
            inodes.add(entry.links)
    for inode in inodes:
        if len(found) > enough:
            break
        found.update(manifest.names(inode))
    return found


def after(
    manifest: Manifest, base: Commit | None
) -> tuple[Iterator[Entry], Iterator[bytes]]:
    """Return what the delta from *base* names; without one, everything."""
    if base is None:
        return (known.entry for known in manifest.all()), iter(())
    since = manifest.since(base)
    if since is None:
        raise BackendError(f"what has changed since {base} is not known")
    return since
