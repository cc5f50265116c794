"""
The identity of a share, `.dvol/share.json`: what tells it from an empty directory.

The server may export one in its place while its disk is not mounted, and another server
may answer at its address. Older agents made a catalogue without an identity.
"""

from __future__ import annotations

import uuid
from typing import Final

from backends.nfs.agent.catalogue import BASE, Catalogue, Refused, key_of
from backends.nfs.agent.markers import OF_ONE_FILE
from backends.nfs.agent.schema import Json
from backends.system import jail

_FILE: Final = "share.json"


def require(catalogue: Catalogue, wanted: str) -> None:
    """Refuse another share than *wanted*, "" for any, or one without its markers."""
    if not wanted:
        return
    if (found := _identity(catalogue)) != wanted:
        here = f"is {found}" if found else "has no .dvol/share.json"
        raise Refused("OTHER", f"what answers {here}, and not share {wanted}")
    # It was made before the identity was; an empty one would be one without volumes.
    if not catalogue.share.is_directory(catalogue.path("volumes")):
        raise Refused("CATALOGUE", "directory .dvol/volumes is missing")


def identify(catalogue: Catalogue, request: Json) -> str:
    """
    Return the share's identity, made now if there is a catalogue, or one is to *begin*.

    There is none, "", where nobody has begun one.

    Raises:
        Refused: OTHER, it has none of the *volumes* that it should have.

    """
    if request["volumes"] and not any(
        _has(catalogue, name, volume_id) for name, volume_id in request["volumes"]
    ):
        raise Refused("OTHER", "it has none of the volumes that are known to be on it")
    found = _identity(catalogue)
    if not found and (request["begin"] or catalogue.share.is_directory(BASE)):
        content = {"id": str(uuid.uuid4())}
        try:
            catalogue.link_new(content, _FILE)
        except PermissionError:  # the server squashes root: the export is a user's
            top = catalogue.share.status("")
            with jail.as_user(top.st_uid, top.st_gid):
                catalogue.link_new(content, _FILE)
        found = _identity(catalogue)
    return found


def _identity(catalogue: Catalogue) -> str:
    found = catalogue.read(_FILE)
    return "" if found is None else str(found["id"])


def _has(catalogue: Catalogue, name: str, volume_id: str) -> bool:
    try:
        marker = catalogue.read("volumes", key_of(name))
    except Refused:  # it is damaged; another one may tell
        return False
    except OSError as damage:
        if damage.errno not in OF_ONE_FILE:
            raise
        return False
    return marker is not None and marker["id"] == volume_id
