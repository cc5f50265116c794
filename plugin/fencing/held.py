"""What the daemon tells the guard, and how the two find each other."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

# What the guard says of a volume's writers. `stopping`: one is still in the kernel and
# may finish a write there, or cannot be stopped; `frozen`: all are stopped or are being
# killed; `killed`: none is left.
State = Literal["running", "stopping", "frozen", "killed"]
Policy = Literal["freeze", "kill", "none"]

FREEZE_MAX_S: Final = 60.0
# So long at most the writers of a volume stand still for a commit.
PAUSE_MAX_S: Final = 1.0
SOCKET_NAME: Final = "guard.sock"
# One line of the protocol: ten thousand volumes need less.
MESSAGE_SIZE_MAX: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HeldVolume:
    """
    A volume that this node holds until ``deadline_s``.

    ``device`` and ``root`` are those of the mount on ``target``, in mountinfo. On NFS,
    where one device has many volumes, ``source`` tells them apart and stands in for
    ``device``; elsewhere it is empty. ``deadline_s`` is in `clock.boottime_s`. While
    the daemon does not know it, ``as_before`` has the one that was told before go on.
    ``epoch`` tells a mount from an earlier one of the volume; 0 if it is not known.
    """

    id: str
    device: str
    root: str
    target: str
    deadline_s: float
    freeze_max_s: float = FREEZE_MAX_S
    policy: Policy = "freeze"
    source: str = ""
    as_before: bool = False
    epoch: int = 0


def code_version() -> str:
    """
    Return what changes with the code that a guard is started from.

    All of ours counts, whatever of it a guard imports: a list would miss something one
    day, and a guard that is replaced for nothing goes on where the last one was.
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    names = [
        os.path.join(directory, name)
        for package in ("backends", "plugin")
        for directory, _, files in os.walk(os.path.join(root, package))
        for name in files
        if name.endswith(".py")
    ]
    checksum = 0
    for name in sorted(names):
        with open(name, "rb") as module:
            checksum = zlib.crc32(module.read(), checksum)
    return f"{checksum:08x}"


@contextmanager
def socket_address(run_dir: str) -> Iterator[str]:
    """
    Give the address of the guard's socket in *run_dir*.

    By a descriptor, because an address has 108 bytes and a path may have more.
    """
    directory = os.open(run_dir, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{SOCKET_NAME}"
    finally:
        os.close(directory)
