"""Whether all that a delta names has a directory to be in."""

from __future__ import annotations

from collections.abc import Iterator

from backends.errors import BackendError
from backends.rsync.journal.delta import Delta
from backends.rsync.journal.entries import parent
from backends.rsync.journal.manifest import Manifest


def require_parents(delta: Delta, manifest: Manifest) -> None:
    """Raise BackendError if an entry would have no directory to be in."""
    deleted = _Above(delta.deletions())
    for path in _parents_not_in(delta):
        known = manifest.get(path) if delta.header.base is not None else None
        if known is None or known.entry.kind != "directory" or deleted.has(path):
            raise BackendError(f"the delta has entries in {path!r}, which is not there")


class _Above:
    """
    Whether a path, or one that it lies in, is among *paths*.

    Both come in order, and *paths* are not kept: another node says how many there are.
    """

    def __init__(self, paths: Iterator[bytes]) -> None:
        self._paths = paths
        self._next = next(paths, None)
        # Those that what comes may lie in: "a-b" is between "a" and "a/c".
        self._open: list[bytes] = []

    def has(self, path: bytes) -> bool:
        """Return it of *path*, which no earlier one was after, but for its parents."""
        while self._next is not None and self._next <= path:
            while self._open and self._next >= self._open[-1] + b"0":
                self._open.pop()
            self._open.append(self._next)
            self._next = next(self._paths, None)
        return any(path == each or path.startswith(each + b"/") for each in self._open)


def _parents_not_in(delta: Delta) -> Iterator[bytes]:
    """Yield directories that have entries in *delta* and are none of these."""
    within: list[bytes] = []
    told: bytes | None = None
    for entry in delta.entries():
        while within and entry.path >= within[-1] + b"0" and within[-1]:
            within.pop()
        above = parent(entry.path)
        if entry.path and above not in within and above != told:
            told = above
            yield above
        if entry.kind == "directory":
            within.append(entry.path)
