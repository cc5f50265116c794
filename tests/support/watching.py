"""A watcher of a filesystem, and directories for it to watch."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backends.rsync.journal.watch import Hints, Watched, Watcher

EVERYTHING = Hints(everything=True)


@contextmanager
def watching(path: Path) -> Iterator[Watcher]:
    """Yield a watcher that works, and close it."""
    watcher = Watcher(path)
    try:
        assert watcher.fault == ""
        yield watcher
    finally:
        watcher.close()


def make_root(path: Path) -> Path:
    """Make the directory of a volume, as the pool does."""
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", path.parent], capture_output=True, check=True
    )
    if kind.stdout.strip() == b"btrfs":
        command = ["btrfs", "subvolume", "create", path]
        subprocess.run(command, check=True, capture_output=True)
    else:
        path.mkdir()
    return path


def ready(watcher: Watcher, root: Path) -> Watched:
    """Return a watch that knows everything until now."""
    watched = watcher.add(root)
    assert watched.pop_hints().everything
    return watched


def end_thread(watcher: Watcher) -> None:
    """Let nobody but `take` read the queue."""
    os.eventfd_write(watcher._stop, 1)
    watcher._thread.join()
