"""
Packs of large files what has changed in them: as redo files, in the outbox.

See `large_files.py` for how changes are found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeGuard

from backends.errors import RemoraError
from backends.rsync.journal import refusals
from backends.rsync.journal.base_leads import Lead, copy_lead, giving
from backends.rsync.journal.block_index import Searching
from backends.rsync.journal.entries import Commit, Known, look_at
from backends.rsync.journal.large_files import (
    LargeFiles,
    is_large,
    optional,
    with_cut,
)
from backends.rsync.journal.outbox import SECTOR_BYTES, TREE_NAME, left_free_bytes
from backends.rsync.journal.redo import TREE_NAME as REDO_NAME
from backends.rsync.journal.redo import Table, finish, packed
from backends.rsync.journal.redo_files import (
    Made,
    opened_file,
    opened_in,
    row_of,
    write_redo,
    writing_redo,
)
from backends.system import extents
from backends.system.beneath import Beneath
from backends.system.clock import wall_ns
from backends.system.copy_file import FileCopier
from backends.system.files import free_bytes
from backends.system.libc import write_out
from backends.system.ranges import Range, cut


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


class RangePacking:
    """
    The large files of one commit, of which *kept* has what they were before.

    Nobody writes to what *stands_still*, as long as it is *valid*.
    """

    def __init__(
        self, kept: LargeFiles, valid: Callable[[], bool], *, stands_still: bool
    ) -> None:
        self._kept = kept
        self._valid = valid
        self._stands_still = stands_still
        self._plans: dict[bytes, _Plan] = {}
        # What leads bases on that are yet to be led there.
        self._leads: list[Lead] = []
        # How long files were read that are not copied.
        self.reading_s = 0.0

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
                content = self._kept.log.content_of(known.entry)
                plan = self._plans[path] = _Plan(known.inode, content)
                for base, wanted in by_base.items():
                    if path in wanted:
                        self._plan_for(base, path, plan, lacked=path in only)

    def _plan_for(
        self, base: Commit | None, path: bytes, plan: _Plan, *, lacked: bool
    ) -> None:
        if (
            base is None
            or lacked
            or self._kept.log.since(path, base, plan.content) is None
        ):
            plan.whole = True
        else:
            plan.base = min(base, plan.base or base)

    def read(self, live: Path, outbox: Path, commit: Commit) -> list[Known]:
        """
        Return the files that are not copied, but only have redo files in *outbox*.

        The inode and ctime of each are from before it was read; its entry says what
        those have that get the redo file. Some are left out if it is not valid any
        more.
        """
        found: list[Known] = []
        with optional():
            self._read(live, outbox, commit, found)
        return found

    def _read(
        self, live: Path, outbox: Path, commit: Commit, found: list[Known]
    ) -> None:
        plans = {path: plan for path, plan in self._plans.items() if plan.only_redo()}
        with ExitStack() as stack:
            source = stack.enter_context(Beneath(live))
            target = stack.enter_context(Beneath(outbox / REDO_NAME))
            place = target, outbox
            read = partial(self._read_moved, place, commit)
            is_read = bool(plans) and not self._kept.bases.possible()
            if is_read:
                searching = stack.enter_context(self._kept.indexes.searching(live))
                read = partial(self._read_through, searching, place, commit)
            for path, plan in plans.items():
                if not self._valid():
                    return
                begun_ns, before = wall_ns(), look_at(source, path)
                with opened_file(source, path) as file:
                    same = file is not None and os.fstat(file).st_ino == plan.inode
                    if before is None or file is None or not same:
                        continue
                    refusals.require_few_holes(path, os.fstat(file))
                    with optional():
                        plan.is_read = read(path, plan, file)
                if plan.is_read:
                    row = row_of(target, before, begun_ns, is_read=is_read)
                    found.append(row)

    def _read_moved(
        self,
        place: tuple[Beneath, Path],
        commit: Commit,
        path: bytes,
        plan: _Plan,
        file: int,
    ) -> bool:
        """Return whether *file* could be compared with the clone that is kept."""
        write_out(file)
        status = os.fstat(file)
        with self._base(path, plan.content) as (kept, base, beside):
            if base is None:
                return False
            lead = self._kept.bases.lead_on(
                path, kept, base, file, stands_still=self._stands_still
            )
        if lead is None or not self._valid():
            return False
        if not self._stands_still:
            FileCopier().copy_attributes(file, lead.file, status)
        return self._send(place, commit, plan, lead, beside)

    def _send(
        self,
        place: tuple[Beneath, Path],
        commit: Commit,
        plan: _Plan,
        lead: Lead,
        beside: list[Range],
    ) -> bool:
        """Return whether there is a redo file now of what *lead* and *beside* have."""
        path, (target, outbox) = lead.path, place
        found = with_cut([*lead.changed(), *beside], lead.base, lead.file)
        if not self._valid():
            return False
        self._note_found(path, plan, commit, found)
        ranges = self._ranges_of(path, plan)
        if plan.base is None or not _fit(ranges, outbox, lead.base, lead.file):
            return False
        made, parts = Made(path, plan.base, commit), lead.parts(ranges)
        like = lead.file, os.fstat(lead.file)
        write_redo(target, made, parts, size=lead.size, like=like)
        self._leads.append(lead)
        return True

    def lead_on(
        self, outbox: Path, commit: Commit, leads: Mapping[bytes, Lead]
    ) -> None:
        """
        Have redo files of what *leads* have, and no copies, in *outbox*.

        Whoever needs all of a file gets it made of the lead and its base.
        """
        with Beneath(outbox / REDO_NAME) as target, Beneath(outbox / TREE_NAME) as tree:
            for path, lead in leads.items():
                plan = self._plans.get(path)
                if not self._valid():
                    return
                if (
                    plan is not None
                    and plan.only_redo()
                    and (beside := self._beside(plan, lead)) is not None
                ):
                    with optional():
                        place = target, outbox
                        plan.is_read = self._send(place, commit, plan, lead, beside)
                # It may be none of the large files any more: it was cut meanwhile.
                if (plan is None or not plan.is_read) and self._valid():
                    copy_lead(tree, lead)

    def _beside(self, plan: _Plan, lead: Lead) -> list[Range] | None:
        """Return what changed between the base of *lead* and the last search, if so."""
        if lead.content is None or lead.content == plan.content:
            return lead.content and []
        return self._kept.log.since(lead.path, lead.content, plan.content)

    def advance_bases(self, commit: Commit) -> None:
        """
        Make the bases of what was read those of *commit*, if that still is valid.

        It takes as long as more ranges have moved, and nobody needs it before the next
        search. Without it that compares with an older one. It may be the same commit
        that is packed again: then nothing may differ, or it is sent as a whole.
        """
        leads, self._leads = self._leads, []
        # The commit is on its way: no error may keep anybody from waiting for that.
        with suppress(RemoraError):
            for lead in leads if leads and self._valid() else ():
                with optional():
                    self._kept.bases.advance(
                        lead.path, lead.content, commit, giving(lead, self._valid)
                    )

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
        target, outbox = place
        with writing_redo(target, path) as redo:
            found = searching.find(
                path,
                inode=plan.inode,
                base=plan.content,
                also=also,
                data=outbox / REDO_NAME / os.fsdecode(path),
                left_free_bytes=left_free_bytes(outbox),
            )
            if found is None:
                return False
            self.reading_s += found.reading_s
            self._note_found(path, plan, commit, found.changed)
            if plan.base is None:
                return False
            sent = packed(found.sent)
            finish(
                redo,
                Table(path, base, commit, found.size_bytes, sent, b"", found.digest),
            )
            FileCopier().copy_attributes(file, redo, os.fstat(file))
        return True

    @contextmanager
    def _base(
        self, path: bytes, content: Commit
    ) -> Iterator[tuple[Commit, int | None, list[Range]]]:
        """Yield the clone that is kept, its commit before and what changed after it."""
        kept, beside = self._kept.base_for(path, content)
        if kept is None:
            yield content, None, []
            return
        with self._kept.bases.opened(path, kept) as base:
            yield kept, base, beside

    def _ranges_of(self, path: bytes, plan: _Plan) -> list[Range] | None:
        """Return where the file has changed since the plan's base, as far as known."""
        return plan.base and self._kept.log.since(path, plan.base, plan.content)

    def search(self, outbox: Path, commit: Commit) -> None:
        """Find out where the copies in *outbox* differ from what they were before."""
        copied = {p: plan for p, plan in self._plans.items() if not plan.is_read}
        directory, found = outbox / TREE_NAME, dict[bytes, list[Range]]()
        if not copied:
            return
        with optional(), ExitStack() as stack:
            searching = None
            if not self._kept.bases.possible():
                searching = stack.enter_context(self._kept.indexes.searching(directory))
            for path, plan in copied.items():
                if searching is None:
                    told = self._compared_copy(directory, path, plan, commit)
                else:
                    told = searching.index(path, inode=plan.inode, base=plan.content)
                if told is not None:
                    found[path] = told
        for path, plan in copied.items():
            self._note_found(path, plan, commit, found.get(path))

    def _compared_copy(
        self, directory: Path, path: bytes, plan: _Plan, commit: Commit
    ) -> list[Range] | None:
        with (
            opened_in(directory, path) as copy,
            self._base(path, plan.content) as (_, base, beside),
        ):
            if copy is None:
                return None
            self._kept.bases.keep(path, commit, copy)
            found = None if base is None else _compared(base, copy)
            return None if found is None else [*found, *beside]

    def _note_found(
        self, path: bytes, plan: _Plan, commit: Commit, found: list[Range] | None
    ) -> None:
        # One number twice with other bytes: what was sent of it is not known.
        if found is None or (found and plan.content == commit):
            self._kept.log.reset(path)
            plan.base = None
        elif plan.content != commit:
            self._kept.log.add(path, plan.content, commit, found)
        plan.content = commit

    def write(self, outbox: Path, commit: Commit) -> Mapping[bytes, Commit]:
        """
        Write a redo file beside each copy in *outbox* that has one.

        Return all redo files, with the oldest commit that each leads on from.
        """
        sent = {}
        with Beneath(outbox / REDO_NAME) as target:
            for path, plan in self._plans.items():
                made = plan.base and Made(path, plan.base, commit)
                if made and (plan.is_read or self._write(outbox, target, made, plan)):
                    sent[path] = made.base
        return sent

    def _write(self, outbox: Path, target: Beneath, made: Made, plan: _Plan) -> bool:
        """Return whether the redo file could be made of the file's copy."""
        ranges = self._ranges_of(made.path, plan)
        with opened_in(outbox / TREE_NAME, made.path) as copy:
            if copy is None or not _fit(ranges, outbox, copy):
                return False
            status, done = os.fstat(copy), False
            size, parts = status.st_size, [(copy, cut(ranges, status.st_size))]
            with optional():
                write_redo(target, made, parts, size=size, like=(copy, status))
                done = True
        return done

    def keep(self, commit: Commit) -> None:
        """Keep what was found as that of *commit*, which the manifest has recorded."""
        before = {lead.path: lead.content for lead in self._leads}
        self._kept.bases.keep_only(dict.fromkeys(self._plans, commit) | before)
        for path in self._plans:
            self._kept.indexes.keep(path, commit)


def _fit(
    ranges: list[Range] | None, outbox: Path, *sources: int
) -> TypeGuard[list[Range]]:
    """Return whether what the open *sources* have in *ranges* fits into *outbox*."""
    if ranges is None:
        return False
    held_bytes = sum(os.fstat(each).st_blocks for each in sources) * SECTOR_BYTES
    wanted_bytes = min(held_bytes, sum(length for _, length in ranges))
    return wanted_bytes <= free_bytes(outbox)[1] - left_free_bytes(outbox)


def _compared(old: int, new: int) -> list[Range] | None:
    """Return where two clones differ, None if that cannot be told."""
    return with_cut(extents.changed_ranges(old, new), old, new)
