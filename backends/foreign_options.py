"""
What an option that a backend does not know is called here, or why there is none.

It may be another plugin's, the other backend's, or misspelt.

Sources: the documentation and source of REX-Ray 0.11.4 (its Docker module and
libStorage), Convoy 0.5.2, docker-volume-netshare 0.36, rancher-nfs, Portworx (`repl`),
Longhorn, local-persist (`mountpoint`), Kubernetes' NFS provisioners and Docker's
cloudstor (`backing`, `ebstype`, `perfmode`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Final

_CALLED: Final = {
    **dict.fromkeys(("host", "addr", "address", "nfsserver"), "server"),
    **dict.fromkeys(("export", "exportbase", "nfspath"), "share"),
    "mntoptions": "mountOptions",
    **dict.fromkeys(("onremove", "reclaimpolicy", "archiveondelete"), "onDelete"),
    "pathpattern": "subDir",
    **dict.fromkeys(("repl", "numberofreplicas"), "replicas"),
    "filemode": "mode",
    "maximum_size": "size",
}
# What one of the backends has and the other has not.
_BACKENDS: Final = {
    "nfs": "server share subDir device type nfsvers vers mountOptions nfsopts o "
    "nconnect sec xprtsec noresvport readOnly mountPermissions onDelete existing "
    "mountMode exclusive",
    "rsync": "replicas members interval min_acks failover max_names consistency group",
}
_BACKEND_OF: Final = {
    key.lower(): backend for backend, keys in _BACKENDS.items() for key in keys.split()
}
_BYTES: Final = (
    "'from' begins with the bytes of VOLUME or VOLUME@SNAPSHOT; others are mounted as "
    "a directory, which remora import takes"
)
_FILESYSTEM: Final = (
    "there is none: a volume is a directory of the pool or the export, and has its "
    "filesystem"
)
_SPEED: Final = (
    "there is none: a volume is as fast as the disk of the pool or the server"
)
_WHERE: Final = (
    "where the bytes lie is 'pool' in remora.toml, or 'server' and 'share' of an export"
)
_CIFS: Final = "there is none: CIFS is mounted by driver 'local'"
_DIRECTORY: Final = (
    "there is none: the bytes lie in the pool, into which remora import copies a "
    "directory"
)
_ENCRYPTED: Final = "there is none: put the pool on an encrypted disk"
_INSTEAD: Final = {
    **dict.fromkeys(("fs", "fstype", "newfstype", "overwritefs"), _FILESYSTEM),
    **dict.fromkeys(("iops", "volumetype", "ebstype", "perfmode"), _SPEED),
    **dict.fromkeys(("encrypted", "encryptionkey"), _ENCRYPTED),
    **dict.fromkeys(("volumename", "volumeid", "id"), _BYTES),
    **dict.fromkeys(("snapshotname", "snapshotid", "backup", "endpoint"), _BYTES),
    **dict.fromkeys(("username", "password", "domain", "security", "dirmode"), _CIFS),
    "cifsopts": _CIFS,
    **dict.fromkeys(("mountpoint", "path"), _DIRECTORY),
    "sshcmd": "there is none: what SSH reaches is mounted by who uses it",
    "availabilityzone": "'members' names the nodes that keep copies, in a cluster",
    "backing": "'replicas' says how many nodes keep copies, in a cluster",
    "driver": "here 'backend' says where the bytes lie, rsync or nfs; 'driver: remora' "
    "stands beside driver_opts",
    "create": "leave it out: each volume gets a directory of its own, and "
    "existing=adopt takes one that is there on an NFS share",
    "vm": "there is none: a volume is a directory, not a disk's image",
}
# Of a daemon's, which people give to volumes.
_PREFIXES: Final = ("vfs.", "dm.", "ebs.", "do.", "glusterfs.")
_LIKE: Final = 0.75


def hint(key: str, valid: Iterable[str]) -> str:
    """Return what to write instead of the unknown option *key*; *valid* are known."""
    lower = key.lower()
    known = sorted(valid)
    if called := _CALLED.get(lower):
        backend = "" if called in known else _of_backend(called)
        return f"it is called '{called}' here{backend}"
    if lower in _BACKEND_OF:
        return f"it is there{_of_backend(lower)}"
    if lower in _INSTEAD:
        return _INSTEAD[lower]
    if lower.startswith(_PREFIXES):
        return _WHERE
    close = difflib.get_close_matches(lower, [each.lower() for each in known], 1, _LIKE)
    meant = [each for each in known if each.lower() in close]
    asked = f"did you mean '{meant[0]}'? " if meant else ""
    return f"{asked}valid options: {', '.join(known)}"


def _of_backend(key: str) -> str:
    """Return which backend has *key*, and how that one is chosen."""
    if _BACKEND_OF[key.lower()] == "nfs":
        return " with backend 'nfs': -o server=HOST -o share=/EXPORT, or a profile"
    return " with backend 'rsync', in a pool"
