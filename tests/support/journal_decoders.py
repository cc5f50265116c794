"""What the journal makes of files that others may have written, in a directory."""

from __future__ import annotations

import hashlib
from pathlib import Path

from backends.rsync.journal.delta import Delta
from backends.rsync.journal.fitting import read_unfit
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.range_log import RangeLog, name_of
from backends.rsync.journal.redo import Redo
from backends.rsync.journal.staging import Staging


def unfit(directory: Path, content: bytes) -> object:
    (directory / "unfit.json").write_bytes(content)
    return read_unfit(directory)


def delta(directory: Path, content: bytes) -> object:
    (directory / "delta").write_bytes(content)
    with Delta.open(directory / "delta") as delta:
        return list(delta.entries()), list(delta.deletions())


def marker_of_commit(directory: Path, content: bytes) -> object:
    (directory / "applying").write_bytes(content)
    return Staging(directory).read_marker()


def manifest(directory: Path, content: bytes) -> object:
    path = directory / "manifest.db"
    path.write_bytes(content)
    try:
        manifest = Manifest(path)
        try:
            manifest.since((0, 0))
            return [*manifest.all(), manifest.count(), manifest.size_bytes()]
        finally:
            manifest.close()
    finally:
        Manifest.discard(path)


def redo(directory: Path, content: bytes) -> object:
    (directory / "redo").write_bytes(content)
    with (directory / "redo").open("rb") as file:
        redo = Redo(file.fileno())
        redo.require_data()
        return redo.table


def range_log(directory: Path, content: bytes) -> object:
    (directory / "ranges").mkdir(exist_ok=True)
    digest = hashlib.blake2b(content, digest_size=16).digest()
    (directory / "ranges" / name_of(b"db")).write_bytes(digest + content)
    log = RangeLog(directory / "ranges")
    return log.paths(), log.since(b"db", (1, 1), (1, 2))
