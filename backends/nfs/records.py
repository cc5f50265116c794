"""
Volumes out of markers and records, as far as they say what a user could have.

A version before this one has recorded whatever stood in a marker.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from backends.base import Volume
from backends.errors import BackendError, InvalidRequestError, one_line
from backends.nfs import options as nfs_options
from backends.nfs.options import DEFAULTS, is_direct, subdir_of
from backends.options import COMMON_KEYS, IGNORED


def complete(volume: Volume) -> Volume:
    """
    Return *volume* with complete options.

    Raises:
        BackendError: its record says what no volume of this kind may have.

    """
    try:
        parsed = nfs_options.parse_options(volume.options)
        options = nfs_options.merge_options(DEFAULTS, parsed)
        nfs_options.require_complete(options)
    except InvalidRequestError as error:
        raise BackendError(
            f"the record of '{volume.name}' says what no volume may have: "
            f"{error.cause}",
            hint=f"remora rm {volume.name} removes the record alone; create it again",
        ) from None
    return replace(volume, options=options)


def on_share(volume: Volume) -> Volume | None:
    """Return *volume*, complete; None if no share with a catalogue has it."""
    try:
        volume = complete(volume)
    except BackendError:
        return None
    return None if is_direct(volume) else volume


def volume_of(marker: Mapping[str, Any], ours: Mapping[str, str]) -> Volume:
    """
    Return the volume that a marker describes.

    Its options are read as a user's would be: whoever can write to the share could have
    written them. They have no say in what is mounted, and how: that is *ours*.

    Raises:
        BackendError: it describes none.

    """
    try:
        options = {**DEFAULTS, **nfs_options.parse_options(marker["options"])}
        nfs_options.require_complete(options)
        for key in nfs_options.OURS:
            options.pop(key, None)
        options |= {key: ours[key] for key in nfs_options.OURS if key in ours}
        if ours.get("mountMode") == "share":
            options["mountMode"] = "share"
        asked = {**marker["requested"]}
        common = {key: asked.pop(key) for key in COMMON_KEYS if key in asked}
        wanted = nfs_options.parse_options(asked)
        wanted.pop(IGNORED, None)  # an older version has kept it among the others
        volume = Volume(
            id=str(uuid.UUID(marker["id"])),
            name=str(marker["name"]),
            options=options,
            created_at=str(marker["created_at"]),
            requested={**wanted, **common},
        )
        if is_direct(volume) or marker.get("subdir", "") not in ("", subdir_of(volume)):
            raise ValueError("its directory is another's")
    except (
        *(AttributeError, KeyError, TypeError, ValueError),
        InvalidRequestError,
    ) as error:
        name = one_line(str(marker.get("name")))[:80]
        raise BackendError(
            f"the marker of '{name}' cannot be read: {one_line(repr(error))[:200]}",
            hint="remove it from .dvol/volumes, then create the volume again",
        ) from None
    return volume
