"""
Where large files have changed, on filesystems that do not tell it: see ADR 25.

A file is read once, by a program of its own (`index_blocks.py`), which compares it with
its block index as of the commit before, and writes what has changed to where the caller
wants it. Afterwards the index is that of what was read, and of no commit: `keep` makes
it one of the commit that the caller has recorded. If that is not called, because the
caller has failed or was killed, the index is lost: the file is then sent whole, and
read once more to index it.

An index counts in the boot of the kernel that it was written in, unless `seal` was
called. Nothing else is flushed.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any, Final

from backends.rsync.journal.entries import Commit
from backends.rsync.journal.range_log import name_of
from backends.system import index_blocks
from backends.system.copying import CopyError
from backends.system.files import sync_directory
from backends.system.index_file import opened_index
from backends.system.lines import lines_of
from backends.system.programs import own_program
from backends.system.ranges import Range
from backends.system.run import stream

# A disk that gives nothing for this long is away.
_STALL_S: Final = 300.0
_LINE_ENDS: Final = re.compile(rb"\n")


@dataclass(frozen=True, slots=True)
class Found:
    """
    What was read of a file of ``size_bytes``, in ``reading_s`` seconds.

    ``changed``: where it differs from the base, what has been cut off included.
    ``sent``: that and what was asked for, within the size; their bytes are in the data,
    in this order, ``data_bytes`` in all, of which ``digest`` is the BLAKE2b-128.
    """

    size_bytes: int
    changed: list[Range]
    sent: list[Range]
    data_bytes: int
    digest: bytes
    reading_s: float


class BlockIndexes:
    """The indexes in *directory*, one for each path, made when they are needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @contextmanager
    def searching(self, root: Path) -> Iterator[Searching]:
        """
        Yield what searches files beneath *root*, in this thread.

        Raises:
            CopyError: it cannot be begun.

        """
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise _error(error.strerror, error.errno) from error
        ours, its = socket.socketpair()
        ours.settimeout(_STALL_S)
        command = own_program(index_blocks, str(root), packages=True)
        pieces = stream(command, stall_s=_STALL_S, stdin=its.fileno())
        with ours, closing(pieces):
            with its:
                searching = Searching(self, ours, lines_of(pieces, _LINE_ENDS))
            yield searching

    def keep(self, path: bytes, commit: Commit) -> None:
        """
        Have the index of *path* be one of *commit*, which has been recorded.

        That is of the bytes that were read last: keep none that was not searched for
        *commit*. One that is not whole goes.
        """
        try:
            with opened_index(self.file(path)) as index:
                is_kept = index is None or index.keep(commit)
        except OSError:
            is_kept = False
        if not is_kept:
            self.forget(path)

    def seal(self) -> None:
        """
        Have all indexes of commits believed after a power failure as well.

        Raises:
            OSError: the disk refuses; they are believed until then.

        """
        for each in self._all():
            with opened_index(each) as index:
                if index is not None:
                    index.seal()
        with suppress(FileNotFoundError):
            sync_directory(self._directory)

    def forget(self, path: bytes) -> None:
        """Remove the index of *path*."""
        self.file(path).unlink(missing_ok=True)

    def file(self, path: bytes) -> Path:
        """Return where the index of *path* lies, if there is one."""
        return self._directory / name_of(path)

    def _all(self) -> list[Path]:
        try:
            return list(self._directory.iterdir())
        except FileNotFoundError:
            return []


class Searching:
    """Searches files beneath one directory; see `BlockIndexes.searching`."""

    def __init__(
        self, indexes: BlockIndexes, requests: socket.socket, lines: Iterator[bytes]
    ) -> None:
        self._indexes = indexes
        self._requests = requests
        self._lines = lines
        self._answer()  # it is ready

    def find(
        self,
        path: bytes,
        *,
        inode: int,
        base: Commit,
        also: Iterable[Range] = (),
        data: Path,
        left_free_bytes: int = 0,
    ) -> Found | None:
        """
        Return where the file *path* has changed since *base*; write that to *data*.

        So is what is in the ranges *also*, changed or not. *data* may be there already;
        so many bytes stay free on its disk.
        *inode* is the number of the file at *base*, and at the commit to come. None if
        there is no such file, or nothing that can be believed tells how it was; then
        nothing is written.

        Raises:
            CopyError: the disk refuses, or has stood still; the index is lost.

        """
        found = self._ask(
            *(path, inode, base),
            also=list(also),
            data=os.fsdecode(data),
            left_free_bytes=left_free_bytes,
            anew=False,
        )
        return found and found[0]

    def index(
        self, path: bytes, *, inode: int, base: Commit | None = None
    ) -> list[Range] | None:
        """
        Have an index of the file *path*, a copy of the one with number *inode*.

        Return where it has changed since *base*, None if nothing tells how it was then.

        Raises:
            CopyError: as `find`.

        """
        found = self._ask(path, inode, base, also=[], data=None, anew=True)
        return None if found is None or found[1] else found[0].changed

    def _ask(
        self, path: bytes, inode: int, base: Commit | None, **more: Any
    ) -> tuple[Found, bool] | None:
        """Return what was found, and whether the index was made anew for that."""
        request = {
            "path": os.fsdecode(path),
            "index_path": str(self._indexes.file(path)),
            "inode": inode,
            "base": base,
            **more,
        }
        try:
            self._requests.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise _error(f"a program of ours does not answer: {error}") from error
        ranges: dict[str, list[Range]] = {"sent": [], "changed": []}
        while "done" not in (line := self._answer()):
            for kind, found in line.items():
                ranges[kind] += [(offset, length) for offset, length in found]
        if not line["done"]:
            return None
        found = Found(
            line["size_bytes"],
            **ranges,
            data_bytes=line["data_bytes"],
            digest=bytes.fromhex(line["digest"]),
            reading_s=line["reading_s"],
        )
        return found, line["is_new"]

    def _answer(self) -> dict[str, Any]:
        """Return the next line of an answer."""
        line = next(filter(None, self._lines), None)
        if line is None:
            raise _error("it ended early")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise _error(line.decode(errors="replace")) from None
        if "error" in answer:
            raise _error(answer["error"], answer["errno"])
        return answer


def _error(cause: str | None, number: int | None = None) -> CopyError:
    no_space = number in (ENOSPC, EDQUOT)
    return CopyError(f"a large file was not compared: {cause}", no_space=no_space)
