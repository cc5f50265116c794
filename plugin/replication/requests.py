"""What an owner asks of a member: how its copy stands, and to take a commit in."""

from __future__ import annotations

import msgspec

from backends.base import WholeNumber
from plugin.model import VolumeId, VolumeName


class CommitRequest(msgspec.Struct, frozen=True):
    """What an owner asks of a member, after it has sent a commit."""

    volume: VolumeId
    name: VolumeName
    epoch: WholeNumber
    seq: WholeNumber
    # The bytes that were sent for it, for the metrics.
    carried_bytes: WholeNumber = 0
    # What has changed after this commit was sent. Earlier versions do not say so.
    since: tuple[WholeNumber, WholeNumber] | None = None
    # Nothing comes after it: whoever mounts the volume next waits for it.
    last: bool = False


class StandRequest(msgspec.Struct, frozen=True):
    """What an owner asks before it sends: which commit the copy is at."""

    volume: VolumeId
