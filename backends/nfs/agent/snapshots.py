"""
Copies of volumes on a share: where they are made, and how they get their place.

    .dvol/copies/<node>/<token>/data    a copy under way, made by another process
    .dvol/snapshots/<key>/<name>/       a complete one, with `snapshot.json`;
                                        key = that of the directory's claim

The snapshots belong to the directory rather than to the volume's id, so that a volume
that was removed with `retain` has them again once its directory is adopted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from backends.nfs.agent.catalogue import (
    Catalogue,
    Json,
    Refused,
    identity,
    key_of,
)
from backends.nfs.agent.changing import changing
from backends.system.jail import as_user

_DATA = "data"
_FACTS = "snapshot.json"


def begin_copy(catalogue: Catalogue, request: Json) -> Json:
    """Make the empty directory that a copy goes to; return where, and who may."""
    with _as_owner_if_squashed(catalogue, request):
        node = catalogue.path("copies", catalogue.node)
        for directory, mode in (
            (catalogue.path("copies"), 0o1777),
            (node, 0o1777),
            (os.path.join(node, request["token"]), 0o700),
            (os.path.join(node, request["token"], _DATA), 0o700),
        ):
            with suppress(FileExistsError):
                os.mkdir(directory, mode)
        user = {"uid": os.geteuid(), "gid": os.getegid()}
    return {"path": copy_path(catalogue, request["token"]), **user}


def copy_path(catalogue: Catalogue, token: str) -> str:
    """Return the path of this node's copy *token*, relative to the share."""
    return os.path.relpath(
        catalogue.path("copies", catalogue.node, token, _DATA), catalogue.root
    )


def begun(catalogue: Catalogue, markers: list[Json]) -> list[str]:
    """
    Return the tokens of what this node has begun: copies, and swaps of *markers*.

    Which of them a crash cut short only the daemon can say, and only after this look:
    it may begin one at any moment, by another mount of the same share as well.
    """
    tokens = {_swap_token(catalogue, marker) for marker in markers}
    with suppress(FileNotFoundError):
        tokens.update(os.listdir(catalogue.path("copies", catalogue.node)))
    return sorted(tokens - {""})


def repair(catalogue: Catalogue, request: Json) -> int:
    """
    Finish the swaps and throw away the copies that a crash cut short.

    Return how many things are in the trash then.
    """
    for marker in catalogue.scan():
        if _swap_token(catalogue, marker) in request["tokens"]:
            try:
                swap_finished(catalogue, marker)
            except Refused as refusal:  # another node is at it, or a person has to look
                sys.stderr.write(f"{marker['name']}: {refusal}\n")
    for token in request["tokens"]:
        copy = catalogue.path("copies", catalogue.node, token)
        with suppress(FileNotFoundError):
            shown = os.stat(copy)
            with as_user(shown.st_uid, shown.st_gid):
                throw_away(catalogue, copy, token)
    return catalogue.count("trash")


def _swap_token(catalogue: Catalogue, marker: Json) -> str:
    """Return the token of the copy in a swap that this node has begun, or ""."""
    intent = marker.get("swap")
    if not intent or intent["node"] != catalogue.node:
        return ""
    return os.path.basename(str(intent["copy"]))


def throw_away(catalogue: Catalogue, path: str, name: str) -> None:
    """Rename *path* into the trash; a name that is taken there gets a number."""
    for number in range(100):
        suffix = f".{number}" if number else ""
        try:
            os.rename(path, catalogue.path("trash", name + suffix))
        except FileNotFoundError:
            return
        except OSError:
            if not os.path.lexists(catalogue.path("trash", name + suffix)):
                raise
        else:
            return


def locate(catalogue: Catalogue, request: Json) -> str:
    """Return where the bytes of a volume, or of its snapshot, are on the share."""
    with _as_owner_if_squashed(catalogue, request):
        marker = require_volume(catalogue, request)
        if not request["snapshot"]:
            return str(marker["subdir"])
        data = os.path.join(_directory(catalogue, marker), request["snapshot"], _DATA)
        if not os.path.isdir(data):
            raise Refused("NOSNAPSHOT", f"it has no snapshot '{request['snapshot']}'")
        return os.path.relpath(data, catalogue.root)


def require_volume(catalogue: Catalogue, request: Json) -> Json:
    """Return the volume's marker if it is whole and its directory still its own."""
    marker = catalogue.marker(request["name"])
    if marker is None or marker["id"] != request["id"] or marker["state"] != "ready":
        raise Refused("STALE", "it was removed on another node")
    if "swap" in marker:
        marker = swap_finished(catalogue, marker)
    directory = os.path.join(catalogue.root, marker["subdir"])
    if not os.path.isdir(directory):
        raise Refused("STALE", f"directory '{marker['subdir']}' is not there any more")
    if marker.get("identity") not in (None, identity(directory)):
        raise Refused(
            "REPLACED",
            f"directory '{marker['subdir']}' is not the one that was created",
        )
    return marker


def listed(catalogue: Catalogue, request: Json) -> list[Json]:
    """Return the facts of each snapshot, with its name."""
    marker = catalogue.marker(request["name"])
    if marker is None or marker["id"] != request["id"]:
        return []
    found = []
    with (
        _as_owner_if_squashed(catalogue, request),
        suppress(FileNotFoundError),
    ):
        for name in os.listdir(_directory(catalogue, marker)):
            facts: Json = {}
            path = os.path.join(_directory(catalogue, marker), name, _FACTS)
            with (
                suppress(FileNotFoundError, ValueError),
                catalogue.files.open_to_read(path) as file,
            ):
                facts = json.load(file)
            found.append({**facts, "name": name})
    return found


def keep(catalogue: Catalogue, request: Json) -> None:
    """Make a finished copy the snapshot *snapshot* of its volume."""
    with _as_owner_if_squashed(catalogue, request):
        marker = require_volume(catalogue, request)
        copy = catalogue.path("copies", catalogue.node, request["token"])
        _write_facts(catalogue, copy, request["facts"])
        _place(catalogue, marker, copy, request["snapshot"])


def remove(catalogue: Catalogue, request: Json) -> None:
    """Throw a snapshot away."""
    with _as_owner_if_squashed(catalogue, request):
        marker = catalogue.marker(request["name"])
        name = request["snapshot"]
        path = (
            os.path.join(_directory(catalogue, marker), name)
            if marker is not None and marker["id"] == request["id"]
            else ""
        )
        if not path or not os.path.isdir(path):
            raise Refused("NOSNAPSHOT", f"it has no snapshot '{name}'")
        throw_away(catalogue, path, f"{request['id']}@{name}")


def require_none(catalogue: Catalogue, marker: Json) -> None:
    """Refuse a removal that would leave the volume's snapshots without it."""
    with suppress(FileNotFoundError):
        names = sorted(os.listdir(_directory(catalogue, marker)))
        if names:
            raise Refused(
                "SNAPSHOTS",
                f"its snapshots would be lost with it: {', '.join(names[:5])}",
            )


def move_all(catalogue: Catalogue, marker: Json, place: str) -> None:
    """Rename the directory of all snapshots of a volume to *place*."""
    with suppress(FileNotFoundError):
        os.rename(_directory(catalogue, marker), place)


def require_free(catalogue: Catalogue, request: Json) -> None:
    """Refuse a snapshot's name that is taken, before anything is copied for it."""
    marker = require_volume(catalogue, request)
    _require_free(os.path.join(_directory(catalogue, marker), request["snapshot"]))


def swap(catalogue: Catalogue, request: Json) -> None:
    """
    Let a finished copy and the volume's directory change places; keep the old bytes.

    The marker is written first: whoever finds it after a crash finishes. And it comes
    before the look for leases, while a mount takes its lease before it looks at the
    marker: one of the two sees the other.
    """
    with _as_owner_if_squashed(catalogue, request):
        found = require_volume(catalogue, request)
        with changing(catalogue, found["id"]):
            if catalogue.marker(found["name"]) != found:
                raise Refused("CHANGING", "another node has changed it just now")
            copy = catalogue.path("copies", catalogue.node, request["token"])
            _require_free(
                os.path.join(_directory(catalogue, found), request["keep_as"])
            )
            _write_facts(catalogue, copy, request["facts"])
            intent = {
                "copy": os.path.relpath(copy, catalogue.root),
                "keep_as": request["keep_as"],
                "node": catalogue.node,
            }
            swapping = {**found, "swap": intent}
            catalogue.replace(swapping, "volumes", key_of(found["name"]))
            holders = catalogue.holders(found["id"])
            if holders:
                catalogue.replace(found, "volumes", key_of(found["name"]))
                raise Refused("INUSE", f"mounted on {', '.join(sorted(holders)[:5])}")
            finish_swap(catalogue, swapping)


def swap_finished(catalogue: Catalogue, marker: Json) -> Json:
    """Return the volume's marker once its swap, if one was cut short, is finished."""
    with changing(catalogue, marker["id"]):
        now = catalogue.marker(marker["name"])
        if now is None or now["id"] != marker["id"]:
            raise Refused("STALE", "it was removed on another node")
        return finish_swap(catalogue, now) if "swap" in now else now


def finish_swap(catalogue: Catalogue, marker: Json) -> Json:
    """Take the steps of a swap that are left, as `changing`; return the new marker."""
    intent = marker["swap"]
    copy = os.path.join(catalogue.root, intent["copy"])
    live = os.path.join(catalogue.root, marker["subdir"])
    data, old = os.path.join(copy, _DATA), os.path.join(copy, "old")
    # Each step says by what it finds whether it was taken before.
    if os.path.isdir(live) and identity(live) == marker["identity"]:
        os.rename(live, old)
    if not os.path.isdir(live):
        os.rename(data, live)
    if os.path.isdir(old):
        os.rename(old, data)
    if os.path.isdir(copy):
        _place(catalogue, marker, copy, intent["keep_as"])
    done = {key: value for key, value in marker.items() if key != "swap"}
    done["identity"] = identity(live)
    catalogue.replace(done, "volumes", key_of(marker["name"]))
    return done


def _directory(catalogue: Catalogue, marker: Json) -> str:
    key = key_of(marker["subdir"]).removesuffix(".json")
    return catalogue.path("snapshots", key)


def _place(catalogue: Catalogue, marker: Json, copy: str, name: str) -> None:
    directory = _directory(catalogue, marker)
    with suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    _require_free(os.path.join(directory, name))
    os.rename(copy, os.path.join(directory, name))


def _require_free(path: str) -> None:
    if os.path.lexists(path):
        raise Refused(
            "SNAPSHOT", f"it has a snapshot '{os.path.basename(path)}' already"
        )


def _write_facts(catalogue: Catalogue, copy: str, facts: Json) -> None:
    path = os.path.join(copy, _FACTS)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    descriptor = catalogue.files.open(path, flags)
    try:
        os.write(descriptor, json.dumps(facts).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _as_owner_if_squashed(catalogue: Catalogue, request: Json) -> Iterator[None]:
    """Work as the volume's owner where the server makes nobody of root."""
    catalogue.prepare()
    squashed = os.stat(catalogue.base).st_uid != 0
    with as_user(*(request.get(key, 0) if squashed else 0 for key in ("uid", "gid"))):
        yield
