"""What is done with volumes on a share: create, find, hold, remove, survey."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from backends.nfs.agent import retained, snapshots
from backends.nfs.agent.catalogue import (
    CREATION_FRESH_S,
    Catalogue,
    Refused,
    key_of,
)
from backends.nfs.agent.changing import changing
from backends.nfs.agent.markers import TOO_MANY
from backends.nfs.agent.schema import Json


def create(catalogue: Catalogue, request: Json) -> Json:
    """Make the volume, or find it made by another node; return its marker."""
    catalogue.prepare()
    wanted: Json = request["marker"]
    key = key_of(wanted["name"])
    claim_key = key_of(wanted["subdir"])
    wanted["node"] = catalogue.node
    content = None
    if request["content"]:
        content = snapshots.copy_path(catalogue, request["content"])
        wanted["content"] = catalogue.identity(content)
    mine = catalogue.link_new({**wanted, "state": "creating"}, "volumes", key)
    marker = wanted if mine else catalogue.read("volumes", key)
    if marker is None:
        raise Refused("INUSE", "it is being removed just now: retry")
    if not mine and not _is_cut_short(catalogue, marker, wanted):
        return marker
    try:
        _claim(catalogue, claim_key, marker)
        require_apart(catalogue, marker)
        marker, made = _make_directory(catalogue, marker, content, resumed=not mine)
    except Refused:
        if mine:
            _unclaim(catalogue, claim_key, marker)
            catalogue.unlink("volumes", key)
        raise
    if marker["adopt"] == wanted["adopt"]:  # one that was left keeps owner and mode
        _own(catalogue, marker["subdir"], request)
    ready = {
        **marker,
        "state": "ready",
        "made_parents": made,
        "identity": catalogue.identity(marker["subdir"]),
    }
    catalogue.replace(ready, "volumes", key)
    retained.forget(catalogue, ready)
    return ready


def _is_cut_short(catalogue: Catalogue, marker: Json, wanted: Json) -> bool:
    """
    Return whether *marker* is of the same creation, cut short; False if it is ready.

    Raises:
        Refused: another node removes or makes it just now.

    """
    if marker["requested"] != wanted["requested"]:
        return False  # the daemon words the difference
    if marker["state"] == "ready":
        return False
    if marker["state"] == "removing":
        raise Refused("INUSE", "it is being removed on another node: retry")
    # Two nodes that make it at once would undo each other's steps. A creation that
    # this node has begun, or that is too old, was cut short by a crash.
    if (
        marker["node"] != catalogue.node
        and catalogue.age_s("volumes", key_of(marker["name"])) < CREATION_FRESH_S
    ):
        raise Refused("CREATING", f"it is being created on {marker['node']}")
    return True


def _claim(catalogue: Catalogue, claim_key: str, marker: Json) -> None:
    """Claim the directory for the volume, against every other volume."""
    content = {"id": marker["id"], "name": marker["name"]}
    for _ in range(3):
        if catalogue.link_new(content, "claims", claim_key):
            return
        holder = catalogue.read("claims", claim_key)
        if holder is None:
            continue
        if holder["id"] == marker["id"]:
            return
        other = catalogue.marker(holder["name"])
        if other is not None and other["id"] == holder["id"]:
            raise Refused(
                "EXISTS",
                f"directory '{marker['subdir']}' belongs to volume '{holder['name']}'",
            )
        # A crash between unlinking a marker and its claim left this one behind.
        catalogue.unlink_if(holder, "claims", claim_key)
    raise Refused("INUSE", f"directory '{marker['subdir']}' is being claimed: retry")


def _unclaim(catalogue: Catalogue, claim_key: str, marker: Json) -> None:
    holder = catalogue.read("claims", claim_key)
    if holder is not None and holder["id"] == marker["id"]:
        catalogue.unlink("claims", claim_key)


def _make_directory(
    catalogue: Catalogue, marker: Json, content: str | None, *, resumed: bool
) -> tuple[Json, list[str]]:
    """
    Make the volume's directory; return the marker, and the parents made for it.

    One with *content* is the renamed copy at that path. One that is there is taken if
    the marker says so, or if a volume of the same name has left it.
    """
    subdir = marker["subdir"]
    parts = subdir.split("/")
    made = []
    for number in range(1, len(parts)):
        at = "/".join(parts[:number])
        try:
            catalogue.share.make_directory(at, 0o755)
        except FileExistsError:
            _require_directory(catalogue, at)
        else:
            made.append(at)
    try:
        if content is not None:
            _place(catalogue, content, subdir)
        else:
            catalogue.share.make_directory(subdir, 0o755)
    except FileExistsError:
        _require_directory(catalogue, subdir)
        # What a resumed creation finds is what the crash left.
        if marker["adopt"] or (resumed and _left(catalogue, marker)):
            return marker, made
        if content is None and retained.is_left_by(catalogue, marker):
            return {**marker, "adopt": True}, made
        whose = retained.whose(catalogue, subdir)
        raise Refused("EXISTS", f"directory '{subdir}' is there and {whose}") from None
    return marker, made


def _require_directory(catalogue: Catalogue, path: str) -> None:
    if not catalogue.share.is_directory(path):
        raise Refused("EXISTS", f"'{path}' is no directory, or a symbolic link")


def _place(catalogue: Catalogue, copy: str, at: str) -> None:
    """Rename a directory to where nothing is; rename(2) would replace an empty one."""
    if catalogue.share.exists(at):
        raise FileExistsError(at)
    catalogue.share.rename(copy, at)


def require_apart(catalogue: Catalogue, marker: Json) -> None:
    """Refuse a directory that is in another volume's, or has another volume's in it."""
    mine = f"{marker['subdir']}/"
    for other in catalogue.scan():
        theirs = f"{other['subdir']}/"
        # Which of two has the very same one, the claims say.
        if mine != theirs and (mine.startswith(theirs) or theirs.startswith(mine)):
            raise Refused(
                "EXISTS",
                f"directory '{marker['subdir']}' and '{other['subdir']}' of volume "
                f"'{other['name']}' are one in the other",
            )


def _left(catalogue: Catalogue, marker: Json) -> bool:
    """Return whether an unfinished creation of this volume has made its directory."""
    if "content" in marker:
        return bool(catalogue.identity(marker["subdir"]) == marker["content"])
    return not catalogue.share.names(marker["subdir"])


def _own(catalogue: Catalogue, directory: str, request: Json) -> None:
    """Give the directory the owner and mode that are wished for, None: as it is."""
    shown = catalogue.share.status(directory)
    uid, gid = (
        before if wanted is None else wanted
        for before, wanted in (
            (shown.st_uid, request["own_uid"]),
            (shown.st_gid, request["own_gid"]),
        )
    )
    if (uid, gid) != (shown.st_uid, shown.st_gid):
        catalogue.share.set_owner(directory, uid, gid)
    if request["mode"] is not None:
        catalogue.share.set_mode(directory, request["mode"])


def find(catalogue: Catalogue, request: Json) -> Json | None:
    """Return the marker of the volume named so, if it is ready."""
    marker = catalogue.marker(request["name"])
    return marker if marker is not None and marker["state"] == "ready" else None


def rewrite(catalogue: Catalogue, request: Json) -> None:
    """Say of a volume what it was asked for with, as its share is called now."""
    with changing(catalogue, request["id"]):
        marker = catalogue.marker(request["name"])
        if marker is None or marker["id"] != request["id"]:
            raise Refused("STALE", "another volume has its name on the share")
        # Their daemons have it by the old name, and renew their leases by that.
        if holders := catalogue.holders(marker["id"]):
            raise Refused("INUSE", f"mounted on {', '.join(sorted(holders)[:5])}")
        said = {key: request[key] for key in ("requested", "options")}
        if not said.items() <= marker.items():
            catalogue.replace({**marker, **said}, "volumes", key_of(marker["name"]))


def hold(catalogue: Catalogue, request: Json) -> Json:
    """
    Take this node's lease, then say whether the volume may be mounted.

    In this order, while a removal first marks the volume and then looks for leases: at
    least one of the two sees the other.
    """
    catalogue.touch_lease(request["id"])
    marker = catalogue.marker(request["name"])
    if marker is None or marker["id"] != request["id"] or marker["state"] != "ready":
        catalogue.drop_lease(request["id"])
        raise Refused(
            "STALE",
            "it was removed on another node"
            if marker is None or marker["id"] == request["id"]
            else "another volume has taken its name",
        )
    try:
        if "swap" in marker:
            marker = snapshots.swap_finished(catalogue, marker)
        snapshots.require_directory(catalogue, marker, request)
    except (Refused, OSError):
        catalogue.drop_lease(request["id"])
        raise
    return marker


def release(catalogue: Catalogue, request: Json) -> None:
    """Give this node's lease back."""
    catalogue.drop_lease(request["id"])


def remove(catalogue: Catalogue, request: Json) -> str:
    """Remove the volume in the way that it was made for; return what was done."""
    catalogue.prepare()
    with changing(catalogue, request["id"]):
        marker = catalogue.marker(request["name"])
        if marker is None:
            return "gone"
        if marker["id"] != request["id"]:
            raise Refused(
                "EXISTS", "another volume has taken its name: nothing was done"
            )
        if "swap" in marker:
            marker = snapshots.finish_swap(catalogue, marker)
        _mark_removing(catalogue, marker, request["on_delete"])
        done = "gone"
        # A removal that was cut short may have disposed of it already.
        if catalogue.share.exists(marker["subdir"]):
            done = _dispose(catalogue, marker, request)
        _unclaim(catalogue, key_of(marker["subdir"]), marker)
        catalogue.unlink("volumes", key_of(request["name"]))
        catalogue.share.remove_files(catalogue.path("leases", request["id"]))
    return done


def _mark_removing(catalogue: Catalogue, marker: Json, on_delete: str) -> None:
    """Mark the volume as one that is being removed, or refuse and leave it as it is."""
    key = key_of(marker["name"])
    catalogue.replace({**marker, "state": "removing"}, "volumes", key)
    directory = marker["subdir"]
    try:
        holders = catalogue.holders(marker["id"])
        if holders:
            raise Refused("INUSE", f"mounted on {', '.join(sorted(holders)[:5])}")
        if on_delete == "delete":
            snapshots.require_none(catalogue, marker)
        if on_delete != "retain":
            require_apart(catalogue, marker)
        if catalogue.share.exists(directory) and not catalogue.may_be(
            marker.get("identity"), directory
        ):
            raise Refused(
                "REPLACED", f"directory '{directory}' is not the one that was created"
            )
    except Refused:
        catalogue.replace(marker, "volumes", key)
        raise


def discard(catalogue: Catalogue, request: Json) -> None:
    """Undo this node's unfinished creation; what is ready, or another's, stays."""
    marker = catalogue.marker(request["name"])
    if marker is None or marker["id"] != request["id"] or marker["state"] != "creating":
        return
    if not marker["adopt"]:
        holder = catalogue.read("claims", key_of(marker["subdir"]))
        directory = marker["subdir"]
        if holder is not None and holder["id"] == marker["id"]:
            if "content" in marker and catalogue.share.is_directory(directory):
                if _left(catalogue, marker):
                    snapshots.throw_away(catalogue, directory, marker["id"])
            else:
                with suppress(OSError):  # not empty: it was there before, not ours
                    catalogue.share.remove_directory(directory)
    _unclaim(catalogue, key_of(marker["subdir"]), marker)
    catalogue.unlink("volumes", key_of(request["name"]))


def _dispose(catalogue: Catalogue, marker: Json, request: Json) -> str:
    """
    Keep, move or drop the volume's directory, as `onDelete` says; return what was done.

    Dropped is only what cannot be anything else, nor have a volume in it of which the
    marker could not be read. A filesystem of its own stays: no client can rename it.
    """
    directory, share = marker["subdir"], catalogue.share
    done = str(request["on_delete"])
    if done != "retain" and catalogue.has_own_filesystem(directory):
        sys.stderr.write(f"{marker['name']}: its directory is another filesystem\n")
        done = "retain"
    if done == "retain":
        retained.note(catalogue, marker, request["time"])
        return "retained"
    if done == "delete" and (
        marker.get("identity") != catalogue.identity(directory)
        or catalogue.markers.has_unread()
    ):
        done = "archive"
    if done == "archive":
        place = f"{marker['name'][:100]}-{marker['id']}-{request['time']}"
        share.rename(directory, catalogue.path("archived", place))
        snapshots.move_all(
            catalogue, marker, catalogue.path("archived", f"{place}.snapshots")
        )
    else:
        share.rename(directory, catalogue.path("trash", marker["id"]))
    for parent in reversed(marker.get("made_parents", [])):
        with suppress(OSError):  # others have put something there
            share.remove_directory(parent)
    return done


def survey(catalogue: Catalogue, request: Json) -> Json:
    """
    Renew this node's leases and return markers and the share's size.

    If it says `more`, a survey that is not the `first` has the markers that follow.
    """
    for volume_id in request["held"]:
        catalogue.touch_lease(volume_id)
    usage = catalogue.share.space()
    markers, more = catalogue.markers.page(is_first=request["first"])
    if request["first"]:
        catalogue.sweep_new()
    return {
        "markers": markers,
        "more": more,
        "error": TOO_MANY if catalogue.markers.is_cut else "",
        "begun": snapshots.begun(catalogue, markers),
        "thrown_away": catalogue.count("trash"),
        "total_bytes": usage.f_blocks * usage.f_frsize,
        "available_bytes": usage.f_bavail * usage.f_frsize,
    }


def check(catalogue: Catalogue, request: Json) -> None:
    """Raise what is wrong with a directory of the share if it cannot be looked into."""
    with catalogue.share.directory(request["directory"]) as directory:
        next(os.scandir(directory), None)
