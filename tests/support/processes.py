"""Processes, as /proc shows them."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def with_argument(clue: str) -> list[int]:
    """Return the processes with *clue* in their command line, but for this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if clue.encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return [pid for pid in found if pid != os.getpid()]


def with_open(path: Path) -> set[int]:
    """Return the processes that have *path* open."""
    wanted = path.stat() if path.exists() else None
    found = set()
    for each in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if wanted and os.path.samestat(each.stat(), wanted):
                found.add(int(each.parts[2]))
    return found


def descendants(pid: int) -> list[int]:
    """Return every process below *pid*."""
    found: list[int] = []
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            found += [int(each) for each in path.read_text().split()]
    return found + [deeper for each in found for deeper in descendants(each)]


def command(pid: int) -> str:
    """Return the name of the process's program, "" if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def signal_all(pids: Iterable[int], number: int) -> None:
    """Send the signal to all *pids*; some may have ended, by the end of others too."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_all_with(clue: str) -> None:
    """Kill the processes with *clue* in their command line."""
    signal_all(with_argument(clue), signal.SIGKILL)


def mount_points(pid: int) -> list[str]:
    """Return the mount points in the namespace of *pid*, as the kernel shows them."""
    table = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return [line.split(" ")[4] for line in table]


@contextmanager
def stopped(pids: Collection[int]) -> Iterator[None]:
    """Have the processes *pids* stand still meanwhile."""
    try:
        signal_all(pids, signal.SIGSTOP)
        yield
    finally:
        signal_all(pids, signal.SIGCONT)


def gone(pids: list[int]) -> bool:
    """Return whether none of *pids* runs any more."""
    for pid in pids:
        with suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            if stat.rpartition(")")[2].split()[0] not in "ZX":
                return False
    return True


@contextmanager
def descriptors(more: int) -> Iterator[None]:
    """Let this process open *more* descriptors and no more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(each.name) for each in Path("/proc/self/fd").iterdir()) + 1
    # Holes below would be used first.
    fillers = []
    while len(fillers) < used:
        filler = os.open("/dev/null", os.O_RDONLY)
        if filler >= used:
            os.close(filler)
            break
        fillers.append(filler)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for each in fillers:
            os.close(each)
