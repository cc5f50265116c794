"""
A commit's files as they were at one moment in which nobody wrote.

    <home>/outbox/*/tree/    copies that share their blocks, where the filesystem can

It is an outbox that was filled before it is known what goes into it, and becomes the
commit's. So a crash leaves nothing new.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec

from backends.errors import BackendError
from backends.rsync.journal import refusals
from backends.rsync.journal.base_leads import Lead
from backends.rsync.journal.early_leads import EarlyLeads
from backends.rsync.journal.entries import Known, certain, is_below, look_at
from backends.rsync.journal.large_files import LargeFiles, is_large
from backends.rsync.journal.outbox import (
    OUTBOX_NAME,
    fill,
    new_outbox,
    require_space,
    unpack,
)
from backends.rsync.journal.redo_files import opened_file
from backends.rsync.journal.scan import Changes
from backends.system.beneath import Beneath
from backends.system.clock import wall_ns
from backends.system.libc import write_out

# A copy of a file without a change in its blocks takes a tenth of a millisecond.
FILES_MAX: Final = 1_000
# Where blocks cannot be shared, a slow disk reads and writes so much in half a second.
COPIED_BYTES_MAX: Final = 32 * 2**20


class Moment:
    """
    What has changed in *live*, and the files that it was before, as they are now.

    *changes* were found since nobody writes any more; of *others*, which have not
    changed, members lack something. Of those in *early* it has what has moved alone.

    Raises:
        BackendError: it is too much for a moment, or somebody writes all the same.
        CopyError: the disk refuses.

    """

    def __init__(
        self,
        live: Path,
        changes: Changes,
        others: Iterable[Known],
        early: EarlyLeads | None,
    ) -> None:
        gone = set(changes.deleted)
        rows = {
            known.entry.path: known
            for known in (*others, *changes.changed)
            if known.entry.path not in gone and not is_below(known.entry.path, gone)
        }
        if changes.rest:
            raise too_many()
        # More may have changed than what was prepared.
        _require_few(live, rows.values(), shares_blocks=early is not None)
        self._changes = changes
        self._outbox: Path | None = new_outbox(live.parent / OUTBOX_NAME)
        try:
            self._leads, led = _leads(live, rows, early)
            ordered = [rows[path] for path in sorted(rows.keys() - led.keys())]
            self._filled = fill(live, ordered, self._outbox)
        except BaseException:
            self.drop()
            raise
        if self._filled.gone:
            self.drop()
            raise BackendError("somebody else writes to it")
        self._led = led
        self._alike_since = {path: each.alike_since for path, each in rows.items()}

    def changes(self) -> Changes:
        """
        Return what has changed, each file as its copy is.

        The others count as changed, too: all of an outbox is of its commit.
        """
        since = self._alike_since
        changed = [
            msgspec.structs.replace(each, alike_since=since[each.entry.path])
            for each in chain(self._led.values(), self._filled.entries)
        ]
        return replace(self._changes, changed=changed)

    def has(self, paths: Collection[bytes]) -> bool:
        """Return whether it still has all of *paths*."""
        return self._outbox is not None and self._alike_since.keys() >= set(paths)

    def take(self) -> tuple[Path, Mapping[bytes, Lead]]:
        """Return its outbox, and the leads to files that are not in it."""
        outbox, self._outbox = self._outbox, None
        leads, self._leads = self._leads, {}
        if outbox is None:
            raise BackendError("the moment was sent already")
        return outbox, leads

    def drop(self) -> None:
        """Remove it, if nobody has taken it."""
        if self._outbox is not None:
            unpack(self.take()[0])


def prepare(live: Path, rows: Sequence[Known], *, shares_blocks: bool) -> None:
    """
    Have *rows* written out, so that a moment of *live* waits for less.

    Raises:
        BackendError: they cannot be copied within a moment.
        CopyError: there is not enough space for the copies.

    """
    _require_few(live, rows, shares_blocks=shares_blocks)
    with Beneath(live) as tree:
        for known in rows:
            if known.entry.kind == "file":
                with opened_file(tree, known.entry.path) as file:
                    if file is not None:
                        write_out(file)


def _require_few(live: Path, rows: Collection[Known], *, shares_blocks: bool) -> None:
    if len(rows) > FILES_MAX:
        raise too_many()
    if not shares_blocks:
        size_bytes = sum(each.entry.size for each in rows)
        if size_bytes > COPIED_BYTES_MAX:
            raise BackendError(
                f"files share no blocks here, and to copy {size_bytes >> 20} MiB would "
                "stop its containers for too long"
            )
        require_space(live, size_bytes)


def lead_early(live: Path, rows: Iterable[Known], kept: LargeFiles) -> EarlyLeads:
    """Return leads to the large files of *rows*; *kept* has what each was."""
    large = [known for known in rows if is_large(known.entry)]
    with Beneath(live) as tree:
        # A file may have been replaced since.
        now = [*filter(None, (look_at(tree, known.entry.path) for known in large))]
        early = EarlyLeads(live.parent, {known.inode for known in now})
        try:
            for entry in (known.entry for known in large):
                path = entry.path
                content, _ = kept.base_for(path, kept.log.content_of(entry))
                with opened_file(tree, path) as file, ExitStack() as stack:
                    base = content and stack.enter_context(
                        kept.bases.opened(path, content)
                    )
                    if file is not None:
                        early.add(path, file, base=base, content=content)
        except BaseException:
            early.close()
            raise
    return early


def _leads(
    live: Path, rows: Mapping[bytes, Known], early: EarlyLeads | None
) -> tuple[Mapping[bytes, Lead], Mapping[bytes, Known]]:
    """Return the leads to those of *rows* that have *early* ones, and their rows."""
    leads, led = dict[bytes, Lead](), dict[bytes, Known]()
    with Beneath(live) as tree:
        for path in (each for each in rows if early is not None and each in early):
            begun_ns = wall_ns()
            with opened_file(tree, path) as file:
                if file is None:
                    continue
                write_out(file)
                status, known = os.fstat(file), look_at(tree, path)
                if known is None or known.inode != status.st_ino or known.entry.links:
                    continue
                refusals.require_few_holes(path, status)
                if early and (lead := early.take(path, file)) is not None:
                    leads[path] = lead
                    led[path] = certain(known, begun_ns, is_read=False)
    return leads, led


def too_many() -> BackendError:
    """Return why so much cannot be copied within a moment."""
    return BackendError(f"more than {FILES_MAX} files are to be copied at once")
