"""
The options of an NFS volume: parsing, merging, and what they stand for.

`mountOptions` has one canonical form: its entries sorted, with `nconnect`, `sec`,
`xprtsec` and `noresvport` folded in; merging is entry by entry, the volume's winning
over its profile's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from backends import options as parse
from backends.base import Volume
from backends.errors import InvalidRequestError
from backends.replication_options import PARSERS

_PATH_LENGTH_MAX: Final = 1024
_ENTRY: Final = re.compile(r"[a-z0-9_]+(=[A-Za-z0-9_.:/\[\]@+-]*)?")
# bg and retry would go on mounting behind our back; the others are ours to set.
_REFUSED_ENTRIES: Final = {
    "bg": "a mount in the background would outlive its deadline",
    "fg": "it is what is done anyway",
    "retry": "retries are the engine's and the daemon's",
    "addr": "use the option 'server'",
    "remount": "volumes are not remounted",
    "bind": "it is no option of NFS",
    "dev": "devices in a volume are never opened",
    "suid": "use the option 'suid'",
}
_WARNED_ENTRIES: Final = {
    "soft": "a server that is slow or away loses writes silently",
    "nolock": "locks do not hold between nodes",
    "nosharecache": "two volumes of one export may see different data",
    "noresvport": "servers refuse it unless they export with 'insecure'",
}
_FOLDED: Final = ("nconnect", "sec", "xprtsec")
_ALIASES: Final = {
    "subdir": "subDir",
    "mountoptions": "mountOptions",
    "nfsopts": "mountOptions",
    "o": "mountOptions",
    "readonly": "readOnly",
    "mountpermissions": "mode",
    "ondelete": "onDelete",
    "mountmode": "mountMode",
    "vers": "nfsvers",
}
_TEMPLATE: Final = "${volume.name}"
DEFAULTS: Final = {
    "existing": "error",
    "mode": "0755",
    "mountMode": "subdir",
    "nfsvers": "4",
    "onDelete": "retain",
    "subDir": _TEMPLATE,
}
# What is mounted, and how. What stands on a share decides none of it.
OURS: Final = ("server", "share", "nfsvers", "mountOptions", "suid")


@dataclass(frozen=True, slots=True)
class Export:
    """A share as it is mounted: what two volumes must agree in to use one agent."""

    server: str
    share: str
    version: str
    entries: str

    def __str__(self) -> str:
        return f"{self.server}:{self.share}"

    @property
    def options(self) -> dict[str, str]:
        """The options that it was made of."""
        made_of = {"server": self.server, "share": self.share, "nfsvers": self.version}
        return made_of | ({"mountOptions": self.entries} if self.entries else {})

    @property
    def host(self) -> str:
        """The server as mount.nfs wants it: IPv6 addresses in brackets."""
        return f"[{self.server}]" if ":" in self.server else self.server

    def source(self, subdir: str = "") -> str:
        """Return the device of a mount of *subdir*."""
        path = f"{self.share.rstrip('/')}/{subdir}" if subdir else self.share
        return f"{self.host}:{path}"

    @property
    def port(self) -> int:
        """The port of the NFS service."""
        for entry in self.entries.split(","):
            key, _, value = entry.partition("=")
            if key == "port" and value.isdigit():
                return int(value)
        return 2049


def export_of(options: Mapping[str, str]) -> Export:
    """Return the share of a volume with complete *options*."""
    return Export(
        options["server"],
        options["share"],
        options["nfsvers"],
        options.get("mountOptions", ""),
    )


def subdir_of(volume: Volume) -> str:
    """Return the volume's directory below its share, templates filled in."""
    return volume.options["subDir"].replace(_TEMPLATE, volume.name)


def is_direct(volume: Volume) -> bool:
    """Return whether the volume is a plain export, without a catalogue of ours."""
    return volume.options["mountMode"] == "direct"


def mount_entries(volume: Volume) -> str:
    """Return the entries of mount.nfs's -o for the volume itself."""
    entries = [
        each for each in volume.options.get("mountOptions", "").split(",") if each
    ]
    if not any(each in ("soft", "softerr", "hard") for each in entries):
        entries.insert(0, "hard")
    if volume.options.get("readOnly") == "true":
        entries.append("ro")
    entries.append("nodev")
    if volume.options.get("suid") != "true":
        entries.append("nosuid")
    return ",".join(entries)


def owner_of(volume: Volume) -> dict[str, int]:
    """Return who works in the volume's directory where the server squashes root."""
    return {
        "uid": int(volume.options.get("uid", "0")),
        "gid": int(volume.options.get("gid", "0")),
    }


def warnings_of(options: Mapping[str, str]) -> list[str]:
    """Return what a user should know of the mount options that were chosen."""
    keys = {
        entry.partition("=")[0] for entry in _split(options.get("mountOptions", ""))
    }
    return [f"{key}: {why}" for key, why in _WARNED_ENTRIES.items() if key in keys]


def parse_options(raw: Mapping[str, str]) -> dict[str, str]:
    """Return *raw* in canonical form; see `Backend.parse_options`."""
    named: dict[str, str] = {}
    entries: list[str] = []
    for key, value in raw.items():
        canonical = _ALIASES.get(key.lower(), key.lower())
        if canonical == "mountOptions":
            entries += _split(value)
        elif canonical in _FOLDED:
            entries.append(f"{canonical}={value}")
        elif canonical == "noresvport":
            if parse.boolean(value) == "true":
                entries.append("noresvport")
        elif canonical == "type":
            if value not in ("nfs", "nfs4"):
                raise InvalidRequestError(f"option 'type': must be nfs, not '{value}'")
        elif canonical == "device":
            named |= _from_device(value)
        else:
            named[canonical] = value
    entries = _lift(entries, named)
    parsed = parse.parse_options(named, _PARSERS, backend="nfs", also=_ALSO_VALID)
    if entries:
        parsed["mountOptions"] = _canonical_entries(entries)
    return dict(sorted(parsed.items()))


def merge_options(base: Mapping[str, str], over: Mapping[str, str]) -> dict[str, str]:
    """Return *base* with *over* on top; mount options are merged one by one."""
    merged = {**base, **over}
    entries = _split(base.get("mountOptions", "")) + _split(
        over.get("mountOptions", "")
    )
    if entries:
        merged["mountOptions"] = _canonical_entries(entries)
    return merged


def require_complete(options: Mapping[str, str]) -> None:
    """Raise InvalidRequestError unless *options* say which share is meant."""
    missing = [key for key in ("server", "share") if key not in options]
    if missing:
        raise InvalidRequestError(
            f"backend 'nfs' needs the option '{missing[0]}'",
            hint="-o server=HOST -o share=/EXPORT, or a profile that has them",
        )


def _split(text: str) -> list[str]:
    # Docker's --mount flag takes commas for itself; ';' is accepted in their place.
    return [each.strip() for each in re.split("[,;]", text) if each.strip()]


def _from_device(value: str) -> dict[str, str]:
    """Return the options of the built-in driver's `device=:/path` form."""
    server, separator, path = value.rpartition(":")
    if not separator or not path.startswith("/"):
        raise InvalidRequestError(
            f"option 'device': must be :/PATH or SERVER:/PATH, not '{value[:64]}'"
        )
    found = {"share": path, "mountMode": "direct"}
    return {**found, "server": server.strip("[]")} if server else found


def _lift(entries: list[str], named: dict[str, str]) -> list[str]:
    """Move the entries that are options of their own into *named*."""
    left = []
    for entry in entries:
        key, _, value = entry.partition("=")
        if key == "addr" and named.get("mountMode") == "direct":
            named.setdefault("server", value.strip("[]"))
        elif key in ("vers", "nfsvers"):
            named.setdefault("nfsvers", value)
        elif key in ("ro", "rw"):
            named.setdefault("readOnly", "true" if key == "ro" else "false")
        elif key in _REFUSED_ENTRIES:
            raise InvalidRequestError(
                f"mount option '{key}' is refused: {_REFUSED_ENTRIES[key]}"
            )
        else:
            left.append(entry)
    return left


def _canonical_entries(entries: list[str]) -> str:
    """Return *entries* sorted, the last of each key winning."""
    by_key: dict[str, str] = {}
    for entry in entries:
        if not _ENTRY.fullmatch(entry):
            raise InvalidRequestError(f"mount option '{entry[:64]}' is malformed")
        key = entry.partition("=")[0]
        # Opposites replace each other, as they would on mount's command line.
        opposite = {"soft": "hard", "hard": "soft"}.get(key)
        if opposite:
            by_key.pop(opposite, None)
        by_key[key] = entry
    return ",".join(sorted(by_key.values()))


def _host(text: str) -> str:
    text = text.strip("[]")
    if not re.fullmatch(r"[A-Za-z0-9:][A-Za-z0-9_.:%-]{0,252}", text):
        raise ValueError("must be a host name or an address")
    return text


def _share(text: str) -> str:
    if (
        not text.startswith("/")
        or len(text) > _PATH_LENGTH_MAX
        or not text.isprintable()
        or "," in text
        or ".." in text.split("/")
    ):
        raise ValueError("must be the absolute path of an export, without commas")
    return "/" + "/".join(part for part in text.split("/") if part)


def _subdir(text: str) -> str:
    parts = text.split("/")
    if (
        len(text) > _PATH_LENGTH_MAX
        or not text.isprintable()
        or "," in text
        or any(part in ("", ".", "..", ".dvol") for part in parts)
    ):
        raise ValueError(
            "must be a relative path without empty parts, '.', '..' or commas"
        )
    unknown = re.findall(r"\$\{(?!volume\.name\})[^}]*\}?", text)
    if unknown:
        raise ValueError(f"knows only the template {_TEMPLATE}")
    return text


_PARSERS: Final[Mapping[str, parse.Parser]] = {
    "server": _host,
    "share": _share,
    "subDir": _subdir,
    "nfsvers": parse.one_of("3", "4", "4.0", "4.1", "4.2"),
    "readOnly": parse.boolean,
    "suid": parse.boolean,
    "mode": parse.octal_mode,
    "uid": parse.numeric_id,
    "gid": parse.numeric_id,
    "onDelete": parse.one_of("retain", "archive", "delete"),
    "existing": parse.one_of("error", "adopt"),
    "mountMode": parse.one_of("subdir", "share", "direct"),
    "exclusive": parse.boolean,
    "fence": PARSERS["fence"],
    "from": parse.source_volume,
    "size": parse.refused(
        "cannot be enforced by an NFS client: set a quota on the server"
    ),
}
_ALSO_VALID: Final = (
    "device", "mountOptions", "nconnect", "noresvport", "sec", "type", "xprtsec",
)  # fmt: skip
