"""
Taking over the data of a directory, such as an existing `local` volume's.

The new volume stays in phase `creating`, seen by nobody, until all bytes are there and
durable; whatever goes wrong before, a crash included, leaves no volume. The source is
only read.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from backends.errors import InvalidRequestError, VolumeBusyError, VolumeExistsError
from backends.system import mounts
from backends.system.clock import Deadline
from backends.system.run import run, run_with_progress
from plugin.limits import COPY_STALL_S, LONG_DEADLINE_S
from plugin.model import check_name
from plugin.operations import CallerGone
from plugin.service import VolumeService

# "  1,234,567  61%   10.00MB/s    0:00:03"; source: rsync(1), --info=progress2.
_PROGRESS: Final = re.compile(r"\s*([0-9,]+)\s+([0-9]{1,3})%")


class Importer:
    """Copies directories into new volumes; knows how far each copy is."""

    def __init__(self, service: VolumeService) -> None:
        self._service = service
        self._guard = threading.Lock()
        self._progress: dict[str, dict[str, int]] = {}

    def progress(self) -> dict[str, dict[str, int]]:
        """Return ``percent`` and ``bytes`` of each import under way, by volume."""
        with self._guard:
            return {name: dict(values) for name, values in self._progress.items()}

    def run(
        self,
        name: str,
        options: Mapping[str, str],
        source: Path,
        *,
        caller_gone: CallerGone,
    ) -> None:
        """
        Make volume *name* with the bytes of directory *source*.

        Raises:
            InvalidRequestError: the name, an option or the source is not usable.
            VolumeExistsError: the name is taken.
            VolumeBusyError: a container is writing in *source*, or the caller left.
            BackendError, DeadlineError: the copy failed or stood still.

        """
        check_name(name)
        resolved = self._service.resolver.resolve(options)
        _check_source(source)
        deadline = Deadline(LONG_DEADLINE_S)
        with self._service.operations.locks.hold(name, deadline):
            stored = self._service.begin_creation(name, resolved, deadline)
            if stored is None:
                raise VolumeExistsError(
                    f"volume '{name}' exists", hint="import under another name: --name"
                )
            volume = stored.record.volume()
            try:
                made = resolved.backend.create(
                    volume, deadline_s=deadline.remaining_s()
                )
                target = resolved.backend.data_directory(volume)
                self._copy(name, source, target, caller_gone)
                self._service.catalogue.replace(stored, stored.record.made(made))
            except BaseException:
                self._service.abandon_creation(stored, refused=False)
                raise
            finally:
                with self._guard:
                    self._progress.pop(name, None)

    def _copy(
        self, name: str, source: Path, target: Path, caller_gone: CallerGone
    ) -> None:
        """Copy everything that a file has; durable on return."""

        def on_line(line: str) -> None:
            if caller_gone():
                raise VolumeBusyError(f"the import of '{name}' was broken off")
            match = _PROGRESS.match(line)
            if match:
                with self._guard:
                    self._progress[name] = {
                        "bytes": int(match[1].replace(",", "")),
                        "percent": int(match[2]),
                    }

        run_with_progress(
            [
                "rsync",
                "-aHAXS",
                "--numeric-ids",
                "--info=progress2",
                "--no-inc-recursive",
                f"{source}/",
                f"{target}/",
            ],
            stall_s=COPY_STALL_S,
            on_line=on_line,
        )
        run(["sync", "-f", str(target)], deadline_s=COPY_STALL_S)


def _check_source(source: Path) -> None:
    """Raise unless *source* is a directory that no container has mounted."""
    if not source.is_absolute() or ".." in source.parts or not source.is_dir():
        raise InvalidRequestError(f"'{source}' is not the absolute path of a directory")
    users = mounts.users_of(source)
    if users:
        raise VolumeBusyError(
            f"{source} is used by {', '.join(map(str, users[:3]))}",
            hint="stop its containers first: a copy of changing files is torn",
        )
