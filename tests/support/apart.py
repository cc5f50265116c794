"""Trees that look as if they were set apart, and one of everything in them."""

from __future__ import annotations

import os
from pathlib import Path

ODD_NAMES = (b"new\nline", b"inv\xffalid", "ü".encode(), b"back\\#012slash", b"-dash")


def put_apart(home: Path, commit: str) -> Path:
    """Return a new tree of *commit* in the volume's directory *home*."""
    tree = home / "quarantine" / commit
    tree.parent.mkdir(mode=0o700, exist_ok=True)
    tree.mkdir(mode=0o755)
    return tree


def odd(tree: Path, name: bytes) -> Path:
    """Return the path of *name* in *tree*."""
    return tree / os.fsdecode(name)
