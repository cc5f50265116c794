"""
Taking over the data of a directory, such as an existing `local` volume's.

The new volume stays in phase `creating`, seen by nobody, until all bytes are there and
durable; whatever goes wrong before, a crash included, leaves no volume. The source is
only read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backends.errors import InvalidRequestError, VolumeBusyError
from backends.system import mounts
from backends.system.copying import Destination, copy_tree
from plugin.model import check_name
from plugin.volumes.copying_under_way import CopyingUnderWay
from plugin.volumes.creation import Creation
from plugin.volumes.operations import CallerGone
from plugin.volumes.options import OptionResolver


@dataclass(frozen=True, slots=True)
class Importing:
    """Makes volumes of directories."""

    creation: Creation
    resolver: OptionResolver
    copying: CopyingUnderWay

    def import_directory(
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
            VolumeBusyError: a container has *source* mounted, or the caller left.
            BackendError, DeadlineError: the copy failed or stood still.

        """
        check_name(name)
        resolved = self.resolver.resolve(options)
        _check_source(source)

        def fill(destination: Destination) -> None:
            with self.copying.track(name, caller_gone) as progress:
                copy_tree(source, destination, progress=progress)

        self.creation.create_filled(name, resolved, fill)


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
