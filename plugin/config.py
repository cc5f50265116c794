"""
The configuration: a TOML file, then the environment, checked whole.

    [daemon]
    pool = "/srv/remora"
    [profiles.fast]
    interval = "2s"

Every key of ``[daemon]`` is also read from ``REMORA_<KEY>``, which wins. All faults are
told at once, because a service that restarts once for each of them is a bad way to
learn the rules.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from backends.registry import KINDS
from plugin.errors import ConfigError
from plugin.limits import DISUSE_GRACE_S, LONG_DEADLINE_S

DEFAULT_PATH: Final = Path("/etc/remora/remora.toml")
# sockaddr_un holds 108 bytes with the final zero. Source: unix(7).
_SOCKET_PATH_LENGTH_MAX: Final = 107
_LOOPBACK: Final = re.compile(r"(?:127\.0\.0\.1|\[::1\]):([0-9]{1,5})")
_PORT_MAX: Final = 65535

Seconds = Annotated[float, msgspec.Meta(ge=0.1, le=LONG_DEADLINE_S)]
Grace = Annotated[float, msgspec.Meta(ge=0, le=3600)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The daemon's configuration; every path is absolute."""

    plugin_socket: Path = Path("/run/docker/plugins/remora.sock")
    control_socket: Path = Path("/run/remora/control.sock")
    state_dir: Path = Path("/var/lib/remora")
    pool: Path = Path("/var/lib/remora/pool")
    mount_dir: Path = Path("/var/lib/remora/mounts")
    log_format: Literal["auto", "console", "json"] = "auto"
    metrics_address: str = ""
    mount_deadline_s: float = LONG_DEADLINE_S
    disuse_grace_s: float = DISUSE_GRACE_S
    profiles: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


_TYPES: Final[Mapping[str, Any]] = {
    "plugin_socket": str,
    "control_socket": str,
    "state_dir": str,
    "pool": str,
    "mount_dir": str,
    "log_format": Literal["auto", "console", "json"],
    "metrics_address": str,
    "mount_deadline_s": Seconds,
    "disuse_grace_s": Grace,
}
_PATHS: Final = ("plugin_socket", "control_socket", "state_dir", "pool", "mount_dir")


def load(path: Path | None, environment: Mapping[str, str]) -> Config:
    """
    Return the configuration of *path* (or of `DEFAULT_PATH`, if it exists).

    Raises:
        ConfigError: with every fault that was found.

    """
    faults: list[str] = []
    source = path or DEFAULT_PATH
    raw = _read(source, required=path is not None, faults=faults)
    faults.extend(
        f"unknown section [{section}] (valid: [daemon], [profiles.NAME])"
        for section in raw
        if section not in ("daemon", "profiles")
    )
    values = _daemon_values(raw.get("daemon", {}), environment, faults)
    profiles = _profiles(raw.get("profiles", {}), faults)
    _check_together(values, faults)
    if faults:
        raise ConfigError(faults, source=str(source))
    return Config(**values, profiles=profiles)


def _read(path: Path, *, required: bool, faults: list[str]) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        if required:
            faults.append(f"{path} does not exist")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        faults.append(f"{path} cannot be read: {error}")
    return {}


def _daemon_values(
    section: Any, environment: Mapping[str, str], faults: list[str]
) -> dict[str, Any]:
    """Return the checked values of [daemon] and of the environment, by key."""
    if not isinstance(section, dict):
        faults.append("[daemon] must be a table")
        section = {}
    given: dict[str, tuple[str, Any]] = {}
    for key, value in section.items():
        if key in _TYPES:
            given[key] = (f"[daemon] {key}", value)
        else:
            faults.append(
                f"[daemon] {key}: unknown key (valid: {', '.join(sorted(_TYPES))})"
            )
    for variable, value in environment.items():
        key = variable.removeprefix("REMORA_").lower()
        if variable.startswith("REMORA_") and key in _TYPES:
            given[key] = (variable, value)
    values = {}
    for key, (name, value) in given.items():
        strict = not name.startswith("REMORA_")
        try:
            values[key] = msgspec.convert(value, _TYPES[key], strict=strict)
        except msgspec.ValidationError as error:
            wanted = " (auto, console or json)" if key == "log_format" else ""
            faults.append(f"{name}: {error}{wanted}")
    return _absolute_paths(values, faults)


def _absolute_paths(values: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    """Return *values* with paths as such; pool and mounts follow state_dir."""
    for key in _PATHS:
        if key in values:
            path = Path(values[key])
            if (
                not path.is_absolute()
                or ".." in path.parts
                or not str(path).isprintable()
            ):
                faults.append(f"{key}: must be an absolute path, not {str(path)!r}")
            values[key] = path
    state_dir = values.get(
        "state_dir", Config.__dataclass_fields__["state_dir"].default
    )
    values.setdefault("pool", state_dir / "pool")
    values.setdefault("mount_dir", state_dir / "mounts")
    return values


def _check_together(values: dict[str, Any], faults: list[str]) -> None:
    """Add the faults that no single value has."""
    for key in ("plugin_socket", "control_socket"):
        length = len(str(values.get(key, "")).encode())
        if length > _SOCKET_PATH_LENGTH_MAX:
            faults.append(
                f"{key}: {length} bytes; a socket's path has at most "
                f"{_SOCKET_PATH_LENGTH_MAX}"
            )
    sockets = [
        values.get(key, Config.__dataclass_fields__[key].default)
        for key in ("plugin_socket", "control_socket")
    ]
    if sockets[0] == sockets[1]:
        faults.append(f"plugin_socket and control_socket are both {sockets[0]}")
    pool, mount_dir = values["pool"], values["mount_dir"]
    if pool.is_relative_to(mount_dir) or mount_dir.is_relative_to(pool):
        faults.append(f"pool ({pool}) and mount_dir ({mount_dir}) must lie apart")
    address = values.get("metrics_address", "")
    if address:
        match = _LOOPBACK.fullmatch(address)
        if match is None or not 1 <= int(match[1]) <= _PORT_MAX:
            faults.append("metrics_address: must be 127.0.0.1:PORT or [::1]:PORT")


def _profiles(section: Any, faults: list[str]) -> dict[str, dict[str, str]]:
    """Return the profiles; their options are checked by the backend that they name."""
    if not isinstance(section, dict):
        faults.append("[profiles] must hold tables: [profiles.NAME]")
        return {}
    profiles: dict[str, dict[str, str]] = {}
    for name, options in section.items():
        if not isinstance(options, dict):
            faults.append(f"[profiles.{name}] must be a table of options")
            continue
        profiles[name] = {}
        for key, value in options.items():
            if isinstance(value, bool) or not isinstance(value, str | int):
                faults.append(f"[profiles.{name}] {key}: must be a string or a number")
            else:
                profiles[name][key] = str(value)
        if "profile" in profiles[name]:
            faults.append(f"[profiles.{name}] profile: a profile cannot name a profile")
            del profiles[name]["profile"]
        backend = profiles[name].get("backend")
        if backend is not None and backend not in KINDS:
            faults.append(
                f"[profiles.{name}] backend: '{backend}' is none of {', '.join(KINDS)}"
            )
    return profiles


def environment_names() -> list[str]:
    """Return the names of the environment variables that are read."""
    return sorted(
        f"REMORA_{each.name.upper()}" for each in fields(Config) if each.name in _TYPES
    )
