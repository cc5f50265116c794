"""
Sends of large files what has changed in them, and no more.

What leads a member on from a commit that it has is a redo file (`redo.py`), in the
outbox beside the copies. Where a file has changed since the commit before is found
while both are at hand, and noted (`range_log.py`), so that a member that was away gets
the ranges of all that it has missed. It is found

- between two snapshots of btrfs, when a commit is recorded;
- on XFS between the copy in the outbox and the one of the commit before, which share
  their blocks (`base_clones.py`), when the commit is packed;
- elsewhere by reading the file once, when the commit is packed (`block_index.py`).

What is not known means the whole file, as small files are sent.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from backends.errors import BackendError
from backends.rsync.journal.base_clones import BaseClones
from backends.rsync.journal.block_index import BlockIndexes, Searching
from backends.rsync.journal.commits import Moments
from backends.rsync.journal.entries import Commit, Entry, Known, certain, look_at
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.outbox import TREE_NAME
from backends.rsync.journal.range_log import RangeLog
from backends.rsync.journal.redo import LARGE_BYTES, Redo, Table, finish, packed
from backends.rsync.journal.redo import TREE_NAME as REDO_NAME
from backends.rsync.journal.redo_files import Made, created, opened_file, write_redo
from backends.system import btrfs_extents, extents
from backends.system.beneath import Beneath
from backends.system.clock import wall_ns
from backends.system.copy_file import FileCopier
from backends.system.files import remove_tree
from backends.system.libc import write_out
from backends.system.ranges import Range


@dataclass(slots=True)
class _Plan:
    """
    How one large file is sent: as a redo file from ``base``, the oldest, or not at all.

    ``content`` is the commit that it was searched at last. ``whole``: some member needs
    all of it. ``is_read``: it was not copied, and is in the redo file alone.
    """

    inode: int
    content: Commit
    base: Commit | None = None
    whole: bool = False
    is_read: bool = False

    def only_redo(self) -> bool:
        """Return whether no member needs all of the file."""
        return self.base is not None and not self.whole


class LargeFiles:
    """Those of the copy in *home*."""

    def __init__(self, home: Path) -> None:
        self._directories = [home / name for name in ("ranges", "bases", "indexes")]
        self._log = RangeLog(home / "ranges")
        self._bases = BaseClones(home / "bases")
        self._indexes = BlockIndexes(home / "indexes")
        self._plans: dict[bytes, _Plan] = {}
        # How long files were read that are not copied.
        self.reading_s = 0.0

    def base_of(self, before: Entry) -> AbstractContextManager[int | None]:
        """Yield the file as it was searched last, open; None if that is not kept."""
        return self._bases.opened(before.path, self._log.content_of(before))

    def note(
        self,
        changed: Iterable[Known],
        manifest: Manifest,
        commit: Commit,
        moments: Moments | None,
    ) -> None:
        """Note that *commit* writes *changed*, which *manifest* has yet to record."""
        for known in changed:
            if not is_large(known.entry):
                continue
            path, before = known.entry.path, manifest.get(known.entry.path)
            if before is None or not _same_file(before, known):
                self._log.remove(path)
            elif moments is None:
                self._log.note_written(before.entry, commit)
            else:
                self._search_snapshots(moments, before, commit)

    def _search_snapshots(
        self, moments: Moments, before: Known, commit: Commit
    ) -> None:
        path, found = before.entry.path, None
        with (
            _opened_in(moments.before, path) as old,
            _opened_in(moments.now, path) as new,
        ):
            if old is not None and new is not None:
                found = btrfs_extents.changed_ranges(old, new, since=moments.since)
                found = _with_cut(found, old, new)
        if found is None:
            self._log.remove(path)
        else:
            self._log.add(path, before.entry.commit, commit, found)

    def plan(
        self,
        rows: Iterable[Known],
        by_base: Mapping[Commit | None, Collection[bytes]],
        only: Collection[bytes],
    ) -> None:
        """Decide how the large files among *rows* are sent to members at *by_base*."""
        self._plans = {}
        for known in rows:
            path = known.entry.path
            if is_large(known.entry):
                content = self._log.content_of(known.entry)
                plan = self._plans[path] = _Plan(known.inode, content)
                for base, wanted in by_base.items():
                    if path in wanted:
                        self._plan_for(base, path, plan, lacked=path in only)

    def _plan_for(
        self, base: Commit | None, path: bytes, plan: _Plan, *, lacked: bool
    ) -> None:
        if base is None or lacked or self._log.since(path, base, plan.content) is None:
            plan.whole = True
        else:
            plan.base = min(base, plan.base or base)

    def read(self, live: Path, outbox: Path, commit: Commit) -> list[Known]:
        """
        Return the files that are not copied, but only have redo files in *outbox*.

        The inode and ctime of each are from before it was read; its entry says what
        those have that get the redo file.
        """
        plans = {path: plan for path, plan in self._plans.items() if plan.only_redo()}
        found = []
        with ExitStack() as stack:
            source = stack.enter_context(Beneath(live))
            target = stack.enter_context(Beneath(outbox / REDO_NAME))
            read = partial(self._read_clone, target, commit)
            if plans and not self._bases.possible():
                searching = stack.enter_context(self._indexes.searching(live))
                place = target, outbox / REDO_NAME
                read = partial(self._read_through, searching, place, commit)
            for path, plan in plans.items():
                begun_ns, before = wall_ns(), look_at(source, path)
                with opened_file(source, path) as file:
                    if before is None or file is None or before.inode != plan.inode:
                        continue
                    plan.is_read = read(path, plan, file)
                if plan.is_read:
                    found.append(_as_read(target, before, begun_ns))
        return found

    def _read_clone(
        self, target: Beneath, commit: Commit, path: bytes, plan: _Plan, file: int
    ) -> bool:
        """Return whether a clone of *file* could be compared with the one before."""
        write_out(file)
        status = os.fstat(file)
        with self._bases.opened(path, plan.content) as base:
            if base is None:
                return False
            self._bases.keep(path, commit, file)
            with self._bases.opened(path, commit) as now:
                if now is None:
                    return False
                self._note_found(path, plan, commit, _compared(base, now))
                ranges = self._ranges_of(path, plan)
                if ranges is None or plan.base is None:
                    return False
                made = Made(path, plan.base, commit)
                write_redo(target, made, ranges, source=now, like=(file, status))
        return True

    def _read_through(
        self,
        searching: Searching,
        place: tuple[Beneath, Path],
        commit: Commit,
        path: bytes,
        plan: _Plan,
        file: int,
    ) -> bool:
        """Return whether *file* could be compared with its index, and was read."""
        base, also = plan.base, self._ranges_of(path, plan)
        if base is None or also is None:
            return False
        target, directory = place
        os.close(created(target, path))
        data = directory / os.fsdecode(path)
        found = searching.find(
            path, inode=plan.inode, base=plan.content, also=also, data=data
        )
        if found is None:
            return False
        self.reading_s += found.reading_s
        self._note_found(path, plan, commit, found.changed)
        with opened_file(target, path, os.O_RDWR | os.O_APPEND) as redo:
            if redo is None or plan.base is None:
                return False
            sent = packed(found.sent)
            finish(
                redo,
                Table(path, base, commit, found.size_bytes, sent, b"", found.digest),
            )
            FileCopier().copy_attributes(file, redo, os.fstat(file))
        return True

    def _ranges_of(self, path: bytes, plan: _Plan) -> list[Range] | None:
        """Return where the file has changed since the plan's base, as far as known."""
        return plan.base and self._log.since(path, plan.base, plan.content)

    def search(self, outbox: Path, commit: Commit) -> None:
        """Find out where the copies in *outbox* differ from what they were before."""
        copied = {p: plan for p, plan in self._plans.items() if not plan.is_read}
        if copied and self._bases.possible():
            for path, plan in copied.items():
                with _opened_in(outbox / TREE_NAME, path) as copy:
                    if copy is not None:
                        with self._bases.opened(path, plan.content) as base:
                            self._bases.keep(path, commit, copy)
                            found = None if base is None else _compared(base, copy)
                        self._note_found(path, plan, commit, found)
        elif copied:
            with self._indexes.searching(outbox / TREE_NAME) as searching:
                for path, plan in copied.items():
                    found = searching.index(path, inode=plan.inode, base=plan.content)
                    self._note_found(path, plan, commit, found)

    def _note_found(
        self, path: bytes, plan: _Plan, commit: Commit, found: list[Range] | None
    ) -> None:
        # One number twice with other bytes: what was sent of it is not known.
        if found is None or (found and plan.content == commit):
            self._log.reset(path)
            plan.base = None
        elif plan.content != commit:
            self._log.add(path, plan.content, commit, found)
        plan.content = commit

    def write(self, outbox: Path, commit: Commit) -> Mapping[bytes, Commit]:
        """
        Write a redo file beside each copy in *outbox* that has one.

        Return all redo files, with the oldest commit that each leads on from.
        """
        sent = {}
        with Beneath(outbox / REDO_NAME) as target:
            for path, plan in self._plans.items():
                ranges = None if plan.is_read else self._ranges_of(path, plan)
                if ranges is not None and plan.base is not None:
                    with _opened_in(outbox / TREE_NAME, path) as copy:
                        if copy is None:
                            continue
                        made = Made(path, plan.base, commit)
                        like = copy, os.fstat(copy)
                        write_redo(target, made, ranges, source=copy, like=like)
                    sent[path] = plan.base
                elif plan.is_read and plan.base is not None:
                    sent[path] = plan.base
        return sent

    def keep(self, commit: Commit) -> None:
        """Keep what was found as that of *commit*, which the manifest has recorded."""
        self._bases.keep_only(dict.fromkeys(self._plans, commit))
        for path in self._plans:
            self._indexes.keep(path, commit)

    def note_applied(
        self, live: Path, entries: Iterable[Entry], manifest: Manifest, commit: Commit
    ) -> None:
        """
        Keep the large ones of *entries*, now in *live*, to lead on from them.

        They have come with *commit*; *manifest* has recorded it.
        """
        shares_blocks = self._bases.possible()
        for entry in entries:
            if not is_large(entry):
                continue
            path = entry.path
            if entry.commit == commit and not self._log.leads_to(path, commit):
                self._log.reset(path)
            content = self._log.content_of(entry)
            if shares_blocks and not self._bases.is_kept(path, content):
                with _opened_in(live, path) as file:
                    if file is not None:
                        self._bases.keep(path, entry.commit, file)
                        self._bases.keep_only({path: entry.commit})
        self.prune(manifest)

    def note_patched(self, redo: Redo, manifest: Manifest) -> None:
        """
        Note where *redo* changes its file, of which *manifest* has what it was before.

        Where a clone is kept, that will tell it: to make a new one each time would cost
        as much as the file has extents.
        """
        table = redo.table
        before = manifest.get(table.path)
        if before is None:
            return
        content = self._log.content_of(before.entry)
        if self._bases.is_young(table.path, content):
            self._log.note_written(before.entry, table.commit)
            return
        cut = [(table.size, before.entry.size - table.size)]
        changed = [*redo.ranges, *redo.holes, *(each for each in cut if each[1] > 0)]
        self._log.add(table.path, table.base, table.commit, changed)

    def prune(self, manifest: Manifest) -> None:
        """Forget the files that *manifest* does not have, or not as large ones."""
        for path in self._log.paths():
            known = manifest.get(path)
            if known is None or not is_large(known.entry):
                self._forget(path)

    def seal(self) -> None:
        """
        Have indexes believed after a power failure as well: no commit comes soon.

        Raises:
            OSError: the disk refuses.

        """
        self._indexes.seal()

    def forget(self) -> None:
        """Forget all: the bytes are others now."""
        for directory in self._directories:
            remove_tree(directory)

    def _forget(self, path: bytes) -> None:
        self._log.remove(path)
        self._bases.keep_only({path: None})
        self._indexes.forget(path)


def is_large(entry: Entry) -> bool:
    """Return whether ranges of the file are worth looking for; of one with one name."""
    return entry.kind == "file" and entry.size >= LARGE_BYTES and not entry.links


def _same_file(one: Known, other: Known) -> bool:
    return one.inode == other.inode and is_large(one.entry)


def _with_cut(found: list[Range] | None, old: int, new: int) -> list[Range] | None:
    """Return *found* and what was cut off: the file may have grown again by then."""
    before, size = os.fstat(old).st_size, os.fstat(new).st_size
    if found is None or before <= size:
        return found
    return [*found, (size, before - size)]


def _compared(old: int, new: int) -> list[Range] | None:
    """Return where two clones differ, None if that cannot be told."""
    return _with_cut(extents.changed_ranges(old, new), old, new)


def _as_read(redo_files: Beneath, before: Known, begun_ns: int) -> Known:
    """Return the row of a file that was *before*, and has a redo file now."""
    path = before.entry.path
    made = look_at(redo_files, path)
    with opened_file(redo_files, path) as file:
        if made is None or file is None:
            raise BackendError(f"the redo file of {path!r} has vanished")
        size = Redo(file).table.size
    entry = msgspec.structs.replace(made.entry, size=size)
    return certain(Known(entry, before.inode, before.ctime_ns), begun_ns)


@contextmanager
def _opened_in(top: Path, path: bytes) -> Iterator[int | None]:
    """Yield the regular file *path* in *top*, opened; None if there is none."""
    with Beneath(top) as tree, opened_file(tree, path) as file:
        yield file
