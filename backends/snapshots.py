"""What all backends' snapshots have in common: names on disk, and refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from backends.base import Snapshot, Volume
from backends.errors import BackendError, SnapshotNotFoundError

# What each snapshot's directory holds: the tree, and the facts about it.
DATA_NAME: Final = "data"
FACTS_NAME: Final = "snapshot.json"


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
