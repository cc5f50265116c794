"""
What can go wrong with NFS, as codes that users can look up.

`NFS-<CODE>: cause; server:path (hint: …)`; docs/guides/nfs.md has a row for each.
"""

from __future__ import annotations

from typing import Final

from backends.errors import BackendError, DeadlineError

HINTS: Final = {
    "UNREACHABLE": "is the server up, and does a firewall drop port 2049?",
    "REFUSED": "start the NFS server there (nfs-kernel-server)",
    "TIMEOUT": "retry; remora status shows the server's state",
    "DNS": "check the spelling of 'server' and /etc/resolv.conf; if the server has "
    "another name now: remora share move",
    "MOVED": "stop the containers that use it; then the next call mounts anew",
    "NOEXPORT": "missing or not exported to this host: exportfs -v on the server",
    "DENIED": "check the export's options (rw, secure, sec=) on the server",
    "SQUASH": "set uid and gid to the owner of the export, or export no_root_squash",
    "VERSION": "set nfsvers to one that the server offers: rpcinfo SERVER",
    "OPTION": "see docs/guides/nfs.md for the options",
    "EXISTS": "use another name or subDir; existing=adopt takes a directory over",
    "CREATING": "retry",
    "CHANGING": "retry",
    "INUSE": "stop it there first; a node that died counts for 90 s more",
    "STALE": "docker volume rm forgets it; discovery brings in what is there now",
    "OTHER": "mount the server's disk, or see who answers; replaced on purpose: remora "
    "share accept SERVER:/PATH",
    "REPLACED": "look at both; move it away to remove the volume",
    "FILESYSTEM": "remora clone NAME@SNAPSHOT NEW makes another volume of the snapshot",
    "SNAPSHOTS": "remora snapshot rm removes them, remora snapshot ls names them",
    "SNAPSHOT": "use another name, or remove it: remora snapshot rm",
    "NOSNAPSHOT": "remora snapshot ls names them",
    "NOSPACE": "free space on the server, or raise its quota",
    "CATALOGUE": "see .dvol on the share; restore the file or move it away",
    "IO": "see the server's log",
}
_TRANSIENT: Final = frozenset(
    {"UNREACHABLE", "REFUSED", "DNS", "INUSE", "CREATING", "CHANGING"}
)

# The server did not answer: after a power failure it may boot for longer than we do.
_UNANSWERED: Final = frozenset({"UNREACHABLE", "REFUSED", "DNS"})


class NfsError(BackendError):
    """An error of the table above; what was asked for was not done."""

    def __init__(self, code: str, cause: str, where: str) -> None:
        super().__init__(f"{cause}; {where}", hint=HINTS[code])
        self.code = f"NFS-{code}"
        self.transient = code in _TRANSIENT
        self.unanswered = code in _UNANSWERED


class NfsTimeoutError(DeadlineError):
    """The server stopped answering half-way; whether it was done is unknown."""

    code = "NFS-TIMEOUT"
    unanswered = True

    def __init__(self, cause: str, where: str) -> None:
        super().__init__(f"{cause}; {where}", hint=HINTS["TIMEOUT"])


# What mount.nfs prints, lower case, to the code that it means. Order matters: the
# first that is found counts. Source: nfs-utils utils/mount/error.c, measured.
_SPOKEN: Final = (
    ("connection refused", "REFUSED"),
    ("timed out", "UNREACHABLE"),
    ("no route to host", "UNREACHABLE"),
    ("network is unreachable", "UNREACHABLE"),
    ("failure in name resolution", "DNS"),
    ("name or service not known", "DNS"),
    ("failed to resolve", "DNS"),
    ("access denied", "NOEXPORT"),
    ("no such file or directory", "NOEXPORT"),
    ("requested nfs version", "VERSION"),
    ("protocol not supported", "VERSION"),
    ("rpc.statd is not running", "OPTION"),
    ("incorrect mount option", "OPTION"),
    ("invalid argument", "OPTION"),
    ("operation not permitted", "DENIED"),
    ("permission denied", "DENIED"),
    ("stale file handle", "STALE"),
)


def from_mount_output(text: str, where: str) -> NfsError:
    """Return the error that *text*, what mount.nfs printed, stands for."""
    lowered = text.lower()
    for spoken, code in _SPOKEN:
        if spoken in lowered:
            return NfsError(code, f"mount.nfs: {text}", where)
    return NfsError("IO", f"mount.nfs: {text}", where)
