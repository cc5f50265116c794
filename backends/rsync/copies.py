"""Copies of trees under way in a pool: complete, and renamed into place, or garbage."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backends.rsync.pool import Pool, failed


class CopiesUnderWay:
    """The directories below `Pool.copies`; several threads may make some."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._guard = threading.Lock()
        self._under_way: set[str] = set()

    @contextmanager
    def new(self) -> Iterator[Path]:
        """Yield a new directory to copy into; what is left of it goes to the trash."""
        token = secrets.token_hex(8)
        copy = self._pool.copies / token
        with self._guard:
            self._under_way.add(token)
        try:
            self._pool.copies.mkdir(mode=0o700, exist_ok=True)
            copy.mkdir(mode=0o700)
            yield copy
        except OSError as error:
            raise failed("the copy failed", error) from error
        finally:
            if copy.exists():
                self._pool.trash.throw_away(copy)
            with self._guard:
                self._under_way.discard(token)

    def sweep(self) -> None:
        """Throw away the copies that a crash has left."""
        if not self._pool.copies.is_dir():
            return
        with self._guard:
            for left in self._pool.copies.iterdir():
                if left.name not in self._under_way:
                    self._pool.trash.throw_away(left)
