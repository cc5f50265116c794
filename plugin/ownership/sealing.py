"""Commits of what this node has written: while containers write, and at the end."""

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
    Return a new commit of the volume, to which containers go on writing.

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
    """Return the copy's commit, made of all that was written; None without a copy."""
    if ownership.is_shared(record):
        return None
    with ownership.copy_states.changing(record.id):
        copy = ownership.copy_state(record)
        if copy is None:
            return None
        if copy.live_epoch:
            if not ownership.membership.alone:
                flush(ownership, record)
            copy = rules.seal(copy)
            ownership.copy_states.write(record.id, copy)
        return copy.commit


def flush(ownership: OwnershipView, record: VolumeRecord) -> None:
    """Flush the copy: what a commit names must be on the disk after a power failure."""
    directory = ownership.backend_of(record).copy_directory(record.volume())
    if directory is not None:
        files.sync_filesystem(directory)
