"""
Searches large files with their block indexes; a program of its own.

It loads `cryptography`, which a daemon can do without, and can be killed when a disk
hangs. `index_search.py` does the work.

Its argument is the directory that all is beneath. It takes requests as lines of JSON
(`Request`) on standard input, and answers each with lines of `sent` and `changed`,
ranges some at a time, and a last one with `done` or `error`.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from backends.system.beneath import Beneath, name_in
from backends.system.clock import monotonic_s
from backends.system.index_file import (
    KEPT,
    KEY_BYTES,
    WHOLE,
    Commit,
    Header,
    make_index,
    opened_index,
)
from backends.system.libc import write_out
from backends.system.ranges import RANGES_MAX, Range, at_most, joined
from backends.system.regular_files import NotRegularError, open_regular

_RANGES_PER_LINE: Final = 1000
_NOTHING: Final = {"done": False}


class Request(NamedTuple):
    """
    What to look for: the regular file *path*, which *index* has as it was at *base*.

    Ranges *also* have to be in *data* even if they have not changed. Without *base*, or
    if the index cannot be believed, nothing is done, or, if *anew*, it is made anew and
    all that is not zeros has changed. *inode* is what the index knows the file by. On
    the disk of *data* so many bytes stay free.
    """

    path: str
    index_path: str
    inode: int
    base: Commit | None
    also: list[Range]
    data: str | None
    anew: bool
    left_free_bytes: int = 0


def answer(tree: Beneath, request: Request) -> Iterator[dict[str, Any]]:
    """Do what *request* asks for, and yield the lines of the answer."""
    header, file = None, _opened(tree, os.fsencode(request.path))
    try:
        if file is not None:
            header = _believed(request, os.fstat(file).st_ino)
            is_new = header is None
            if header is None and request.anew:
                header = _made_anew(request)
        if file is not None and header is not None:
            yield from _searched(file, header, request, is_new=is_new)
        else:
            _drop(request.index_path)
            yield _NOTHING
    finally:
        if file is not None:
            os.close(file)


def _opened(tree: Beneath, path: bytes) -> int | None:
    """Return the regular file *path*, opened, None if there is none."""
    found = None if b".." in path.split(b"/") else tree.find(path)
    try:
        return found and open_regular(found[1], dir_fd=found[0])
    except (FileNotFoundError, NotRegularError):
        return None


def _believed(request: Request, inode: int) -> Header | None:
    """Return the header of the index, now of no commit, if it was of *base*."""
    if inode != request.inode and not request.anew:
        return None  # another file has come to its path
    with opened_index(request.index_path) as index:
        header = None if index is None else index.header()
        if index is None or header is None or request.base is None:
            return None
        epoch, seq = request.base
        if not header.is_of((epoch, seq), request.inode):
            return None
        index.begin(header)
        return header


def _drop(index_path: str) -> None:
    """Remove an index of no commit: it is of bytes that were to be one, and are not."""
    with opened_index(index_path) as index:
        header = None if index is None else index.header()
    if header is None or header.state != KEPT:
        Path(index_path).unlink(missing_ok=True)


def _made_anew(request: Request) -> Header:
    from backends.system.block_hashes import fastest  # noqa: PLC0415 - see above

    header = Header(fastest(), os.urandom(KEY_BYTES), request.inode)
    make_index(request.index_path, header)
    return header


def _searched(
    file: int, header: Header, request: Request, *, is_new: bool
) -> Iterator[dict[str, Any]]:
    """Search *file*; the index, which is of no commit, is whole afterwards."""
    from backends.system.block_hashes import BlockHashes  # noqa: PLC0415 - see above
    from backends.system.index_search import Search, opened_data  # noqa: PLC0415

    # A page that stays dirty takes more stores without moving a time of its file.
    write_out(file)
    hashes = BlockHashes(header.hashing, header.key)
    with (
        opened_index(request.index_path) as index,
        opened_data(request.data, request.left_free_bytes) as data,
    ):
        if index is None:
            raise FileNotFoundError(errno.ENOENT, "the index went", request.index_path)
        begun_s = monotonic_s()
        search = Search(file, index, hashes, request.also, data)
        search.run()
        reading_s = monotonic_s() - begun_s
        if data is not None and len(search.sent) > RANGES_MAX:
            search.join(data)
        if header.size > search.size:
            # What is cut off is a change, should the file grow again.
            search.changed.append((search.size, header.size - search.size))
        digest, size_bytes = data.finish() if data is not None else ("", 0)
        index.put(header._replace(size=search.size, state=WHOLE))
    for kind, ranges in (("sent", search.sent), ("changed", search.changed)):
        found = at_most(joined(ranges), RANGES_MAX)
        for at in range(0, len(found), _RANGES_PER_LINE):
            yield {kind: found[at : at + _RANGES_PER_LINE]}
    yield {
        "done": True,
        "is_new": is_new,
        "size_bytes": search.size,
        "data_bytes": size_bytes,
        "digest": digest,
        "reading_s": reading_s,
    }


def main() -> None:
    """Answer the requests on standard input, about files beneath the argument."""
    os.umask(0o077)
    say({"ready": True})
    with Beneath(Path(sys.argv[1])) as tree:
        for line in sys.stdin:
            try:
                for part in answer(tree, Request(**json.loads(line))):
                    say(part)
            except OSError as error:
                name = f" ({found})" if (found := name_in(error)) else ""
                say({"error": f"{error.strerror}{name}", "errno": error.errno})


def say(line: dict[str, Any]) -> None:
    """Print *line* at once."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
