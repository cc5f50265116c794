"""
Opens files whose times their server keeps, also on NFS.

A server of NFS 4.2 may delegate a file's times to the client that has it open. From
then on this client's clock says here when the file was written, and what utime(2) sets
is dropped by the server if it is older than the delegation. A delegation of any kind
also makes others who want the file wait for a client that is dead. A client asks for
none for a file that it opens with O_DIRECT; the flag is taken off the descriptor at
once, so that reads and writes are cached as ever.

Standard library alone and quick to import: the share's agent and `tree.py` use it.

Source: RFC 8881, 18.16.3 (OPEN4_SHARE_ACCESS_WANT_NO_DELEG); RFC 9754, 5; measured:
docs/adr/0008-nfs.md.
"""

from __future__ import annotations

import fcntl
import os

from backends.system import libc

# Source: linux/magic.h.
_NFS = 0x6969


class Opener:
    """Opens files on the filesystem of *directory*, a path or an open one."""

    def __init__(self, directory: str | int) -> None:
        self._directory = directory
        # Looked up at the first use, for a dead server may keep it.
        self._extra: int | None = None

    def open(
        self,
        path: str | bytes,
        flags: int,
        mode: int = 0o600,
        *,
        dir_fd: int | None = None,
    ) -> int:
        """Open a file, as os.open does, so that it is not delegated."""
        if self._extra is None:
            # Elsewhere the flag means another thing, or the filesystem refuses it.
            self._extra = os.O_DIRECT if _is_nfs(self._directory) else 0
        descriptor = os.open(path, flags | self._extra, mode, dir_fd=dir_fd)
        if self._extra:
            try:
                now = fcntl.fcntl(descriptor, fcntl.F_GETFL)
                fcntl.fcntl(descriptor, fcntl.F_SETFL, now & ~self._extra)
            except OSError:
                os.close(descriptor)
                raise
        return descriptor


def _is_nfs(directory: str | int) -> bool:
    if isinstance(directory, int):
        return libc.filesystem_type(directory) == _NFS
    opened = os.open(directory, os.O_PATH)
    try:
        return libc.filesystem_type(opened) == _NFS
    finally:
        os.close(opened)
