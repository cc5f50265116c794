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
from pathlib import Path
from typing import Final

from backends import options as parse
from backends.base import Volume
from backends.errors import InvalidRequestError
from backends.nfs import option_lines
from backends.nfs.option_lines import CONTEXTS
from backends.options import IGNORED
from backends.replication_options import PARSERS

_PATH_LENGTH_MAX: Final = 1024
_IGNORED_LENGTH_MAX: Final = 1024
_PORT: Final = 2049
_TYPES: Final = ("nfs", "nfs4")
_SELINUX: Final = Path("/sys/fs/selinux/enforce")
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
        """The port at which the server is asked, by TCP, whether it is there."""
        port = self._entry("port") if self.is_reached_by_tcp else ""
        # 0 means that rpcbind tells, as if there were none.
        return int(port or 0) or _PORT

    @property
    def is_reached_by_tcp(self) -> bool:
        """Whether it is mounted by TCP."""
        return self._entry("proto") in ("", "tcp", "tcp6") and not (
            {"udp", "rdma"} & {*self.entries.split(",")}
        )

    def _entry(self, key: str) -> str:
        entries = self.entries.split(",")
        return dict(entry.partition("=")[::2] for entry in entries).get(key, "")


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
    entries = usable_entries(volume.options.get("mountOptions", ""))
    if not any(each in ("soft", "softerr", "hard") for each in entries):
        entries.insert(0, "hard")
    if volume.options.get("readOnly") == "true":
        entries.append("ro")
    entries.append("nodev")
    if volume.options.get("suid") != "true":
        entries.append("nosuid")
    return ",".join(entries)


def usable_entries(line: str) -> list[str]:
    """Return the entries of *line* but for labels, which SELinux alone understands."""
    entries = option_lines.split(line)
    if _SELINUX.exists():
        return entries
    return [each for each in entries if each.partition("=")[0] not in CONTEXTS]


def owner_of(volume: Volume) -> dict[str, int]:
    """Return who works in the volume's directory where the server squashes root."""
    return {
        "uid": int(volume.options.get("uid", "0")),
        "gid": int(volume.options.get("gid", "0")),
    }


def warnings_of(options: Mapping[str, str]) -> list[str]:
    """Return what a user should know of the mount options that were chosen."""
    line = option_lines.split(options.get("mountOptions", ""))
    keys = {entry.partition("=")[0] for entry in line}
    chosen = [f"{key}: {why}" for key, why in _WARNED_ENTRIES.items() if key in keys]
    ignored = options.get(IGNORED, "").split(",")
    return chosen + [
        f"{key}: was ignored, {option_lines.ignored_because(key)}"
        for key in filter(None, ignored)
    ]


def parse_options(raw: Mapping[str, str]) -> dict[str, str]:
    """Return *raw* in canonical form; see `Backend.parse_options`."""
    given, entries = _given(raw)
    _require_type(given.pop("type", "nfs").strip())
    # Of a record; it was cut to a length.
    told = given.pop(IGNORED, "").split(",")
    if parse.boolean(given.pop("noresvport", "false")) == "true":
        entries.append("noresvport")
    entries += [f"{key}={given.pop(key)}" for key in _FOLDED if key in given]
    if "nfsvers" in given:  # a minor version of the line belongs to it
        entries.append(f"nfsvers={given.pop('nfsvers')}")
    line = option_lines.read_line(entries)
    named = _with_server(given, line.server)
    # An option of the volume's own says more than an entry of a line.
    named = {**line.options, **named}
    parsed = parse.parse_options(named, _PARSERS, backend="nfs", also=_ALSO_VALID)
    if line.entries:
        parsed["mountOptions"] = line.text()
    if ignored := sorted({*filter(option_lines.is_ignored, told), *line.ignored}):
        parsed[IGNORED] = ",".join(ignored)[:_IGNORED_LENGTH_MAX]
    return dict(sorted(parsed.items()))


def _given(raw: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the options of *raw* by their own names, and the entries of its lines."""
    given: dict[str, str] = {}
    entries: list[str] = []
    for key, value in raw.items():
        name = _ALIASES.get(key.lower(), key.lower())
        if name == "mountOptions":
            entries += option_lines.split(value)
        elif key.lower() == "mountpermissions" and value.strip() == "0":
            continue  # csi-driver-nfs has it by default, and changes none then
        else:
            given[name] = value
    return given, entries


def implied(raw: Mapping[str, str]) -> set[str]:
    """
    Return the options of their own that the values of *raw* stand for.

    Those that decide about other people's bytes: `server`, which `device` names, too,
    and `suid`.
    """
    given, entries = _given(raw)
    line = option_lines.read_line(entries)
    found = {"suid"} if line.options.get("suid") == "true" else set()
    names_server = line.server or ":/" in given.get("share", "")
    return found | ({"server"} if names_server and "device" not in given else set())


def merge_options(base: Mapping[str, str], over: Mapping[str, str]) -> dict[str, str]:
    """Return *base* with *over* on top; mount options are merged one by one."""
    merged = {**base, **over}
    lines = [each.get("mountOptions", "") for each in (base, over)]
    entries = [entry for line in lines for entry in option_lines.split(line)]
    if entries:
        merged["mountOptions"] = option_lines.read_line(entries).text()
    return merged


def require_complete(options: Mapping[str, str]) -> None:
    """Raise InvalidRequestError unless *options* say which share is meant."""
    missing = [key for key in ("server", "share") if key not in options]
    if missing:
        raise InvalidRequestError(
            f"backend 'nfs' needs the option '{missing[0]}'",
            hint="-o server=HOST -o share=/EXPORT, or a profile that has them",
        )


def _require_type(value: str) -> None:
    """Refuse what the built-in driver mounts beside NFS."""
    if value.lower() not in _TYPES:
        raise InvalidRequestError(
            f"option 'type': must be nfs, not '{value[:64]}'",
            hint="driver 'local' mounts other file systems and binds directories; "
            "kinds of disks, as REX-Ray and Convoy have them, have no counterpart",
        )


def _with_server(given: Mapping[str, str], address: str) -> dict[str, str]:
    """
    Return *given* with the server and share that `device` and *address* say.

    The kernel asks the *address*, `addr` of a line, whatever stands in a device.
    """
    named = dict(given)
    share = named.get("share", "")
    if "device" in named:
        named |= _from_device("device", named.pop("device").strip())
    elif not share.startswith("/") and ":/" in share:  # netshare's form
        named |= _from_device("share", share.strip())
    told = given.get("server", address)
    if address and told.strip("[]") != address.strip("[]"):
        raise InvalidRequestError(
            f"mount option 'addr={address[:64]}' and option 'server={told[:64]}' "
            "contradict each other",
            hint="leave one out",
        )
    if told:
        named["server"] = told.strip("[]")
    return named


def place_of(share: str) -> dict[str, str]:
    """Return the options `server` and `share` of what is written as SERVER:/PATH."""
    found = _from_device("share", share.strip())
    if "server" not in found:
        raise InvalidRequestError(
            f"'{share[:64]}' names no server", hint="write it as SERVER:/PATH"
        )
    return parse_options({key: found[key] for key in ("server", "share")})


def _from_device(key: str, value: str) -> dict[str, str]:
    """Return the options of the built-in driver's `device=:/path` form."""
    server, separator, path = value.partition(":/")
    is_url = server.lower() == "nfs" and path.startswith("/")
    if not separator or is_url or re.search(r"[/\"']", server):
        hint = "a CIFS share is driver 'local's" if value.startswith("//") else ""
        raise InvalidRequestError(
            f"option '{key}': must be :/PATH or SERVER:/PATH, not '{value[:64]}'",
            hint=hint,
        )
    found = {"share": f"/{path}", "mountMode": "direct"}
    return {**found, "server": server.strip("[]")} if server else found


def _host(text: str) -> str:
    text = text.strip("[]")
    if not re.fullmatch(r"[A-Za-z0-9:][A-Za-z0-9_.:%-]{0,252}", text):
        raise ValueError("must be a host name or an address")
    if text.count(":") == 1:
        raise ValueError("must be a host name or an address; a port is 'o: port=PORT'")
    return text


def _share(text: str) -> str:
    if (
        not text.startswith("/")
        or len(text) > _PATH_LENGTH_MAX
        or not text.isprintable()
        or "," in text
        or ".." in text.split("/")
    ):
        server, slash, path = text.partition("/")
        netshare = f", or SERVER:/PATH: {server}:/{path}" if server and slash else ""
        raise ValueError(f"must be an absolute path without '..' and commas{netshare}")
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


# Kubernetes has them in capitals, too.
_ON_DELETE: Final = parse.one_of("retain", "archive", "delete")
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
    "onDelete": lambda text: _ON_DELETE(text.lower()),
    "existing": parse.one_of("error", "adopt"),
    "mountMode": parse.one_of("subdir", "share", "direct"),
    "exclusive": parse.boolean,
    "fence": PARSERS["fence"],
    "from": parse.source_volume,
    "create": parse.refused(
        "must be left out: 'server' and 'share' make a directory for each volume, or "
        "take one that is there with existing=adopt; 'device' and SERVER:/PATH are one"
    ),
    "size": parse.refused(
        "cannot be enforced by an NFS client: set a quota on the server"
    ),
}
_ALSO_VALID: Final = (
    "device", "mountOptions", "nconnect", "noresvport", "sec", "type", "xprtsec",
)  # fmt: skip
