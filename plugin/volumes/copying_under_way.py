"""Copying of volumes that is under way: how far it is, and when it is broken off."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from backends.errors import VolumeBusyError
from backends.system.copying import Copied, Progress
from plugin.volumes.patience import CallerGone


class CopyingUnderWay:
    """Shared by all parts that copy; `remora status` shows it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._copied: dict[str, Copied] = {}

    def under_way(self) -> dict[str, dict[str, int]]:
        """Return ``files`` and ``copied_bytes``, by the name of what is made."""
        with self._guard:
            return {
                name: {"files": copied.files, "copied_bytes": copied.size_bytes}
                for name, copied in self._copied.items()
            }

    @contextmanager
    def track(self, name: str, caller_gone: CallerGone) -> Iterator[Progress]:
        """Yield a function to which the copying of *name* tells its progress."""

        def progress(copied: Copied) -> None:
            if caller_gone():
                raise VolumeBusyError(f"the copy of '{name}' was broken off")
            with self._guard:
                self._copied[name] = copied

        with self._guard:
            self._copied[name] = Copied()
        try:
            yield progress
        finally:
            with self._guard:
                self._copied.pop(name, None)
