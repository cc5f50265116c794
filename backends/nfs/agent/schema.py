"""
What may stand in the catalogue: whoever can write to the share can write there.

Nothing of it is used before it was read here. What does not fit is refused with one
line, and the others do not suffer; what is not known goes no further. Standard library
alone, as all of the agent.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]

PATH_LENGTH_MAX = 1024
_OPTIONS_MAX = 100
_TEXT_LENGTH_MAX = 4096
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
SNAPSHOT_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}")
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TOKEN = re.compile(r"[0-9a-f]{16,32}")
_MOMENT = re.compile(r"[0-9TZ-]{1,32}")
_IDENTITY = re.compile(r"[0-9]{1,20}(?:-[0-9a-f]{16})?")
# No half of a pair of UTF-16 either: JSON may name one, and nothing can encode it.
_LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]*")
_COPY = re.compile(rf"\.dvol/copies/({_NAME.pattern})/({_TOKEN.pattern})")
# What a look at all markers is for; one marker is read whole when it is changed.
_LOOKED_AT = (
    "id", "name", "subdir", "state", "requested", "options", "created_at", "swap",
)  # fmt: skip
_MARKER = (
    *("id", "name", "subdir", "state", "adopt", "requested", "options", "created_at"),
    *("node", "identity", "content", "made_parents", "swap"),
)
_SWAP = ("copy", "keep_as", "node")
_STATES = ("creating", "ready", "removing")


class UnfitError(ValueError):
    """A field does not hold what it may hold; the text says which."""


def is_clean(path: object) -> bool:
    """Return whether *path* names a directory below the share, and no catalogue."""
    if not isinstance(path, str) or not 0 < len(path) <= PATH_LENGTH_MAX:
        return False
    parts = path.split("/")
    good = _LINE.fullmatch(path) and not {"", ".", ".."} & set(parts)
    return bool(good) and parts[0] != ".dvol"


def marker(found: Json) -> Json:
    """Return *found* if it is a volume's marker; raise UnfitError otherwise."""
    _require(found, "id", _matches(_ID))
    _require(found, "name", _matches(_NAME))
    _require(found, "subdir", is_clean)
    _require(found, "state", _STATES.__contains__)
    _require(found, "adopt", _is_truth)
    _require(found, "requested", _is_options)
    _require(found, "options", _is_options)
    _require(found, "created_at", _matches(_LINE))
    _require(found, "node", _matches(_NAME))
    _allow(found, "identity", _matches(_IDENTITY))
    _allow(found, "content", _matches(_IDENTITY))
    _allow(found, "made_parents", lambda paths: _are_parents(paths, found["subdir"]))
    _allow(found, "swap", _is_swap)
    known = _only(_MARKER, found)
    if "swap" in known:
        known["swap"] = _only(_SWAP, known["swap"])
    return known


def shortened(found: Json) -> Json:
    """Return of a volume's marker what a look at all of them needs."""
    return _only(_LOOKED_AT, found)


def claim(found: Json) -> Json:
    """Return *found* if it says which volume has a directory; or UnfitError."""
    _require(found, "id", _matches(_ID))
    _require(found, "name", _matches(_NAME))
    return _only(("id", "name"), found)


def change(found: Json) -> Json:
    """Return *found* if it says which node changes a volume; or UnfitError."""
    _require(found, "node", _matches(_NAME))
    _allow(found, "token", _matches(_TOKEN))
    return _only(("node", "token"), found)


def retained(found: Json) -> Json:
    """Return *found* if it says who has left a directory; or UnfitError."""
    _require(found, "id", _matches(_ID))
    _require(found, "name", _matches(_NAME))
    _require(found, "removed_at", _matches(_MOMENT))
    _allow(found, "identity", _matches(_IDENTITY))
    return _only(("id", "name", "removed_at", "identity"), found)


def share(found: Json) -> Json:
    """Return *found* if it says which share it is on; or UnfitError."""
    _require(found, "id", _matches(_ID))
    return _only(("id",), found)


def facts(found: object) -> Json:
    """Return of what a snapshot's file holds the texts and numbers."""
    named = found if isinstance(found, dict) else {}
    return {key: each for key, each in named.items() if isinstance(each, str | int)}


def _only(keys: tuple[str, ...], found: Json) -> Json:
    return {key: found[key] for key in keys if key in found}


def _require(found: Json, key: str, fits: Callable[[Any], object]) -> None:
    if key not in found:
        raise UnfitError(f"'{key}' is missing")
    _allow(found, key, fits)


def _allow(found: Json, key: str, fits: Callable[[Any], object]) -> None:
    if key in found and not fits(found[key]):
        raise UnfitError(f"'{key}' is not what it may be: {found[key]!r:.80}")


def _matches(pattern: re.Pattern[str]) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, str)
        and len(value) <= _TEXT_LENGTH_MAX
        and pattern.fullmatch(value) is not None
    )


def _is_truth(value: object) -> bool:
    return isinstance(value, bool)


def _is_options(value: object) -> bool:
    is_line = _matches(_LINE)
    return (
        isinstance(value, dict)
        and len(value) <= _OPTIONS_MAX
        and all(is_line(key) and is_line(each) for key, each in value.items())
    )


def _are_parents(paths: object, subdir: str) -> bool:
    return isinstance(paths, list) and all(
        is_clean(path) and subdir.startswith(f"{path}/") for path in paths
    )


def _is_swap(intent: object) -> bool:
    if not isinstance(intent, dict):
        return False
    copy = intent.get("copy")
    match = _COPY.fullmatch(copy) if isinstance(copy, str) else None
    return (
        match is not None
        and match[1] == intent.get("node")
        and _matches(SNAPSHOT_NAME)(intent.get("keep_as"))
    )
