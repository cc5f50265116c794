"""
Lines of mount options in a node: what the built-in driver does with each, and we.

As a program it reads `[{OPTION: VALUE, ...}, ...]` and prints `[[LOCAL, OURS], ...]`:
what the kernel says of the mount, `MOUNTED` first, otherwise what was said. Source of
the first: moby's volume/local and its parsing of options, moby/sys/mount/flags.go.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.base import Volume
from backends.errors import RemoraError
from backends.nfs import mounting, options
from backends.system.clock import Deadline
from tests.support.host import PYTHON_ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.lab.node import Node

Options = dict[str, str]

MOUNTED: Final = "mounted"
_DEADLINE_S: Final = 20.0
_TARGET: Final = Path("/mnt/spelling")
# MS_* of mount(2): what an option sets, and what it takes away.
_SETS: Final = {
    "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "remount": 32,
    "mand": 64, "dirsync": 128, "noatime": 1024, "nodiratime": 2048, "bind": 4096,
    "rbind": 4096 | 16384, "unbindable": 1 << 17, "private": 1 << 18,
    "slave": 1 << 19, "shared": 1 << 20, "relatime": 1 << 21, "strictatime": 1 << 24,
}  # fmt: skip
_CLEARS: Final = {
    "defaults": 0, "rw": 1, "suid": 2, "dev": 4, "exec": 8, "async": 16, "nomand": 64,
    "atime": 1024, "diratime": 2048, "norelatime": 1 << 21, "nostrictatime": 1 << 24,
}  # fmt: skip
_UNMOUNT: Final = ["umount", "-f", str(_TARGET)]


def both_try(node: Node, tried: Sequence[Options]) -> list[tuple[str, str]]:
    """Return what the built-in driver and what we said to each, in *node*."""
    done = node.run(
        [sys.executable, "-m", "tests.lab.nfs_spellings"],
        stdin=json.dumps(tried).encode(),
        env=PYTHON_ENVIRONMENT,
        timeout_s=_DEADLINE_S * len(tried),
    )
    return [(local, ours) for local, ours in json.loads(done.stdout)]


def _local(given: Options) -> str:
    """Return what the built-in driver would have mounted, otherwise the error."""
    flags, data = 0, []
    for each in given["o"].split(","):
        flags = (flags | _SETS.get(each, 0)) & ~_CLEARS.get(each, 0)
        if each not in _SETS and each not in _CLEARS:
            data.append(each)
    strings = (given["device"], str(_TARGET), given["type"], ",".join(data))
    device, target, kind, rest = (each.encode() for each in strings)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(device, target, kind, ctypes.c_ulong(flags), rest):
        return os.strerror(ctypes.get_errno())
    return _effective()


def _ours(given: Options) -> str:
    """Return what we have mounted, otherwise the error."""
    try:
        parsed = {**options.DEFAULTS, **options.parse_options(given)}
        options.require_complete(parsed)
        volume = Volume(id="id", name="name", options=parsed, created_at="")
        mounting.mount(
            options.export_of(parsed),
            _TARGET,
            subdir="",
            entries=options.mount_entries(volume),
            deadline=Deadline(_DEADLINE_S),
        )
    except RemoraError as error:
        return str(error)
    return _effective()


def _effective() -> str:
    """Unmount it; return what the kernel says of the mount and the superblock."""
    table = Path("/proc/self/mountinfo").read_text()
    [line] = [each for each in table.splitlines() if f" {_TARGET} " in each]
    fields = line.split()
    subprocess.run(_UNMOUNT, check=True, timeout=_DEADLINE_S)
    return ",".join((MOUNTED, *fields[5].split(","), *fields[-1].split(",")))


def main() -> None:
    """Try what standard input has."""
    _TARGET.mkdir(parents=True, exist_ok=True)
    tried = [(_local(each), _ours(each)) for each in json.load(sys.stdin)]
    json.dump(tried, sys.stdout)


if __name__ == "__main__":
    main()
