"""What a directory or a manifest has beyond the entries of a full delta."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator

from backends.rsync.journal.beneath import Beneath
from backends.rsync.journal.entries import Entry
from backends.rsync.journal.manifest import Manifest, topmost


def paths_beyond(
    tree: Beneath, entries: Iterator[Entry], *, leave_out: bytes
) -> Iterator[bytes]:
    """
    Yield what is in *tree* and not in *entries*, which come in order of their paths.

    A directory stands for all below it; so does one that is to become something else.
    Only the name *leave_out* at the top is passed over. The caller may remove each path
    as it comes.
    """
    # Popped, paths come in the order of their bytes: what is below one comes after it.
    pending = [each for each in _below(tree, b"") if each[0] != leave_out]
    heapq.heapify(pending)
    entry = next(entries, None)
    while pending:
        path, is_directory = heapq.heappop(pending)
        while entry is not None and entry.path < path:
            entry = next(entries, None)
        if (
            entry is None
            or entry.path != path
            or (entry.kind == "directory") != is_directory
        ):
            yield path
        elif is_directory:
            for each in _below(tree, path):
                heapq.heappush(pending, each)


def _below(tree: Beneath, path: bytes) -> Iterator[tuple[bytes, bool]]:
    descriptor = tree.open(path)
    try:
        with os.scandir(descriptor) as found:
            for each in found:
                name = os.fsencode(each.name)
                full = path + b"/" + name if path else name
                yield full, each.is_dir(follow_symlinks=False)
    finally:
        os.close(descriptor)


def rows_beyond(manifest: Manifest, entries: Iterator[Entry]) -> list[bytes]:
    """Return the paths that *manifest* has and *entries* have not; the topmost only."""
    beyond = []
    entry = next(entries, None)
    for known in manifest.all():
        path = known.entry.path
        while entry is not None and entry.path < path:
            entry = next(entries, None)
        if entry is None or entry.path != path:
            beyond.append(path)
    return list(topmost(beyond))
