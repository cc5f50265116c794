"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import engine as engine_support
from tests.support.host import REPOSITORY, SYSTEM_PATH

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION_DEADLINE_S = 20.0
GIT_DESCRIBE = ("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty")


def describe() -> dict[str, str]:
    """Return the machine by keyword."""
    return {
        "kernel": platform.release(),
        "cpu": f"{os.cpu_count()} x {_cpu_model()}",
        "memory": f"{_memory_bytes() / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "docker engine": _version(["dockerd", "--version"]),
        "docker cli": _version([engine_support.CLI, "--version"]),
        "runc": _version(["runc", "--version"]),
        "rclone": _version(["rclone", "version"]),
        "remora": _version([str(program("remora")), "--version"]),
        "commit": _first_line(GIT_DESCRIBE) or "unknown",
        "load": load(),
    }


def load() -> str:
    """Return the load averages of 1, 5 and 15 minutes."""
    return " ".join(f"{average:.2f}" for average in os.getloadavg())


def program(name: str) -> Path:
    """Return the program *name* of this virtual environment."""
    return Path(sys.prefix) / "bin" / name


def _cpu_model() -> str:
    found = re.search(r"^model name\s*: (.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(argv: Sequence[str]) -> str:
    found = re.search(r"v?(\d[\w.+~-]*)", _first_line(argv))
    return found[1] if found else "missing"


def _first_line(argv: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=VERSION_DEADLINE_S,
            check=False,
            env={"PATH": SYSTEM_PATH},
        )
    except OSError:
        return ""
    return (done.stdout.splitlines() or [""])[0].strip()


def _read(path: str) -> str:
    return Path(path).read_text()
