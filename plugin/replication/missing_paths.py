"""The paths that a member says it lacks, encoded for its answer."""

from __future__ import annotations

import base64
from typing import Final

from plugin.errors import PeerRefusedError

# A line of the control channel has 64 KiB.
_SIZE_MAX: Final = 32 * 1024


def encoded_paths(paths: list[bytes]) -> list[str]:
    """Return as many of *paths* as fit into a line, encoded; at least one."""
    encoded: list[str] = []
    size = 0
    for path in paths:
        text = base64.b64encode(path).decode()
        size += len(text) + 3
        if size > _SIZE_MAX and encoded:
            break
        encoded.append(text)
    return encoded


def decoded_paths(encoded: object) -> set[bytes]:
    """
    Return the paths that another node has encoded.

    Raises:
        PeerRefusedError: it has written something else.

    """
    if not isinstance(encoded, list):
        raise PeerRefusedError("a list of missing paths is none")
    try:
        return {base64.b64decode(each, validate=True) for each in encoded}
    except (TypeError, ValueError) as error:
        raise PeerRefusedError("a list of missing paths is none") from error
