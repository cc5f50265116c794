"""
Large files as they were at the commit that wrote them last, sharing their blocks.

    <home>/bases/<hash of the path>.<epoch>.<seq>

On XFS the next commit's copy is compared with it, extent by extent, and what has moved
comes into it (`base_leads.py`). It costs the space of what has been written since.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from backends.errors import RemoraError
from backends.rsync.journal.base_leads import Lead, lead_on
from backends.rsync.journal.entries import Commit
from backends.rsync.journal.range_log import name_of
from backends.system import extents
from backends.system.beneath import opened
from backends.system.copy_file import can_share, clone

_CANNOT: Final = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL)


class BaseClones:
    """The clones in *directory*, which is made when it is needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def possible(self) -> bool:
        """Return whether files share blocks here, and the disk tells which."""
        with opened(self._directory.parent) as home:
            return extents.is_xfs(home) and can_share(self._directory.parent)

    def nearest(self, path: bytes, commit: Commit) -> Commit | None:
        """Return the newest commit up to *commit* of which the file is kept."""
        names = (each.name for each in self._directory.glob(f"{name_of(path)}.*"))
        kept = [tuple(map(int, each.split(".")[1:])) for each in names]
        found = [(epoch, seq) for epoch, seq in kept if (epoch, seq) <= commit]
        return max(found, default=None)

    @contextmanager
    def opened(self, path: bytes, commit: Commit) -> Iterator[int | None]:
        """Yield the file *path* of *commit*, opened; None if it is not kept."""
        try:
            base = os.open(self._file(path, commit), os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            yield None
            return
        try:
            yield base
        finally:
            os.close(base)

    def keep(self, path: bytes, commit: Commit, source: int) -> None:
        """
        Keep the open *source* as the file *path* of *commit*, if clones are possible.

        Older ones stay until `keep_only`: which of them is needed the manifest says.
        """
        self._directory.mkdir(mode=0o700, exist_ok=True)
        temporary = self._directory / f".{secrets.token_hex(8)}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        target = os.open(temporary, flags, 0o600)
        try:
            clone(source, target)
            os.fsync(target)
            temporary.rename(self._file(path, commit))
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if error.errno not in _CANNOT:
                raise
        finally:
            os.close(target)

    def advance(
        self,
        path: bytes,
        content: Commit | None,
        commit: Commit,
        lead_on: Callable[[int], None],
    ) -> None:
        """
        Make the clone of *content* the one of *commit*: *lead_on* does that, opened.

        It is noted already where the file has changed. A crash on the way leaves no
        clone, and all of the file is sent once.
        """
        if content is None:
            return
        temporary = self._directory / f".{secrets.token_hex(8)}"
        self._file(path, content).rename(temporary)
        target = os.open(temporary, os.O_RDWR | os.O_NOFOLLOW)
        try:
            lead_on(target)
            os.fsync(target)
            temporary.rename(self._file(path, commit))
        except (RemoraError, OSError):
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(target)

    def lead_on(
        self,
        path: bytes,
        content: Commit,
        base: int,
        source: int,
        *,
        stands_still: bool = False,
    ) -> Lead | None:
        """Return what leads *base*, that of *content*, on to *source*; or None."""
        return lead_on(
            *(self._directory, path, content, base, source), stands_still=stands_still
        )

    def keep_only(self, commits: Mapping[bytes, Commit | None]) -> None:
        """Remove the clones of the files in *commits* but those of their commits."""
        kept = {
            name_of(path): commit and self._file(path, commit).name
            for path, commit in commits.items()
        }
        with suppress(OSError):
            for each in self._directory.iterdir():
                name = each.name.partition(".")[0]
                # A crash leaves one without a name.
                if not name or kept.get(name, each.name) != each.name:
                    each.unlink(missing_ok=True)

    def _file(self, path: bytes, commit: Commit) -> Path:
        return self._directory / f"{name_of(path)}.{commit[0]}.{commit[1]}"
