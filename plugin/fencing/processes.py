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
from typing import Final

_KERNEL_THREAD: Final = 0x0020_0000
_READ_SIZE_MAX: Final = 1 << 20
# Parents looked at to find a process's ancestor; containers in containers have fewer.
_ANCESTORS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Process:
    """One line of /proc/PID/stat; ``started`` is in clock ticks since boot."""

    pid: int
    state: str
    parent: int
    group: int
    started: int
    kernel_thread: bool

    @property
    def alive(self) -> bool:
        """Whether it may run again."""
        return self.state not in "ZX"

    @property
    def stopped(self) -> bool:
        """Whether SIGSTOP, or a terminal, has stopped it."""
        return self.state == "T"


def ids() -> Iterator[int]:
    """Yield the ids of all processes."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def look(pid: int) -> Process | None:
    """Return process *pid*, None if there is none."""
    text = read(f"/proc/{pid}/stat")
    if text is None:
        return None
    fields = text.rpartition(b") ")[2].split()
    if len(fields) < 20:
        return None
    return Process(
        pid=pid,
        state=fields[0].decode(),
        parent=int(fields[1]),
        group=int(fields[2]),
        started=int(fields[19]),
        kernel_thread=bool(int(fields[6]) & _KERNEL_THREAD),
    )


def started(pid: int) -> int:
    """Return when process *pid* started, 0 if there is none."""
    process = look(pid)
    return 0 if process is None else process.started


def mount_namespace(pid: int) -> int:
    """Return the number of *pid*'s mount namespace, 0 if it has none (any more)."""
    with suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    # The first thread may have ended; the others still have a namespace.
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                return os.stat(f"/proc/{pid}/task/{thread}/ns/mnt").st_ino
    return 0


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
