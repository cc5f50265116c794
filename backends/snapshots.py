"""
The contract of snapshots: what a backend does with copies of a volume's past.

The rules of `backends.base` hold here too. A snapshot is a copy of the volume's tree,
complete or not there at all. It is as consistent as its source was quiet: each file is
taken at one moment, but not all files at the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from backends.base import Volume
from backends.errors import BackendError, SnapshotNotFoundError
from backends.system.copying import Copied, Progress

# What each snapshot's directory holds: the tree, and the facts about it.
DATA_NAME: Final = "data"
FACTS_NAME: Final = "snapshot.json"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of a volume at some time; sizes as the files tell them."""

    name: str
    created_at: str
    files: int
    size_bytes: int
    attributes_lost: int = 0

    @classmethod
    def of_copy(cls, name: str, created_at: str, copied: Copied) -> Snapshot:
        """Return the snapshot that a finished copy is."""
        return cls(
            name, created_at, copied.files, copied.size_bytes, copied.attributes_lost
        )

    @classmethod
    def of_facts(cls, name: str, facts: dict[str, Any]) -> Snapshot:
        """Return the snapshot *name* that the content of `snapshot.json` tells of."""
        return cls(
            name,
            str(facts.get("created_at", "")),
            int(facts.get("files", 0)),
            int(facts.get("size_bytes", 0)),
            int(facts.get("attributes_lost", 0)),
        )


class Snapshots(Protocol):
    """What a backend does with the snapshots of its volumes."""

    def take(
        self,
        volume: Volume,
        name: str,
        *,
        mounted_at: Path | None,
        progress: Progress,
    ) -> Snapshot:
        """
        Return a new snapshot of *volume*; durable.

        What was written through the mount *mounted_at* before the call is in it.

        Raises:
            SnapshotExistsError: the name is taken.
            BackendError: it was not taken; nothing of it is seen.

        """
        ...

    def all(self, volume: Volume) -> list[Snapshot]:
        """Return the snapshots of *volume*, oldest first."""
        ...

    def remove(self, volume: Volume, name: str) -> None:
        """Remove one; raises SnapshotNotFoundError."""
        ...

    def restore(
        self, volume: Volume, name: str, *, keep_as: str, progress: Progress
    ) -> None:
        """
        Give *volume* the bytes of its snapshot; those it had become a new snapshot.

        The caller has seen that nobody on this node uses the volume. It has the one or
        the other bytes, whatever happens.

        Raises:
            SnapshotNotFoundError: there is none.
            SnapshotExistsError: *keep_as* is taken.
            BackendError: the volume is as it was.

        """
        ...


def require_none(volume: Volume, snapshots: Sequence[Snapshot]) -> None:
    """Raise BackendError if *volume* has snapshots, which its removal would destroy."""
    if snapshots:
        names = ", ".join(each.name for each in snapshots[:5])
        raise BackendError(
            f"'{volume.name}' has snapshots, which would be lost with it: {names}",
            hint=f"remora snapshot rm {volume.name} {snapshots[0].name}",
        )


def not_found(volume: Volume, name: str) -> SnapshotNotFoundError:
    """Return the error that *volume* has no snapshot *name*."""
    return SnapshotNotFoundError(
        f"volume '{volume.name}' has no snapshot '{name}'",
        hint=f"remora snapshot ls {volume.name}",
    )
