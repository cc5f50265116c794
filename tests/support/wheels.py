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

LOCKS = [REPOSITORY / f"requirements/{name}.txt" for name in ("runtime", "csi")]
DOWNLOAD_DEADLINE_S = 300


def offline() -> dict[str, str]:
    """Return the environment in which pip takes only the locked packages."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(directory())}


@functools.cache
def directory() -> Path:
    """Return a directory with the locked packages, downloaded once per machine."""
    locked = b"".join(each.read_bytes() for each in LOCKS)
    key = hashlib.sha256(locked).hexdigest()[:16]
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
        *("--only-binary=:all:", "--no-deps", "-d", str(directory)),
        *(f"--requirement={each}" for each in LOCKS),
    ]
    subprocess.run(command, check=True, timeout=DOWNLOAD_DEADLINE_S)
