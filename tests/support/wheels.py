"""The locked packages, for installations without a network."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from .host import REPOSITORY
from .images import CACHE

LOCK = REPOSITORY / "requirements/runtime.txt"
DOWNLOAD_DEADLINE_S = 300


def offline() -> dict[str, str]:
    """Return the environment in which pip takes only the locked packages."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(directory())}


@functools.cache
def directory() -> Path:
    """Return a directory with the locked packages, downloaded once per machine."""
    key = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    path = CACHE / f"wheels-{key}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock-wheels").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            part = Path(tempfile.mkdtemp(dir=CACHE, prefix="part-"))
            _download(part)
            part.rename(path)
    return path


def _download(directory: Path) -> None:
    command = [
        *(sys.executable, "-m", "pip", "download", "-qq", "--require-hashes"),
        *("--only-binary=:all:", "--no-deps", "-r", str(LOCK), "-d", str(directory)),
    ]
    subprocess.run(command, check=True, timeout=DOWNLOAD_DEADLINE_S)
