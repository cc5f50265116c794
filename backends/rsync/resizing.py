"""The limit of a volume that was made larger, on a node that has a copy of it."""

from __future__ import annotations

import msgspec

from backends.base import Volume
from backends.errors import BackendError
from backends.rsync.pool import Pool, VolumeFile, failed, number_of
from backends.system import files, quota
from backends.system.decoding import from_json


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
    try:
        before = from_json((home / "volume.json").read_bytes(), VolumeFile)
        if before.options.get("size") == str(size_bytes):
            return
        quota.limit(
            home / "live",
            volume_id=volume.id,
            size_bytes=size_bytes,
            deadline_s=deadline_s,
        )
        options = {**before.options, "size": str(size_bytes)}
        now = msgspec.structs.replace(before, options=options)
        files.write_durably(home / "volume.json", msgspec.json.encode(now))
    except FileNotFoundError:
        return  # there is no copy, or it is being made, with its limit
    except msgspec.DecodeError as error:
        raise BackendError(
            f"{home}/volume.json cannot be read: {error}",
            hint="restore it; the volume is there all the same",
        ) from error
    except OSError as error:
        raise failed(f"cannot limit '{volume.name}'", error) from error
