"""
What a process changes as strace sees it: another witness than the fuse.

The list here names what changes something, from syscalls(2), where the fuse's names
what does not. What is on neither is for a person to look at.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.support.fuse import live
from tests.support.syscalls import HARMLESS

World = TypeVar("World")

_CHANGING = """
    bind chmod chown copy_file_range creat fallocate fchmod fchmodat fchmodat2
    fchown fchownat fremovexattr fsetxattr fsmount ftruncate futimesat
    io_uring_enter io_uring_setup lchown link linkat lremovexattr lsetxattr mkdir
    mkdirat mknod mknodat mount mount_setattr move_mount open_tree pivot_root
    pwrite64 pwritev pwritev2 quotactl quotactl_fd removexattr rename renameat
    renameat2 rmdir sendfile setxattr splice swapon symlink symlinkat tee truncate
    umount2 unlink unlinkat utime utimensat utimes vmsplice write writev
"""
CHANGING = frozenset(_CHANGING.split())
_WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2", "ftruncate")
_WAIT_S = 20.0
_CALL = re.compile(r"^\d+ +(\w+)\((.*)")
_LIT = "seccomp(SECCOMP_SET_MODE_FILTER"
_PASSING = re.compile(r"-?\d+<(pipe:|socket:|TCP|UNIX|anon_inode:|/memfd:|/dev/null)")
_QUESTION = re.compile(r"\d+(<.*?>)?, (TCGETS|TIOCGWINSZ|FIONREAD|FIONBIO|FIO\w*CLEX)")


@dataclass(frozen=True)
class Compared:
    """What strace saw and the fuse did not, the other way round, and what is new."""

    unseen: Counter[str]
    imagined: Counter[str]
    unknown: set[str]


def compared(
    log: Path,
    start: Callable[[], World],
    act: Callable[[World], object],
    *,
    harmless: frozenset[str] = HARMLESS,
) -> Compared:
    """Do *act* under strace, which writes *log*; return how it and the fuse differ."""

    def start_traced() -> World:
        world = start()
        _attach(log)
        return world

    seen = Counter(live(start_traced, act, harmless=harmless).steps)
    changing, others = _read(log)
    return Compared(changing - seen, seen - changing, others - HARMLESS)


def _attach(log: Path) -> None:
    """Have strace follow this process and all its threads."""
    subprocess.Popen(
        ["strace", "-f", "-y", "-q", "-o", str(log), "-p", str(os.getpid())],
        stdin=subprocess.DEVNULL,
    )
    ends_at = time.monotonic() + _WAIT_S
    threads = list(Path("/proc/self/task").iterdir())
    while not all(map(_is_traced_or_ended, threads)):
        assert time.monotonic() < ends_at, "strace does not attach"
        time.sleep(0.01)


def _is_traced_or_ended(thread: Path) -> bool:
    try:
        status = (thread / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return "TracerPid:\t0\n" not in status


def _read(log: Path) -> tuple[Counter[str], set[str]]:
    """Return the calls that change something since the fuse is lit, and the others."""
    lines = _complete(log)
    lit = max(number for number, line in enumerate(lines) if _LIT in line)
    changing: Counter[str] = Counter()
    others = set()
    for line in lines[lit + 1 :]:
        if (call := _CALL.match(line)) is None:
            continue  # the end of one that another thread had interrupted
        if _changes(call[1], call[2]):
            changing[call[1]] += 1
        elif call[1] not in CHANGING:
            others.add(call[1])
    return changing, others - {"open", "openat", "mmap", "ioctl"}


def _changes(name: str, arguments: str) -> bool:
    if name in ("open", "openat"):
        flags = arguments.rsplit('"', 1)[-1]
        return re.search(r"O_(CREAT|TRUNC|TMPFILE)", flags) is not None
    if name == "mmap":
        return (
            "PROT_WRITE" in arguments
            and "MAP_SHARED" in arguments
            and "MAP_ANONYMOUS" not in arguments
            and "-shm>" not in arguments
        )
    if name == "ioctl":
        return not _QUESTION.match(arguments) and not _PASSING.match(arguments)
    if name in _WRITES and _PASSING.match(arguments):
        return False
    return name in CHANGING


def _complete(log: Path) -> list[str]:
    """Return the lines of *log* when strace has written the last one."""
    ends_at = time.monotonic() + _WAIT_S
    while True:
        lines = log.read_text(errors="replace").splitlines()
        pids = {line.split(maxsplit=1)[0] for line in lines}
        gone = {line.split()[0] for line in lines if re.match(r"^\d+ +\+\+\+ ", line)}
        if lines and pids == gone:
            return lines
        assert time.monotonic() < ends_at, f"strace goes on: {pids - gone}"
        time.sleep(0.05)
