"""What a directory or a manifest has beyond the entries of a full delta."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from backends.rsync.journal.entries import Entry, topmost
from backends.rsync.journal.manifest import Manifest
from backends.system.beneath import Beneath
from backends.system.walk import walk


def paths_beyond(
    tree: Beneath, entries: Iterator[Entry], *, leave_out: bytes
) -> Iterator[bytes]:
    """
    Yield what is in *tree* and not in *entries*, which come in order of their paths.

    A directory stands for all below it; so does one that is to become something else.
    Only the name *leave_out* at the top is passed over. The caller may remove each path
    as it comes.
    """
    beyond = {leave_out}
    entry = next(entries, None)
    with tree.opened(b"") as top:
        for path, _, _, status in walk(top, enter=lambda path: path not in beyond):
            if path == leave_out:
                continue
            while entry is not None and entry.path < path:
                entry = next(entries, None)
            is_directory = stat.S_ISDIR(status.st_mode)
            if (
                entry is None
                or entry.path != path
                or (entry.kind == "directory") != is_directory
            ):
                if is_directory:
                    beyond.add(path)
                yield path


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
