"""
The section [cluster] in a configuration file that people wrote.

The rest of the file stays as it is, byte for byte. The new text is read again before it
is written: if it does not say exactly what it should, a person has to do it.
"""

from __future__ import annotations

import json
import re
import stat
import tomllib
from pathlib import Path
from typing import Any, Final

from backends.system import files
from plugin.config import ClusterConfig
from plugin.errors import ConfigError

# The keys that reach the cluster as the same node; the file keeps its own others.
_KEYS: Final = (
    "etcd",
    "etcd_insecure",
    "etcd_prefix",
    "etcd_user",
    "etcd_password_file",
    "etcd_ca_file",
    "etcd_certificate_file",
    "etcd_key_file",
    "node_name",
)
_HEADING: Final = re.compile(
    rb"(?m)^[ \t]*\[[ \t]*cluster[ \t]*\][ \t]*(?:#[^\n]*)?\r?$"
)
_MODE: Final = 0o644


def with_section(content: bytes, cluster: ClusterConfig, *, source: str) -> bytes:
    """
    Return *content* with a section [cluster] that says what *cluster* does.

    Raises:
        ConfigError: it names another cluster, or the section has a form that only a
            person can change.

    """
    raw = tomllib.loads(content.decode())
    there = raw.get("cluster", {})
    missing: dict[str, Any] = {}
    for key in _KEYS:
        value = _plain(getattr(cluster, key))
        if key in there and _comparable(there[key]) != _comparable(value):
            raise ConfigError(
                [f"[cluster] {key} is {there[key]!r} there, and {value!r} was given"],
                source=source,
            )
        default = _plain(ClusterConfig.__dataclass_fields__[key].default)
        if key not in there and value != default:
            missing[key] = value
    if not missing:
        return content
    lines = "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
        for key, value in missing.items()
    )
    made = _inserted(content, lines.encode(), new="cluster" not in raw)
    if made is None or _parsed(made) != {**raw, "cluster": {**there, **missing}}:
        shown = ", ".join(lines.splitlines())
        raise ConfigError(
            [f"its [cluster] has a form that is not changed here; add: {shown}"],
            source=source,
        )
    return made


def read_file(path: Path) -> bytes:
    """Return what is in *path*, nothing if it does not exist."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise _unusable(path, error) from error


def write_file(path: Path, content: bytes) -> None:
    """Replace *path*, or what it is a link to, and keep its mode."""
    target = path.resolve()
    try:
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else _MODE
        files.write_durably(target, content, mode=mode)
    except OSError as error:
        raise _unusable(path, error) from error


def _inserted(content: bytes, lines: bytes, *, new: bool) -> bytes | None:
    """Return *content* with *lines* in [cluster]; None if there is no place."""
    if new:
        if content and not content.endswith(b"\n"):
            content += b"\n"
        return content + (b"\n" if content else b"") + b"[cluster]\n" + lines
    heading = _HEADING.search(content)
    if heading is None:
        return None
    before, after = content[: heading.end()], content[heading.end() :]
    return before + b"\n" + lines + after.removeprefix(b"\n")


def _parsed(content: bytes) -> dict[str, Any] | None:
    try:
        return tomllib.loads(content.decode())
    except tomllib.TOMLDecodeError:
        return None


def _plain(value: object) -> Any:
    """Return a setting as TOML has it."""
    if isinstance(value, tuple):
        return [str(each) for each in value]
    if isinstance(value, bool):
        return value
    return "" if value is None else str(value)


def _comparable(value: object) -> object:
    """Return *value* in a form in which two spellings of the same setting are equal."""
    if isinstance(value, list):
        return sorted(str(each).rstrip("/") for each in value)
    return value


def _unusable(path: Path, error: OSError) -> ConfigError:
    return ConfigError([f"{error.strerror}"], source=str(path))
