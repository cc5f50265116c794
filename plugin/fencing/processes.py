"""
Processes, by what /proc says of them; nothing here waits for a process or a disk.

A process is named by its id and its start time, so that we never touch another one that
got the same id later. Source: proc_pid_stat(5), pidfd_open(2).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from backends.system import libc
from backends.system.mountinfo import threads

_KERNEL_THREAD: Final = 0x0020_0000
_ENDED: Final = "ZX"
_READ_SIZE_MAX: Final = 1 << 20
# Parents looked at to find a process's ancestor; containers in containers have fewer.
_ANCESTORS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Process:
    """
    One line of /proc/PID/stat; ``started`` is in clock ticks since boot.

    Its ``state`` is that of another thread if the first one has ended.
    """

    pid: int
    state: str
    parent: int
    group: int
    started: int
    kernel_thread: bool

    @property
    def alive(self) -> bool:
        """Whether it may run again."""
        return self.state not in _ENDED

    @property
    def stopped(self) -> bool:
        """Whether SIGSTOP, or a terminal, has stopped it."""
        return self.state == "T"


class Mapped(NamedTuple):
    """A file that a process has mapped."""

    inode: int
    path: bytes


def ids() -> Iterator[int]:
    """Yield the ids of all processes."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def newest() -> int:
    """Return the id that was given last, maybe a thread's. Source: proc(5), loadavg."""
    return int((read("/proc/loadavg") or b"0").split()[-1])


def is_first_thread(pid: int) -> bool:
    """
    Return whether *pid* is a process's id: each thread's is one for most of /proc.

    Another thread takes no signals, and is not known as one of the daemon's.
    """
    return b"\nTgid:\t%d\n" % pid in (read(f"/proc/{pid}/status") or b"")


def look(pid: int) -> Process | None:
    """Return process *pid*, None if there is none."""
    text = read(f"/proc/{pid}/stat")
    if text is None:
        return None
    fields = text.rpartition(b") ")[2].split()
    if len(fields) < 20:
        return None
    state = fields[0].decode()
    return Process(
        pid=pid,
        state=_state_of_others(pid) or state if state in _ENDED else state,
        parent=int(fields[1]),
        group=int(fields[2]),
        started=int(fields[19]),
        kernel_thread=bool(int(fields[6]) & _KERNEL_THREAD),
    )


def shared_mappings(thread: str) -> Iterator[Mapped]:
    """Yield the files that are mapped so that a store changes them."""
    with suppress(OSError), open(f"{thread}/maps", "rb") as table:
        for line in table:
            # Range, rights, offset, device, inode, path. Source: proc_pid_maps(5).
            _, rights, _, _, inode, *path = line.split(None, 5)
            if rights.endswith(b"s") and path:
                yield Mapped(int(inode), path[0].rstrip(b"\n"))


def _state_of_others(pid: int) -> str:
    """Return the state of a thread that has outlived the first one, "" if none has."""
    for thread in threads(pid):
        text = read(f"{thread}/stat") or b""
        state = text.rpartition(b") ")[2][:1].decode()
        if state and state not in _ENDED:
            return state
    return ""


def started(pid: int) -> int:
    """Return when process *pid* started, 0 if there is none."""
    process = look(pid)
    return 0 if process is None else process.started


def mount_namespace(pid: int) -> int:
    """Return the number of *pid*'s mount namespace, 0 if it has none (any more)."""
    for thread in threads(pid):
        with suppress(OSError):
            return os.stat(f"{thread}/ns/mnt").st_ino
    return 0


def file_tables(pid: int) -> Iterator[str]:
    """Yield where /proc tells of *pid*'s open files: once for each table of them."""
    last = 0
    for thread in threads(pid):
        number = int(os.path.basename(thread))
        # A few may come twice. A first thread that has ended has none.
        if not last or not libc.share_files(number, last):
            yield thread
            last = number


def descends(pid: int, ancestors: frozenset[int]) -> bool:
    """Return whether *pid* is one of *ancestors* or comes from one."""
    for _ in range(_ANCESTORS_MAX):
        if pid in ancestors:
            return True
        process = look(pid)
        if process is None or process.parent <= 1:
            return False
        pid = process.parent
    return False


def send(pid: int, start: int, number: signal.Signals) -> bool:
    """Return whether signal *number* went to the process *pid* started at *start*."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # From here on the descriptor means this process, whatever its id will mean.
        if started(pid) != start:
            return False
        signal.pidfd_send_signal(descriptor, number)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def read(path: str) -> bytes | None:
    """Return the content of the kernel's file *path*, None if it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        chunks = []
        while chunk := os.read(descriptor, _READ_SIZE_MAX):
            chunks.append(chunk)
        return b"".join(chunks)
    except OSError:
        return None
    finally:
        os.close(descriptor)
