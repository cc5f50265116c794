"""
Measures mounts of NFS and work in them, in turns; prints the ms as JSON.

Runs in a node of the lab, which has the daemon: standard library only. Reads what to do
from standard input, see nfs.py.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

OURS, BARE, BARE_AGAIN, LOCAL = "remora", "mount.nfs", "mount.nfs again", "local"
SUBJECTS = (OURS, BARE, BARE_AGAIN, LOCAL)
# What the daemon gives to mount.nfs for a volume without options.
OPTIONS = "retry=0,nfsvers=4,hard"
# What Docker's `local` driver gives to mount(2) for `o=addr=...,vers=4.2,hard`.
LOCAL_OPTIONS = "addr={},vers=4.2,hard"
PLUGIN_SOCKET = "/run/docker/plugins/remora.sock"
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
MOUNTS = Path("/mnt/bench")
BLOCK_BYTES = 1 << 20
SMALL = b"x" * 4096
CALL_DEADLINE_S = 120.0

_libc = ctypes.CDLL(None, use_errno=True)


class Ours:
    """Our volume, mounted and unmounted as the engine does it."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self._call = {"Name": asked["volume"], "ID": "bench"}

    def mount(self) -> Path:
        """Return where the volume is mounted."""
        return Path(self._plugin("Mount")["Mountpoint"])

    def unmount(self) -> None:
        """Unmount it."""
        self._plugin("Unmount")

    def _plugin(self, method: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("localhost", timeout=CALL_DEADLINE_S)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.connect(PLUGIN_SOCKET)
        connection.request("POST", f"/VolumeDriver.{method}", json.dumps(self._call))
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        if answer.get("Err"):
            raise SystemExit(f"{method}: {answer['Err']}")
        return answer


class Bare:
    """A directory of the share, mounted by hand."""

    def __init__(self, asked: dict[str, Any], name: str) -> None:
        self._source = (
            f"{asked['server']}:{asked['share']}/{asked['directories'][name]}"
        )
        self._server = asked["server"]
        self._at: Path = MOUNTS / asked["directories"][name]
        self._at.mkdir(parents=True, exist_ok=True)

    def mount(self) -> Path:
        """Return where the directory is mounted, by mount.nfs."""
        command = ["mount.nfs", self._source, str(self._at), "-o", OPTIONS]
        subprocess.run(command, check=True, timeout=CALL_DEADLINE_S)
        return self._at

    def unmount(self) -> None:
        """Unmount it."""
        _checked(_libc.umount2(os.fsencode(self._at), 0), "umount2")


class Local(Bare):
    """The same by mount(2) alone, as the built-in driver does it."""

    def mount(self) -> Path:
        """Return where the directory is mounted, without any program."""
        options = LOCAL_OPTIONS.format(self._server).encode()
        source, at = self._source.encode(), os.fsencode(self._at)
        _checked(_libc.mount(source, at, b"nfs", 0, options), "mount")
        return self._at


def main() -> None:
    """Measure as standard input says."""
    asked = json.load(sys.stdin)
    subjects: dict[str, Ours | Bare] = {
        OURS: Ours(asked),
        BARE: Bare(asked, BARE),
        BARE_AGAIN: Bare(asked, BARE_AGAIN),
        LOCAL: Local(asked, LOCAL),
    }
    keys = ("mount", "write", "read", "small")
    times: dict[str, dict[str, list[float]]] = {
        key: {name: [] for name in subjects} for key in keys
    }
    for subject in subjects.values():
        subject.mount()
        subject.unmount()
    for order in turns(asked["mounts"]):
        for name in order:
            start = time.perf_counter()
            subjects[name].mount()
            times["mount"][name].append(elapsed_ms(start))
            subjects[name].unmount()
    at = {name: subject.mount() for name, subject in subjects.items()}
    for directory in at.values():
        write_long(directory, asked["file_bytes"])
    for order in turns(asked["rounds"]):
        for name in order:
            times["write"][name].append(write_long(at[name], asked["file_bytes"]))
        for name in order:
            times["read"][name].append(read_long(at[name]))
        for name in order:
            times["small"][name].append(create_small(at[name], asked["small_files"]))
    for subject in subjects.values():
        subject.unmount()
    json.dump(times, sys.stdout)


def turns(rounds: int) -> list[list[str]]:
    """Return the order of the subjects for each round; each begins as often."""
    starts = (number % len(SUBJECTS) for number in range(rounds))
    return [[*SUBJECTS[start:], *SUBJECTS[:start]] for start in starts]


def write_long(at: Path, size_bytes: int) -> float:
    """Return the ms for writing a file over, with an fsync at its end."""
    block = os.urandom(BLOCK_BYTES)
    start = time.perf_counter()
    descriptor = os.open(at / "long", os.O_CREAT | os.O_WRONLY)
    for _ in range(size_bytes // BLOCK_BYTES):
        os.write(descriptor, block)
    os.fsync(descriptor)
    os.close(descriptor)
    return elapsed_ms(start)


def read_long(at: Path) -> float:
    """Return the ms for reading that file, which this node does not remember."""
    DROP_CACHES.write_text("3\n")
    start = time.perf_counter()
    descriptor = os.open(at / "long", os.O_RDONLY)
    while os.read(descriptor, BLOCK_BYTES):
        pass
    os.close(descriptor)
    return elapsed_ms(start)


def create_small(at: Path, count: int) -> float:
    """Return the ms for creating files of 4 KiB, each with an fsync."""
    names = [f"{at}/small-{number}" for number in range(count)]
    start = time.perf_counter()
    for name in names:
        descriptor = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(descriptor, SMALL)
        os.fsync(descriptor)
        os.close(descriptor)
    duration_ms = elapsed_ms(start)
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(name)  # noqa: PTH108 - a Path would take longer than the call
    return duration_ms


def elapsed_ms(start: float) -> float:
    """Return the ms since *start*."""
    return (time.perf_counter() - start) * 1000


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise SystemExit(f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
