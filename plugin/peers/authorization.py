"""
Which nodes may log in, and which we know: files for sshd and ssh, from the records.

    <state_dir>/peer/authorized_keys   a line for each node that may come in
    <state_dir>/peer/known_hosts       a line for each node's sshd

sshd reads its file at every login: a key that is gone opens nothing any more.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from backends.system import files
from backends.system.programs import own_program
from plugin.errors import StoreError
from plugin.peers import receive
from plugin.peers.peer import Peer

HOST_KEY: Final = "host_key"
NODE_KEY: Final = "node_key"
AUTHORIZED_KEYS: Final = "authorized_keys"
KNOWN_HOSTS: Final = "known_hosts"


class Authorization:
    """The two files in *directory*; sessions reach the daemon at *peer_socket*."""

    def __init__(self, directory: Path, *, peer_socket: Path) -> None:
        self._directory = directory
        self._peer_socket = peer_socket

    def write(self, peers: Sequence[Peer]) -> None:
        """
        Let in and know *peers*, and nobody else.

        Raises:
            StoreError: a file cannot be written; it is as it was.

        """
        wanted = {
            AUTHORIZED_KEYS: [self._authorized(peer) for peer in peers],
            KNOWN_HOSTS: [f"{peer.alias} {peer.host_key}" for peer in peers],
        }
        for name, lines in wanted.items():
            path = self._directory / name
            content = "".join(f"{line}\n" for line in lines).encode()
            try:
                if path.is_dir():
                    path.rename(f"{path}.aside")
                if not path.exists() or path.read_bytes() != content:
                    files.write_durably(path, content)
            except OSError as error:
                raise StoreError(f"cannot write {path}: {error.strerror}") from error

    def _authorized(self, peer: Peer) -> str:
        command = shlex.join(own_program(receive, str(self._peer_socket), peer.id))
        # sshd takes the text up to the next quote that no backslash precedes.
        quoted = command.replace('"', '\\"')
        # exec: else the shell in which sshd starts it would stay, for nothing.
        return f'restrict,command="exec {quoted}" {peer.public_key} {peer.id}'
