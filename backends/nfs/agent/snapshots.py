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

from backends.errors import one_line
from backends.nfs.agent import schema
from backends.nfs.agent.catalogue import (
    BASE,
    SOME,
    Catalogue,
    Refused,
    key_of,
)
from backends.nfs.agent.changing import changing
from backends.nfs.agent.schema import SNAPSHOT_NAME, Json
from backends.system.jail import as_user
from backends.system.regular_files import NotRegularError

_DATA = "data"
# The copy that a swap takes for the live directory, and what that was before.
_NEW, _OLD = "new", "old"
_FACTS = "snapshot.json"
_FACTS_SIZE_MAX = 4096
# Of so many snapshots of one volume there are facts, and of so many others names.
_WITH_FACTS_MAX = 1000
_LISTED_MAX = 10_000


def begin_copy(catalogue: Catalogue, request: Json) -> Json:
    """Make the empty directory that a copy goes to; return where, and who may."""
    with _as_owner_if_squashed(catalogue, request):
        node = catalogue.path("copies", catalogue.node)
        for directory, mode in (
            (catalogue.path("copies"), 0o1777),
            (node, 0o1777),
            (f"{node}/{request['token']}", 0o700),
            (copy_path(catalogue, request["token"]), 0o700),
        ):
            with suppress(FileExistsError):
                catalogue.share.make_directory(directory, mode)
        user = {"uid": os.geteuid(), "gid": os.getegid()}
    return {"path": copy_path(catalogue, request["token"]), **user}


def copy_path(catalogue: Catalogue, token: str) -> str:
    """Return the path of this node's copy *token*, relative to the share."""
    return catalogue.path("copies", catalogue.node, token, _DATA)


def begun(catalogue: Catalogue, markers: list[Json]) -> list[str]:
    """
    Return the tokens of what this node has begun: copies, and swaps of *markers*.

    Which of them a crash cut short only the daemon can say, and only after this look:
    it may begin one at any moment, by another mount of the same share as well.
    """
    tokens = {_swap_token(catalogue, marker) for marker in markers}
    with suppress(FileNotFoundError):
        copies = catalogue.path("copies", catalogue.node)
        tokens.update(catalogue.share.some_names(copies, SOME))
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
            # Another node is at it, or a person has to look; others must not suffer.
            except (Refused, OSError) as refusal:
                sys.stderr.write(one_line(f"{marker['name']}: {refusal}") + "\n")
    for token in request["tokens"]:
        copy = catalogue.path("copies", catalogue.node, token)
        with suppress(FileNotFoundError):
            shown = catalogue.share.status(copy)
            with as_user(shown.st_uid, shown.st_gid):
                throw_away(catalogue, copy, token)
    return catalogue.count("trash")


def _swap_token(catalogue: Catalogue, marker: Json) -> str:
    """Return the token of the copy in a swap that this node has begun, or ""."""
    intent = marker.get("swap")
    if not intent or intent["node"] != catalogue.node:
        return ""
    return str(intent["copy"]).rpartition("/")[2]


def throw_away(catalogue: Catalogue, path: str, name: str) -> None:
    """Rename *path* into the trash; a name that is taken there gets a number."""
    for number in range(100):
        suffix = f".{number}" if number else ""
        thrown = catalogue.path("trash", name + suffix)
        try:
            catalogue.share.rename(path, thrown)
        except FileNotFoundError:
            return
        except OSError:
            if not catalogue.share.exists(thrown):
                raise
        else:
            return


def locate(catalogue: Catalogue, request: Json) -> str:
    """Return where the bytes of a volume, or of its snapshot, are on the share."""
    with _as_owner_if_squashed(catalogue, request):
        marker = require_volume(catalogue, request)
        if not request["snapshot"]:
            return str(marker["subdir"])
        data = f"{_directory(catalogue, marker)}/{request['snapshot']}/{_DATA}"
        if not catalogue.share.is_directory(data):
            raise Refused("NOSNAPSHOT", f"it has no snapshot '{request['snapshot']}'")
        return data


def require_volume(catalogue: Catalogue, request: Json) -> Json:
    """Return the volume's marker if it is whole and its directory still its own."""
    marker = catalogue.marker(request["name"])
    if marker is None or marker["id"] != request["id"] or marker["state"] != "ready":
        raise Refused("STALE", "it was removed on another node")
    if "swap" in marker:
        marker = swap_finished(catalogue, marker)
    directory = marker["subdir"]
    if not catalogue.share.is_directory(directory):
        raise Refused("STALE", f"directory '{directory}' is not there any more")
    if not catalogue.may_be(marker.get("identity"), directory):
        raise Refused(
            "REPLACED", f"directory '{directory}' is not the one that was created"
        )
    return marker


def require_directory(catalogue: Catalogue, marker: Json, request: Json) -> None:
    """
    Refuse a volume whose directory is none, or behind a link, or an empty other one.

    mount.nfs is given its path, and the kernel follows links in all of the server. What
    has taken the directory's place with bytes in it, a person has put there; where an
    empty one is, a filesystem may not be mounted on the server.
    """
    directory = marker["subdir"]
    with _as_owner_if_squashed(catalogue, request):
        if not catalogue.share.is_directory(directory):
            raise Refused("STALE", f"directory '{directory}' is gone")
        if not catalogue.may_be(
            marker.get("identity"), directory
        ) and not catalogue.share.some_names(directory, 1):
            raise Refused(
                "REPLACED",
                f"directory '{directory}' is empty, and not the one that was created",
            )


def listed(catalogue: Catalogue, request: Json) -> list[Json]:
    """Return the facts of each snapshot, with its name."""
    marker = catalogue.marker(request["name"])
    if marker is None or marker["id"] != request["id"]:
        return []
    found: list[Json] = []
    with (
        _as_owner_if_squashed(catalogue, request),
        suppress(FileNotFoundError),
    ):
        directory = _directory(catalogue, marker)
        for name in catalogue.share.some_names(directory, _LISTED_MAX):
            if SNAPSHOT_NAME.fullmatch(name):
                is_told = len(found) < _WITH_FACTS_MAX
                path = f"{directory}/{name}/{_FACTS}"
                facts = _facts(catalogue, path) if is_told else {}
                found.append({**facts, "name": name})
    return found


def _facts(catalogue: Catalogue, path: str) -> Json:
    """Return what the file *path* says of a snapshot, {} if it cannot be read."""
    with suppress(FileNotFoundError, NotRegularError, ValueError, RecursionError):
        return schema.facts(json.loads(catalogue.share.read(path, _FACTS_SIZE_MAX)))
    return {}


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
            f"{_directory(catalogue, marker)}/{name}"
            if marker is not None and marker["id"] == request["id"]
            else ""
        )
        if not path or not catalogue.share.is_directory(path):
            raise Refused("NOSNAPSHOT", f"it has no snapshot '{name}'")
        throw_away(catalogue, path, f"{request['id']}@{name}")


def require_none(catalogue: Catalogue, marker: Json) -> None:
    """Refuse a removal that would leave the volume's snapshots without it."""
    with suppress(FileNotFoundError):
        names = sorted(catalogue.share.names(_directory(catalogue, marker)))
        if names:
            raise Refused(
                "SNAPSHOTS",
                f"its snapshots would be lost with it: {', '.join(names[:5])}",
            )


def move_all(catalogue: Catalogue, marker: Json, place: str) -> None:
    """Rename the directory of all snapshots of a volume to *place*."""
    with suppress(FileNotFoundError):
        catalogue.share.rename(_directory(catalogue, marker), place)


def require_free(catalogue: Catalogue, request: Json) -> None:
    """Refuse a snapshot's name that is taken, before anything is copied for it."""
    marker = require_volume(catalogue, request)
    _require_free(catalogue, marker, request["snapshot"])


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
            if catalogue.has_own_filesystem(found["subdir"]):
                raise Refused(
                    "FILESYSTEM",
                    f"directory '{found['subdir']}' is a filesystem of its own on the "
                    "server, and cannot be exchanged",
                )
            _require_free(catalogue, found, request["keep_as"])
            _write_facts(catalogue, copy, request["facts"])
            catalogue.share.rename(f"{copy}/{_DATA}", f"{copy}/{_NEW}")
            intent = {
                "copy": copy,
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
    """
    Take the steps of a swap that are left, as `changing`; return the new marker.

    Each step says by the names that it finds whether it was taken before: a node to
    which the server shows other file handles finds the same.
    """
    intent, share = marker["swap"], catalogue.share
    copy, live = intent["copy"], marker["subdir"]
    data, new, old = (f"{copy}/{name}" for name in (_DATA, _NEW, _OLD))
    if share.is_directory(data) and (
        not share.is_directory(live) or catalogue.may_be(marker["identity"], live)
    ):
        # An older agent has begun it; what it has exchanged already has another handle.
        share.rename(data, new)
    if share.is_directory(new):
        if share.is_directory(live) and not share.is_directory(old):
            if catalogue.has_own_filesystem(live):  # an older agent has begun it
                return _end_swap(catalogue, marker)  # its copy is left over
            share.rename(live, old)
        share.rename(new, live)
    if share.is_directory(old):
        share.rename(old, data)
    if share.is_directory(copy):
        _place(catalogue, marker, copy, intent["keep_as"])
    return _end_swap(catalogue, {**marker, "identity": catalogue.identity(live)})


def _end_swap(catalogue: Catalogue, marker: Json) -> Json:
    """Return the marker as it stands from now on, without a swap."""
    done = {key: value for key, value in marker.items() if key != "swap"}
    catalogue.replace(done, "volumes", key_of(marker["name"]))
    return done


def _directory(catalogue: Catalogue, marker: Json) -> str:
    key = key_of(marker["subdir"]).removesuffix(".json")
    return catalogue.path("snapshots", key)


def _place(catalogue: Catalogue, marker: Json, copy: str, name: str) -> None:
    directory = _directory(catalogue, marker)
    with suppress(FileExistsError):
        catalogue.share.make_directory(directory, 0o700)
    _require_free(catalogue, marker, name)
    catalogue.share.rename(copy, f"{directory}/{name}")


def _require_free(catalogue: Catalogue, marker: Json, name: str) -> None:
    if catalogue.share.exists(f"{_directory(catalogue, marker)}/{name}"):
        raise Refused("SNAPSHOT", f"it has a snapshot '{name}' already")


def _write_facts(catalogue: Catalogue, copy: str, facts: Json) -> None:
    with suppress(FileNotFoundError):  # of a try before
        catalogue.share.unlink(f"{copy}/{_FACTS}")
    catalogue.write_new(f"{copy}/{_FACTS}", facts)


@contextmanager
def _as_owner_if_squashed(catalogue: Catalogue, request: Json) -> Iterator[None]:
    """Work as the volume's owner where the server makes nobody of root."""
    catalogue.prepare()
    squashed = catalogue.share.status(BASE).st_uid != 0
    with as_user(*(request.get(key, 0) if squashed else 0 for key in ("uid", "gid"))):
        yield
