"""
A look at all markers of a share, page by page.

Whoever can write to the share may put there what he likes, as much as he likes. So
there is a bound to what is read for one answer, and to what is remembered; what has not
changed, be it damaged, is not read again. A file that could not be read is: whatever
kept us from it changes no time stamp when it goes, and until then what it held counts.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from backends.nfs.agent.below import WAY, Below
from backends.nfs.agent.schema import Json
from backends.system.clock import monotonic_s

MARKER_SIZE_MAX = 64 * 1024
# A marker counts for its bytes, and for what it costs beside them: time and memory.
_MARKER_COST = 1024
_PAGE_COST_MAX = 2 << 20
PAGES_MAX = 32
MARKERS_MAX = PAGES_MAX * _PAGE_COST_MAX // _MARKER_COST
TOO_MANY = (
    f"its markers are more than the {PAGES_MAX * _PAGE_COST_MAX >> 20} MiB that are "
    "looked at: remove from .dvol/volumes what is no volume's"
)
# What is wrong with a file alone, not with the share: its mode, its blocks, a lease.
OF_ONE_FILE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EAGAIN)
# In place of an inode's number, of a file that could not be read.
_UNREAD = -1
# Servers' file systems count time in steps of up to this long.
_TIMESTAMP_GRAIN_S = 2.0

Page = tuple[list[Json], bool]


class _Seen(NamedTuple):
    """What a file was when it was read; without a marker it was none."""

    inode: int
    mtime_ns: int
    size: int
    marker: Json | None


class Markers:
    """The markers in *directory*; *read* returns one, None if it is none."""

    def __init__(
        self,
        share: Below,
        directory: str,
        *,
        read: Callable[[str], Json | None],
        tell: Callable[[str], None],
    ) -> None:
        # Whether there are more than can be looked at; those are left out.
        self.is_cut = False
        self._share = share
        self._directory = directory
        self._read = read
        self._tell = tell
        self._seen: dict[str, _Seen] = {}
        self._walk: Iterator[Page] | None = None
        # When the directory changed, by its own time stamp; when we saw that first, and
        # when we last read it, by our clock.
        self._changed = -1
        self._changed_seen_s = 0.0
        self._scanned_s = 0.0

    def all(self) -> list[Json]:
        """Return all markers at once."""
        return [marker for markers, _ in self._pages() for marker in markers]

    def has_unread(self) -> bool:
        """Return whether at the last look there was a file that could not be read."""
        return any(each.inode == _UNREAD for each in self._seen.values())

    def page(self, *, is_first: bool) -> Page:
        """Return markers, and whether a call that is not the first has more."""
        walk, self._walk = self._walk, None
        if is_first or walk is None:
            walk = self._pages()
        markers, more = next(walk, ([], False))
        if more:
            self._walk = walk
        return markers, more

    def _pages(self) -> Iterator[Page]:
        try:
            # Opened once: each look at a path asks the server for all of its parts.
            with self._share.directory(self._directory, WAY) as opened:
                yield from self._pages_of(opened)
        except FileNotFoundError:
            return

    def _pages_of(self, opened: int) -> Iterator[Page]:
        before = self._seen
        changed = os.stat(opened).st_mtime_ns
        began_s = monotonic_s()
        if changed != self._changed:
            self._changed, self._changed_seen_s = changed, began_s
        is_known = self._scanned_s - self._changed_seen_s > _TIMESTAMP_GRAIN_S
        names = [*before] if is_known else self._names()
        seen: dict[str, _Seen] = {}
        markers: list[Json] = []
        cost, pages = 0, 1
        for name in names:
            if cost > _PAGE_COST_MAX:
                if pages == PAGES_MAX:
                    self.is_cut = True
                    break
                yield markers, True
                markers, cost, pages = [], 0, pages + 1
            found = before.get(name)
            if not is_known or found is None or found.inode == _UNREAD:
                found = self._look(opened, name, found)
            cost += _MARKER_COST
            if found is not None:
                seen[name] = found
                cost += min(found.size, MARKER_SIZE_MAX)
                markers += [] if found.marker is None else [found.marker]
        if not is_known:
            self._seen, self._scanned_s = seen, began_s
        elif self._seen is before:  # nobody has looked at all of them meanwhile
            self._seen = seen
        yield markers, False

    def _names(self) -> list[str]:
        names = self._share.some_names(self._directory, MARKERS_MAX + 1)
        self.is_cut = len(names) > MARKERS_MAX
        return sorted(names)[:MARKERS_MAX]

    def _look(self, opened: int, name: str, known: _Seen | None) -> _Seen | None:
        """Return what the file *name* is, None if it is gone."""
        try:
            shown = os.stat(name, dir_fd=opened, follow_symlinks=False)
            # An inode number alone is used again at once.
            now = (shown.st_ino, shown.st_mtime_ns)
            if known is not None and known[:2] == now:
                return known
            return _Seen(*now, shown.st_size, self._read(name))
        except FileNotFoundError:
            return None
        except OSError as damage:
            if damage.errno not in OF_ONE_FILE:
                raise
            self._tell(f"{name}: {damage}")
            return _Seen(_UNREAD, 0, 0, known.marker if known else None)
