"""The limit of a volume that was made larger, on a node that has a copy of it."""

from __future__ import annotations

from dataclasses import replace

from backends.base import Volume
from backends.errors import BackendError
from backends.rsync.pool import Pool, described_in, description, failed, number_of
from backends.system import files, quota


def fit(pool: Pool, volume: Volume, deadline_s: float) -> None:
    """
    Hold this node's copy of *volume* to the `size` that its options have now.

    Where there is no copy, or no size, there is nothing to do. `volume.json` comes last
    and says which limit is in force.

    Raises:
        BackendError: the pool is away, or refused; the old limit may be in force.

    """
    size_bytes = number_of(volume.name, volume.options, "size")
    if size_bytes is None:
        return
    pool.require()
    home = pool.home(volume)
    before, file = described_in(home), home / "volume.json"
    if before is None:
        if not file.exists():
            return  # there is no copy, or it is being made, with its limit
        raise BackendError(
            f"{file} cannot be read",
            hint="restore it; the volume is there all the same",
        )
    if before.options.get("size") == str(size_bytes):
        return
    options = {**before.options, "size": str(size_bytes)}
    try:
        quota.limit(
            home / "live",
            volume_id=volume.id,
            size_bytes=size_bytes,
            deadline_s=deadline_s,
        )
        files.write_durably(file, description(replace(before, options=options)))
    except FileNotFoundError:
        return  # the copy has gone meanwhile
    except OSError as error:
        raise failed(f"cannot limit '{volume.name}'", error) from error
