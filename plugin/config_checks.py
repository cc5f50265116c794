"""Checks of a configuration beyond the types of its values; each adds its faults."""

from __future__ import annotations

import ast
import ipaddress
import json
import re
import typing
from pathlib import Path
from typing import Any, Final

from backends.options import ALL_OPTIONS, NODE_NAME, duration, size_bytes

# sockaddr_un holds 108 bytes with the final zero. Source: unix(7).
_SOCKET_PATH_LENGTH_MAX: Final = 107
_LOOPBACK: Final = re.compile(r"(?:127\.0\.0\.1|\[::1\]):([0-9]{1,5})")
_PORT_MAX: Final = 65535
# rsync cannot work with less than this; more than the second is a mistake.
_LIMIT_MIN: Final = 64 * 1024
_LIMIT_MAX: Final = 1024**4
_ENDPOINT: Final = re.compile(r"(https?)://([^/\s,@?#\\]+):[0-9]{1,5}/?")
_OPTION: Final = re.compile(r"[A-Za-z_]{1,64}")
_PREFIX: Final = re.compile(r"/(?:[A-Za-z0-9_.-]+/)*")
# What tomllib says of a section that stands in the file twice: a tuple of Python's.
_TWICE: Final = re.compile(r"Cannot declare (\(.*\)) twice")
_SECTION: Final = re.compile(r"\s*\[([^\[\]]+)\]\s*(?:#.*)?")
_SHOWN_LENGTH_MAX: Final = 60


def syntax_fault(path: Path, error: ValueError) -> str:
    """Return what is to be told of the file *path*, which is no TOML."""
    if match := _TWICE.match(str(error)):
        section = ".".join(ast.literal_eval(match[1]))
        lines = [
            str(number)
            for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
            if (found := _SECTION.fullmatch(line)) and found[1].strip() == section
        ]
        where = f" (lines {', '.join(lines)})" if lines else ""
        return (
            f"{path} cannot be read: [{section}] stands in it more than once{where}: "
            "put all keys below the first one"
        )
    return f"{path} cannot be read: {error}"


def value_fault(key: str, kind: Any, value: object) -> str:
    """Return what the *value* of *key* has to be, which is not of that *kind*."""
    shown = json.dumps(value, default=str)
    if len(shown) > _SHOWN_LENGTH_MAX:
        shown = f"{shown[:_SHOWN_LENGTH_MAX]}…"
    return f"must be {_wanted(key, kind)}, not {shown}"


def _wanted(key: str, kind: Any) -> str:
    if kind is bool:
        return "true or false"
    if kind is str:
        return 'a text in quotes ("…")'
    if kind == tuple[str, ...]:
        return 'a list of texts (["…", "…"])'
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(f'"{each}"' for each in typing.get_args(kind))
    number, bounds = typing.get_args(kind)
    whole = "whole number" if number is int else "number"
    unit = " of seconds" if key.endswith("_s") else ""
    return f"a {whole}{unit} from {bounds.ge:g} to {bounds.le:g}"


def check_cluster(values: dict[str, Any], faults: list[str]) -> None:
    """Add the faults of [cluster] that no type shows."""
    for endpoint in values.get("etcd", ()):
        match = _ENDPOINT.fullmatch(endpoint)
        if match is None:
            faults.append(
                f"etcd: '{endpoint}' must be http://HOST:PORT or https://HOST:PORT"
            )
        elif not values.get("etcd_insecure") and _in_the_clear(match[1], match[2]):
            faults.append(
                f"etcd: '{endpoint}' has no TLS: whoever is on the way there can be "
                "root on every node; use https://, or etcd_insecure = true in [cluster]"
            )
    if not _PREFIX.fullmatch(values.get("etcd_prefix", "/remora/")):
        faults.append("etcd_prefix: must begin and end with '/', such as /remora/")
    name = values.get("node_name", "")
    if name and not NODE_NAME.fullmatch(name):
        faults.append(
            f"node_name: '{name[:64]}' is not a node's name (1 to 63 letters, digits, "
            "'_', '.' or '-', the first a letter or digit)"
        )
    if ("etcd_certificate_file" in values) != ("etcd_key_file" in values):
        faults.append("etcd_certificate_file and etcd_key_file belong together")
    if values.get("etcd_user") and "etcd_password_file" not in values:
        faults.append("etcd_user needs an etcd_password_file")
    _read_replace_after(values, faults)
    address = values.get("peer_address", "")
    try:
        if address:
            ipaddress.ip_address(address)
    except ValueError:
        faults.append(f"peer_address: '{address}' is not an IP address")


def _in_the_clear(scheme: str, host: str) -> bool:
    """Return whether what is said to *host* leaves the machine unencrypted."""
    if scheme == "https" or host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return True


def check_limit(values: dict[str, Any], faults: list[str]) -> None:
    """Turn the limit into bytes; "" and "0" are none."""
    text = values.pop("bandwidth_limit", "").strip()
    if text in ("", "0"):
        return
    try:
        limit = int(size_bytes(text))
    except ValueError:
        limit = 0
    if _LIMIT_MIN <= limit <= _LIMIT_MAX:
        values["bandwidth_limit_bytes"] = limit
        return
    faults.append(
        f"bandwidth_limit: '{text[:64]}' must be a size from 64KiB to 1TiB, such as "
        "20MiB, that is sent in a second; or 0 for no limit"
    )


def _read_replace_after(values: dict[str, Any], faults: list[str]) -> None:
    """Give the time until a node's copies are replaced its canonical form."""
    text = values.get("replace_after", "30m").strip()
    try:
        values["replace_after"] = None if text in ("0", "never") else duration(text)
    except ValueError:
        faults.append(
            "replace_after: must be a duration such as 30m or 2h, or never, not "
            f"'{text[:64]}'"
        )


def check_together(values: dict[str, Any], faults: list[str]) -> None:
    """Add the faults that no single value has."""
    for key in ("plugin_socket", "control_socket"):
        length = len(str(values[key]).encode())
        if length > _SOCKET_PATH_LENGTH_MAX:
            faults.append(
                f"{key}: {length} bytes; a socket's path has at most "
                f"{_SOCKET_PATH_LENGTH_MAX}"
            )
    if values["plugin_socket"] == values["control_socket"]:
        faults.append(
            f"plugin_socket and control_socket are both {values['plugin_socket']}"
        )
    faults.extend(
        f"allowed_options: '{each[:64]}' is no name of an option, nor {ALL_OPTIONS}"
        for each in values.get("allowed_options", ())
        if each != ALL_OPTIONS and not _OPTION.fullmatch(each)
    )
    pool, mount_dir = values["pool"], values["mount_dir"]
    if pool.is_relative_to(mount_dir) or mount_dir.is_relative_to(pool):
        faults.append(f"pool ({pool}) and mount_dir ({mount_dir}) must lie apart")
    address = values.get("metrics_address", "")
    if address:
        match = _LOOPBACK.fullmatch(address)
        if match is None or not 1 <= int(match[1]) <= _PORT_MAX:
            faults.append("metrics_address: must be 127.0.0.1:PORT or [::1]:PORT")
