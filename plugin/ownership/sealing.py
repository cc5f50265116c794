"""What this node has written, as a commit: of a volume that goes on, or at its end."""

from __future__ import annotations

from backends.system import files
from plugin.errors import NotOwnerError
from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.state import Commit
from plugin.ownership.view import OwnershipView


def commit_running(
    ownership: OwnershipView, record: VolumeRecord, epoch: int
) -> Commit:
    """
    Return a new commit of the volume, which goes on to be written to.

    Raises:
        NotOwnerError: this node's containers do not write in *epoch* any more.

    """
    with ownership.copy_states.changing(record.id):
        copy = ownership.copy_state(record)
        if copy is None or copy.live_epoch != epoch:
            raise NotOwnerError(f"'{record.name}' is not owned in epoch {epoch}")
        committed = rules.commit_live(copy)
        ownership.copy_states.write(record.id, committed)
    return committed.commit


def seal(ownership: OwnershipView, record: VolumeRecord) -> Commit | None:
    """Return this node's newest commit, with all that was written in it."""
    if ownership.is_shared(record):
        return None
    with ownership.copy_states.changing(record.id):
        copy = ownership.copy_state(record)
        if copy is None:
            return None
        if copy.live_epoch:
            if not ownership.membership.alone:
                _flush(ownership, record)
            copy = rules.seal(copy)
            ownership.copy_states.write(record.id, copy)
        return copy.commit


def _flush(ownership: OwnershipView, record: VolumeRecord) -> None:
    """What a commit names must be what the disk has after a power failure."""
    directory = ownership.backend_of(record).copy_directory(record.volume())
    if directory is not None:
        files.sync_filesystem(directory)
