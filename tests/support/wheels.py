"""The locked packages, for installations without a network."""

from __future__ import annotations

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
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=CACHE, prefix="part-"))
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "-qq", "--require-hashes"),
                *("--only-binary=:all:", "--no-deps", "-r", str(LOCK)),
                *("-d", str(part)),
            ],
            check=True,
            timeout=DOWNLOAD_DEADLINE_S,
        )
        part.rename(path)
    return path
