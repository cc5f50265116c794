"""
The configuration of a new node: this node's [cluster] and profiles, under its own name.

What differs between machines ([daemon]: paths, sockets) is not copied.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backends.errors import InvalidRequestError
from plugin.config import DEFAULT_PATH, ClusterConfig, Config, load
from plugin.errors import ConfigError, EnrolmentError

CONFIGURATION: Final = str(DEFAULT_PATH)
# The paths of this node's files on the new node, unless they lie in `_OURS` here.
_SECRETS: Final[Mapping[str, str]] = {
    "etcd_password_file": "/etc/remora/etcd/password",
    "etcd_ca_file": "/etc/remora/etcd/ca.pem",
    "etcd_certificate_file": "/etc/remora/etcd/client.pem",
    "etcd_key_file": "/etc/remora/etcd/client-key.pem",
}
# What lies there has the same path on each node: the guide puts it there itself.
_OURS: Final = "/etc/remora"
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_HEAD: Final = """\
# Written by `remora node enroll`. All keys, and what they mean:
# /usr/share/doc/remora/examples/remora.toml
"""


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """What /etc/remora of the new node holds; *secrets* are contents by path."""

    configuration: str
    secrets: Mapping[str, bytes]


def node_files(config: Config, *, name: str, address: str) -> NodeFiles:
    """
    Return the files for the node *name* in the cluster of *config*.

    Others reach it at *address* or, if that is "", at the addresses that it finds.

    Raises:
        InvalidRequestError: *name* or *address* cannot be one.
        EnrolmentError: a file of this node cannot be read.

    """
    own = config.cluster
    secrets = {}
    values: dict[str, Any] = {}
    for key in (each.name for each in dataclasses.fields(ClusterConfig)):
        value = getattr(own, key)
        if key in _SECRETS and value is not None:
            place = _place(key, value)
            secrets[place] = _content(value)
            value = place
        if value != ClusterConfig.__dataclass_fields__[key].default:
            values[key] = value
    # The address of this node is not the other one's.
    values.pop("peer_address", None)
    values["node_name"] = name
    if address:
        values["peer_address"] = address
    sections = {"cluster": values}
    if config.allowed_options != Config().allowed_options:
        # Who may ask the engines for what holds for all of them.
        sections["daemon"] = {"allowed_options": config.allowed_options}
    for profile, options in config.profiles.items():
        sections[f"profiles.{_key(profile)}"] = dict(options)
    text = _HEAD + "".join(_lines(sections))
    _check(text)
    return NodeFiles(text, secrets)


def difference(found: str, wanted: str) -> str:
    """Return how the text *found* there differs from the one *wanted*."""
    lines = difflib.unified_diff(
        found.splitlines(),
        wanted.splitlines(),
        f"{CONFIGURATION} (there)",
        f"{CONFIGURATION} (to be written)",
        lineterm="",
    )
    return "\n".join(lines)


def is_blank(text: str) -> bool:
    """Return whether a configuration sets nothing, as the installed example does."""
    try:
        return not any(tomllib.loads(text).values())
    except tomllib.TOMLDecodeError:
        return False


def in_cluster(text: str | None) -> bool:
    """Return whether a configuration names a cluster."""
    try:
        section = tomllib.loads(text or "").get("cluster", {})
    except tomllib.TOMLDecodeError:
        return False
    return isinstance(section, dict) and bool(section.get("etcd"))


def _place(key: str, path: Path) -> str:
    """Return where the new node has the file *path* of this one."""
    ours = Path(os.path.normpath(path)).is_relative_to(_OURS)
    return str(path) if ours else _SECRETS[key]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise EnrolmentError(
            f"cannot read {path}: {error.strerror}", hint="call it as root"
        ) from error


def _check(text: str) -> None:
    """Raise an error if the daemon would not take *text*."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        try:
            load(Path(file.name), {})
        except ConfigError as error:
            raise InvalidRequestError("; ".join(error.faults)) from error


def _lines(sections: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for section, values in sections.items():
        yield f"\n[{section}]\n"
        for key, value in values.items():
            yield f"{_key(key)} = {_toml(value)}\n"


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _toml(key)


def _toml(value: Any) -> str:
    """Return *value* as TOML, which writes text, numbers and lists as JSON does."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
