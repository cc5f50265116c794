"""
Lines of mount options as people have them: from fstab, Compose files, other plugins.

Each entry is one that mount.nfs is given, or stands for an option of the volume, or
means nothing here and is left out with a reason, or is refused with one. Of two that
contradict each other the last one counts, as for mount(8). Source: mount(8), nfs(5),
and the kernel's own table in fs/nfs/fs_context.c.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from backends.errors import InvalidRequestError

_QUOTED: Final = re.compile(r'(?:[^,;"]|"[^"]*")+')
_VALUE: Final = re.compile(r"[A-Za-z0-9_.:/\[\]@+%-]*")
_CONTEXT: Final = re.compile(r"[A-Za-z0-9_.:,-]+")
_NUMBER: Final = re.compile(r"[0-9]{1,10}")
# Of mount(8)'s and systemd's own.
_PRIVATE: Final = re.compile(r"x-[a-z0-9_.-]{1,60}")
_VERSION: Final = re.compile(r"v([234](?:\.[0-9])?)")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Values of these are whole numbers.
_NUMBERS: Final = _words(
    "acdirmax acdirmin acregmax acregmin actimeo bsize max_connect mountport mountvers "
    "namlen nconnect port retrans rsize timeo wsize"
)
_WORDS: Final = {
    "fatal_neterrors": "default none ENETDOWN ENETUNREACH",
    "local_lock": "all flock posix none",
    "lookupcache": "all none pos positive",
    "mountproto": "tcp udp tcp6 udp6",
    "proto": "tcp udp rdma tcp6 udp6 rdma6",
    "rdirplus": "none force",
    "sec": "none null sys krb5 krb5i krb5p",
    "write": "lazy eager wait",
}
_TEXTS: Final = _words(
    "cert_serial clientaddr fsc mountaddr mounthost privkey_serial xprtsec"
)
# Labels of SELinux: a value may have commas.
CONTEXTS: Final = frozenset(("context", "fscontext", "defcontext", "rootcontext"))
# Each may have `no` before it.
_SWITCHES: Final = _words(
    "ac acl alignwrite cto fsc lock migration posix rdirplus resvport sharecache "
    "trunkdiscovery exec atime diratime relatime strictatime"
)
_FLAGS: Final = _words("hard soft softerr softreval tcp udp rdma sync async dirsync")
# One of each line counts.
_ALTERNATIVES: Final = {
    each: group
    for group in (
        "hard soft softerr",
        "tcp udp rdma proto",
        "sync async",
        "atime noatime relatime norelatime strictatime nostrictatime",
    )
    for each in group.split()
}
_ATTRIBUTE_TIMES: Final = ("acregmin", "acregmax", "acdirmin", "acdirmax")

_ITS_OWN: Final = "the daemon mounts when a container starts, within its own deadline"
_USELESS: Final = "NFS has no use of it"
_NO_TABLE: Final = "it is for a line of fstab"
_IGNORED: Final = {
    **dict.fromkeys(("bg", "fg", "retry"), _ITS_OWN),
    **dict.fromkeys(("auto", "noauto", "nofail", "_netdev", "comment"), _NO_TABLE),
    **dict.fromkeys(("user", "nouser", "users", "nousers"), _NO_TABLE),
    **dict.fromkeys(("owner", "noowner", "group", "nogroup"), _NO_TABLE),
    **dict.fromkeys(("intr", "nointr"), "the kernel ignores it"),
    **dict.fromkeys(
        ("mand", "nomand", "iversion", "noiversion"), "NFS has no use of it"
    ),
    **dict.fromkeys(
        ("lazytime", "nolazytime", "silent", "loud"), "NFS has no use of it"
    ),
    "dev": "devices in a volume are never opened",
    "sloppy": "what is not known is refused",
}
# What is done anyway.
_NEEDLESS: Final = frozenset(("defaults", "nodev"))
_OF_EXPORT: Final = "it is the server's, in its /etc/exports"
_OF_CIFS: Final = "it is an option of CIFS; driver 'local' mounts that"
_REFUSED: Final = {
    "remount": "volumes are not remounted",
    **dict.fromkeys(
        ("bind", "rbind", "move"),
        "it is no option of NFS; driver 'local' binds a directory of this machine, and "
        "remora import takes one over",
    ),
    **dict.fromkeys(
        ("shared", "slave", "private", "unbindable", "rshared", "rslave", "rprivate"),
        "it belongs to the container's mount: --mount …,bind-propagation=",
    ),
    **dict.fromkeys(
        ("uid", "gid", "mode"), "give it as an option of its own, beside 'o'"
    ),
    **dict.fromkeys(
        ("username", "password", "credentials", "cred", "domain", "file_mode"), _OF_CIFS
    ),
    **dict.fromkeys(("dir_mode", "forceuid", "forcegid", "noperm", "guest"), _OF_CIFS),
    **dict.fromkeys(("root_squash", "no_root_squash", "all_squash"), _OF_EXPORT),
    **dict.fromkeys(("insecure", "secure", "no_subtree_check", "fsid"), _OF_EXPORT),
    **dict.fromkeys(("nocopy", "volume-nocopy"), "it belongs to the container's mount"),
    **dict.fromkeys(("umask", "fmask", "dmask", "utf8"), "it is no option of NFS"),
    "size": "an NFS client cannot enforce it: set a quota on the server",
}
_KNOWN: Final = frozenset(
    {
        *_NUMBERS, *_WORDS, *_TEXTS, *CONTEXTS, *_SWITCHES, *_FLAGS, *_IGNORED,
        *_NEEDLESS, *(f"no{each}" for each in _SWITCHES),
        *("addr", "vers", "nfsvers", "minorversion", "ro", "rw", "suid", "nosuid"),
    }
)  # fmt: skip


@dataclass(slots=True)
class OptionLine:
    """
    What a line of mount options means.

    ``entries`` are for mount.nfs, by key; ``options`` are the volume's; ``server`` is
    that of `addr`; ``ignored`` are the keys of those that mean nothing here.
    """

    entries: dict[str, str] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    server: str = ""
    ignored: set[str] = field(default_factory=set)

    def text(self) -> str:
        """Return the entries as mount.nfs takes them."""
        return ",".join(sorted(self.entries.values()))


def split(text: str) -> list[str]:
    """
    Return the entries of *text*; a comma in quotes separates none.

    Docker's --mount flag takes commas for itself; `;` is accepted in their place.
    """
    if text.count('"') % 2:
        raise InvalidRequestError("mount options: a quotation mark has no other one")
    return [each.strip() for each in _QUOTED.findall(text) if each.strip()]


def is_ignored(key: str) -> bool:
    """Return whether an entry *key* means nothing here."""
    return key in _IGNORED or _PRIVATE.fullmatch(key) is not None


def ignored_because(key: str) -> str:
    """Return why the entry *key* means nothing here."""
    return _IGNORED.get(key, _NO_TABLE)


def read_line(entries: Iterable[str]) -> OptionLine:
    """
    Return what *entries* mean, in their order.

    Raises:
        InvalidRequestError: one is unknown, has a wrong value, or is refused.

    """
    line = OptionLine()
    minor = ""
    for entry in entries:
        key, has_value, value = (part.strip() for part in entry.partition("="))
        key, value = key.lower(), value.strip('"')
        if is_ignored(key):
            line.ignored.add(key)
        elif key == "minorversion":
            minor = value
        elif not _is_of_the_volume(line, key, value) and key not in _NEEDLESS:
            _require_known(key, has_value, value, entry)
            _add(line.entries, key, value, has_value)
    if minor and line.options.get("nfsvers", "4") in ("4", f"4.{minor}"):
        line.options["nfsvers"] = f"4.{minor}"
    elif minor:
        raise InvalidRequestError(
            f"mount option 'minorversion={minor[:16]}' contradicts version "
            f"{line.options['nfsvers']}"
        )
    return line


def _is_of_the_volume(line: OptionLine, key: str, value: str) -> bool:
    """Note in *line* what the entry says of the volume; False if it says nothing."""
    if key == "addr":
        line.server = value
    elif key in ("vers", "nfsvers"):
        line.options["nfsvers"] = value
    elif version := _VERSION.fullmatch(key):
        line.options["nfsvers"] = version[1]
    elif key in ("ro", "rw"):
        line.options["readOnly"] = "true" if key == "ro" else "false"
    elif key in ("suid", "nosuid"):
        line.options["suid"] = "true" if key == "suid" else "false"
    else:
        return False
    return True


def _require_known(key: str, has_value: str, value: str, entry: str) -> None:
    """Raise InvalidRequestError unless nfs(5) knows *key*, with such a *value*."""
    shown = f"mount option '{entry[:64]}'"
    if key in _REFUSED:
        raise InvalidRequestError(f"mount option '{key}' is refused: {_REFUSED[key]}")
    if key in CONTEXTS:
        if not _CONTEXT.fullmatch(value):
            raise InvalidRequestError(f"{shown} must have an SELinux label")
        return
    if not _VALUE.fullmatch(value) or not re.fullmatch("[a-z0-9_]+", key):
        raise InvalidRequestError(
            f"{shown} is malformed", hint="entries are KEY or KEY=VALUE, with commas"
        )
    if key in _NUMBERS and not _NUMBER.fullmatch(value):
        raise InvalidRequestError(f"{shown}: must be a whole number")
    if key in _WORDS and has_value and not {*value.split(":")} <= _words(_WORDS[key]):
        words = _WORDS[key].replace(" ", ", ")
        raise InvalidRequestError(f"{shown}: must be one of {words}")
    plain = key in _SWITCHES or key.removeprefix("no") in _SWITCHES or key in _FLAGS
    takes_value = key in _NUMBERS or key in _WORDS or key in _TEXTS
    if not plain and not takes_value:
        close = difflib.get_close_matches(key, _KNOWN, 1, 0.7)
        hint = f"did you mean '{close[0]}'?" if close else "nfs(5) lists them"
        raise InvalidRequestError(f"mount option '{key[:64]}' is unknown", hint=hint)
    if (has_value and not (value and takes_value)) or not (has_value or plain):
        takes = "needs a value" if takes_value else "takes no value"
        raise InvalidRequestError(f"{shown} {takes}")


def _add(entries: dict[str, str], key: str, value: str, has_value: str) -> None:
    """Add an entry to *entries*; those that it contradicts go."""
    if key == "actimeo":
        for each in _ATTRIBUTE_TIMES:
            entries.pop(each, None)
    elif key in _ATTRIBUTE_TIMES and "actimeo" in entries:
        time = entries.pop("actimeo").partition("=")[2]
        entries |= {each: f"{each}={time}" for each in _ATTRIBUTE_TIMES}
    if key in ("lock", "nolock"):  # both say what is local, wherever they stand
        entries.pop("local_lock", None)
    elif key == "local_lock":
        if {"lock", "nolock"} & entries.keys():
            return
        before = entries.get(key, "").partition("=")[2]
        # The kernel adds the two kinds.
        is_other = "none" not in (before, value) and before not in ("", value)
        value = "all" if is_other else value
    for each in _ALTERNATIVES.get(key, "").split():
        entries.pop(each, None)
    opposite = key[2:] if key.startswith("no") else f"no{key}"
    entries.pop(opposite, None)
    if key in CONTEXTS and "," in value:
        value = f'"{value}"'
    entries[key] = f"{key}={value}" if has_value else key
