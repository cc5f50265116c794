"""
Directories that removals have left, as `onDelete=retain` wants: whose they were.

    .dvol/retained/<key>.json   whose it was, and since when; key = that of its claim

A volume that is made again with its name and its directory has its bytes again, as with
the engine's own driver: `docker compose down --volumes` and `up` is a common pair. What
is not noted here, a person has put there.
"""

from __future__ import annotations

from backends.nfs.agent.catalogue import Catalogue, key_of
from backends.nfs.agent.schema import Json

_PLACE = "retained"


def note(catalogue: Catalogue, marker: Json, removed_at: str) -> None:
    """
    Note that the removal of a volume leaves its directory.

    As it is known now: a marker may have its inode's number alone, and another
    directory may get that.
    """
    subdir = marker["subdir"]
    known = {"identity": catalogue.identity(subdir)} if "identity" in marker else {}
    content = {
        "id": marker["id"],
        "name": marker["name"],
        "removed_at": removed_at,
        **known,
    }
    catalogue.replace(content, _PLACE, key_of(subdir))


def forget(catalogue: Catalogue, marker: Json) -> None:
    """Forget it: the directory is a volume's again, or is gone."""
    catalogue.unlink(_PLACE, key_of(marker["subdir"]))


def is_left_by(catalogue: Catalogue, marker: Json) -> bool:
    """Return whether a volume of the same name has left the directory of *marker*."""
    found = catalogue.read(_PLACE, key_of(marker["subdir"]))
    return (
        found is not None
        and found["name"] == marker["name"]
        and "identity" in found
        and catalogue.may_be(found["identity"], marker["subdir"])
    )


def whose(catalogue: Catalogue, subdir: str) -> str:
    """Return whose the directory is or was, for people."""
    found = catalogue.read(_PLACE, key_of(subdir))
    if found is None:
        return "belongs to no volume"
    return f"was left by volume '{found['name']}', removed at {found['removed_at']}"
