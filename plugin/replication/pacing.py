"""How often a volume is synced: as its options say, or as its large files allow."""

from __future__ import annotations

from typing import Final

from backends.replication_options import ReplicationOptions
from plugin.model import VolumeRecord

# Where a large file is read through to find what has changed in it, the disk is busy
# with that for a tenth of the time at most.
_PAUSE_PER_READING: Final = 10


def interval_s(record: VolumeRecord, reading_s: float) -> float:
    """Return the time between two syncs; *reading_s* is what the last one has read."""
    wanted_s = ReplicationOptions.of(record.options).interval_s
    return max(wanted_s, _PAUSE_PER_READING * reading_s)


def told(record: VolumeRecord, reading_s: float) -> str:
    """Return why there are fewer syncs than `interval` says, "" if there are not."""
    taken_s = interval_s(record, reading_s)
    if taken_s <= ReplicationOptions.of(record.options).interval_s:
        return ""
    return (
        f"to find what has changed, large files are read whole, which takes "
        f"{reading_s:.1f} s: so there is a sync every {taken_s:.0f} s at most (hint: a "
        "pool on XFS or btrfs tells what has changed)"
    )
