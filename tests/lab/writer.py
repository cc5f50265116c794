#!/usr/bin/python3 -ISE
"""
Writes numbered records into a volume from inside a node, and reads them back.

    writer.py write VOLUME SESSION LOG [BIG_MIB]   until SIGTERM: the orderly end
    writer.py look HOME                            what a copy is and keeps, in JSON

The first line that `write` prints is what it has found; then comes one for each record
that was acknowledged, which is once fsync has returned for all of it. The output is a
file of the host, written through, so that a power failure loses no line; LOG, on the
node's own disk, has the same. Record N of a session is appended to `log-F`, with F =
N % FILES, and written over page N % PAGES of `pages`, as a database does; by a store
through a mapping over the same page of `mapped`. So what was lost at the end of a
session can be told from a hole in it. With BIG_MIB the record is also written over a
page of `big`, which has that size, and becomes one of many small files, by a rename.
`replication_checker.py` judges what this prints.

Runs in a node, where imports are slow: nothing but the standard library.
"""
# Imports are slow there.
# ruff: noqa: PTH103, PTH104, PTH110, PTH112, PTH120, PTH123, PTH208

import hashlib
import json
import mmap
import os
import signal
import sqlite3
import stat
import sys
import time
import zlib

FILES = 3
PAGES = 8
# Divides a page of memory, so that no reader sees half of one.
RECORD_BYTES = 32
PAGE_BYTES = 4096
SMALL_FILES = 300
PAUSE_S = 0.02
FULL_PAUSE_S = 0.5


def record_of(session: int, number: int) -> bytes:
    """Return the record, of which every part tells whether it is whole."""
    text = b"%d %d " % (session, number)
    whole = text + b"%08x" % zlib.crc32(text)
    return whole.ljust(RECORD_BYTES - 1) + b"\n"


def page_of(session: int, number: int) -> bytes:
    return record_of(session, number) * (PAGE_BYTES // RECORD_BYTES)


def parsed(data: bytes, made: object) -> tuple[int, int] | None:
    """Return session and number of a record or page, None if it is not whole."""
    if not data.strip(b"\0"):
        return 0, 0  # a page that nobody has written yet
    try:
        session, number = map(int, data.split(maxsplit=2)[:2])
    except ValueError:
        return None
    return (session, number) if made(session, number) == data else None  # type: ignore[operator]


def read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def read_log(path: str) -> tuple[list[list[int]], int]:
    """Return the runs (session, first, last) of records, and how many are not whole."""
    runs: list[list[int]] = []
    broken = 0
    data = read_file(path)
    for start in range(0, len(data), RECORD_BYTES):
        known = parsed(data[start : start + RECORD_BYTES], record_of)
        if known is None:
            broken += 1
            continue
        session, number = known
        if runs and runs[-1][0] == session and runs[-1][2] + FILES == number:
            runs[-1][2] = number
        else:
            runs.append([session, number, number])
    return runs, broken


def read_contents(volume: str) -> dict[str, object]:
    """Return what the volume in this directory holds."""
    logs = [read_log(f"{volume}/log-{number}") for number in range(FILES)]
    pages, mapped = read_pages(f"{volume}/pages"), read_pages(f"{volume}/mapped")
    small = f"{volume}/small"
    names = os.listdir(small) if os.path.isdir(small) else []
    # None of them was ever empty.
    others = [
        parsed(read_file(f"{small}/{name}") or b"empty", record_of) for name in names
    ]
    others += read_pages(f"{volume}/big")
    return {
        "logs": [runs for runs, _ in logs],
        "broken": sum(broken for _, broken in logs)
        + sum(each.count(None) for each in (pages, mapped, others)),
        "pages": pages,
        "mapped": mapped,
    }


def read_pages(path: str) -> list[tuple[int, int] | None]:
    """Return the pages up to the last one that was written, None for a broken one."""
    data = read_file(path)
    pages = [
        parsed(data[start : start + PAGE_BYTES], page_of)
        for start in range(0, len(data), PAGE_BYTES)
    ]
    while pages and pages[-1] == (0, 0):
        pages.pop()
    return pages


def write_durably(file: int, data: bytes, at: int) -> None:
    """Return when *data* is on the disk at *at*; a full one is waited for."""
    while True:
        try:
            written = os.pwrite(file, data, at)
            os.fsync(file)
        except OSError as error:
            if error.errno not in {28, 122}:  # no space, over quota
                raise
        else:
            if written == len(data):
                return
        time.sleep(FULL_PAUSE_S)


def opened(path: str, size: int) -> int:
    """Return the file, opened and filled up to *size*, so that stores find blocks."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for at in range(os.fstat(file).st_size, size, 2**20):
        write_durably(file, bytes(min(2**20, size - at)), at)
    return file


def write_small(volume: str, data: bytes, number: int) -> None:
    path = f"{volume}/small/{number % SMALL_FILES}"
    new = os.open(f"{volume}/small.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    write_durably(new, data, 0)
    os.close(new)
    os.rename(f"{volume}/small.new", path)


def write(volume: str, session: int, log: str, big_mib: int = 0) -> None:
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    os.makedirs(os.path.dirname(log), exist_ok=True)
    with open(log, "a") as kept:

        def tell(**line: object) -> None:
            text = json.dumps({"session": session, **line})
            print(text, flush=True)
            print(text, file=kept, flush=True)

        found = read_contents(volume)
        flags = os.O_RDWR | os.O_CREAT
        logs = [os.open(f"{volume}/log-{i}", flags, 0o600) for i in range(FILES)]
        ends = [os.fstat(each).st_size for each in logs]
        pages = os.open(f"{volume}/pages", flags, 0o600)
        mapped_file = opened(f"{volume}/mapped", PAGES * PAGE_BYTES)
        mapped = mmap.mmap(mapped_file, PAGES * PAGE_BYTES)
        if big_mib:
            os.makedirs(f"{volume}/small", exist_ok=True)
            big = opened(f"{volume}/big", big_mib * 2**20)
        tell(found=found)
        number = 0
        while not stopping:
            number += 1
            file = number % FILES
            write_durably(logs[file], record_of(session, number), ends[file])
            ends[file] += RECORD_BYTES
            at = (number % PAGES) * PAGE_BYTES
            page = page_of(session, number)
            write_durably(pages, page, at)
            mapped[at : at + PAGE_BYTES] = page
            mapped.flush()
            if big_mib:
                place = number * 7919 % (big_mib * 2**20 // PAGE_BYTES)
                write_durably(big, page, place * PAGE_BYTES)
                write_small(volume, record_of(session, number), number)
            tell(acknowledged=number, at_s=time.clock_gettime(time.CLOCK_BOOTTIME))
            time.sleep(PAUSE_S)
        mapped.close()
        for each in (*logs, pages, mapped_file):
            os.close(each)
        tell(ended=number)


def look(home: str) -> dict[str, object]:
    """Return what the copy in *home* is, says of itself, and has set apart."""
    replica = json.loads(read_file(f"{home}/replica.json") or b"{}")
    quarantine = f"{home}/quarantine"
    apart = sorted(os.listdir(quarantine)) if os.path.isdir(quarantine) else []
    return {
        "replica": replica,
        "contents": read_contents(f"{home}/live"),
        "entries": dict(entries(f"{home}/live")),
        "manifest": manifest(f"{home}/manifest.db"),
        "quarantine": {each: read_contents(f"{quarantine}/{each}") for each in apart},
    }


def entries(top: str):  # type: ignore[no-untyped-def]
    """Yield each path below *top* with what has to be the same on every node."""
    found = [top]
    for directory, names, files in os.walk(top):
        found += [f"{directory}/{name}" for name in (*names, *files)]
    for path in found:
        status = os.lstat(path)
        is_file = stat.S_ISREG(status.st_mode)
        size = status.st_size if is_file else 0
        digest = hashlib.sha256(read_file(path)).hexdigest() if is_file else ""
        row = [status.st_mode & 0o7777, status.st_uid, status.st_gid]
        yield path[len(top) + 1 :], [*row, status.st_mtime_ns, size, digest]


def manifest(path: str) -> dict[str, object]:
    """Return the commit and the rows that a copy's manifest has."""
    if not os.path.exists(path):
        return {"commit": [0, 0], "entries": {}}
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        commit = connection.execute("SELECT epoch, seq FROM state").fetchone()
        rows = connection.execute(
            "SELECT path, mode, uid, gid, mtime_ns, size FROM entries"
        ).fetchall()
    finally:
        connection.close()
    shown = {path.decode(): list(row) for path, *row in rows}
    return {"commit": list(commit), "entries": shown}


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what == "write":
        volume, session, log, *big_mib = arguments
        write(volume, int(session), log, *map(int, big_mib))
    else:
        print(json.dumps(look(*arguments)))


if __name__ == "__main__":
    main()
