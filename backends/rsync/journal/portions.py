"""
How much of a commit is copied at once, and how much room a volume takes.

Blocks count, not sizes; a file with several names counts once, and copies that share
their blocks take none. What does not fit at once goes in portions: the delta names all,
the member says what it lacks, and that comes next. It is one commit for the member.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from backends.rsync.journal.entries import Entry, Known
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.outbox import (
    SPARSE_FROM_BYTES,
    held_bytes,
    require_space,
    room_bytes,
)
from backends.system.beneath import Beneath
from backends.system.copy_file import can_share

_BLOCK_BYTES: Final = 4096


def portion(
    home: Path, live: Path, known: Iterable[Known], lacked: Collection[bytes]
) -> list[bytes]:
    """
    Return the paths of *known*, in order, of which copies fit into *home* at once.

    *lacked* come first, and then what is after them: of what is before, a member that
    lacks just these has the rest. Names of one file stay together.

    Raises:
        CopyError: not even one file fits.

    """
    if can_share(home):
        require_space(home, 0)
        return [each.entry.path for each in known]
    with Beneath(live) as tree:
        files = _Files(tree, known)
    if files.size_bytes <= room_bytes(home) or not files.sizes:
        require_space(home, files.size_bytes)
        return sorted(files.of_path)
    chosen, left_bytes = set[bytes](), room_bytes(home)
    for path in files.in_turn(lacked):
        size_bytes = files.sizes[files.of_path[path]]
        if path not in chosen and size_bytes <= left_bytes:
            chosen.update(files.names[files.of_path[path]])
            left_bytes -= size_bytes
    if not chosen:
        require_space(home, min(files.sizes.values()))
    return sorted(chosen)


class _Files:
    """Which *known* paths are names of one file, and what each file takes."""

    def __init__(self, tree: Beneath, known: Iterable[Known]) -> None:
        self.of_path: dict[bytes, int | bytes] = {}
        self.names: dict[int | bytes, list[bytes]] = {}
        self.sizes: dict[int | bytes, int] = {}
        for each in known:
            entry = each.entry
            file = entry.links or entry.path
            self.of_path[entry.path] = file
            self.names.setdefault(file, []).append(entry.path)
            if file not in self.sizes:
                held = held_bytes(tree, entry)
                self.sizes[file] = -(-held // _BLOCK_BYTES) * _BLOCK_BYTES
        self.size_bytes = sum(self.sizes.values())

    def in_turn(self, lacked: Collection[bytes]) -> Iterator[bytes]:
        """Yield the paths in the order in which they are to be copied."""
        first = sorted(path for path in self.of_path if path in lacked)
        yield from first
        last = first[-1] if first else b""
        yield from sorted(path for path in self.of_path if path > last or not first)


def used_bytes(manifest: Manifest, live: Path) -> int:
    """Return what the files in *live* hold, as *manifest* and their blocks say."""
    small_bytes = manifest.size_bytes(below=SPARSE_FROM_BYTES)
    with Beneath(live) as tree:
        large: dict[int, Entry] = {
            each.inode: each.entry for each in manifest.larger(SPARSE_FROM_BYTES)
        }
        return small_bytes + sum(held_bytes(tree, each) for each in large.values())
