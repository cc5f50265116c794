"""
Brings files to another node's staging directory, with rsync over the shared ssh.

What arrives is part of nothing until the other node says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from backends.errors import BackendError
from backends.system.run import run_with_progress
from plugin.cluster.state import Commit
from plugin.peers.channel import Peers
from plugin.peers.sharing import SharedSsh

# rsync tells its progress every second; ssh gives a silent node up after six.
_STALL_S: Final = 60.0
# The sequence that no commit has: files for the tree itself, before there is a commit.
AHEAD_SEQ: Final = 0
# Files vanished or could not all be read: the other node finds out what is missing.
_PARTIAL: Final = (" 23:", " 24:")


class Transfer:
    """Sends to the nodes that *peers* knows."""

    def __init__(self, peers: Peers, ssh: SharedSsh) -> None:
        self._peers = peers
        self._ssh = ssh

    def send(
        self,
        node_id: str,
        *,
        volume_id: str,
        commit: Commit,
        source: Path,
        names: Iterable[bytes],
    ) -> None:
        """
        Bring files *names* of *source*, each ended by a zero byte, to a node.

        Raises:
            PeerUnreachableError: the node is not known, or has no address.
            BackendError: rsync failed; the other node keeps what it has got.

        """
        channel = self._peers.channel(node_id)
        command = self._ssh.rsync_command(
            channel.peer,
            channel.address,
            source=source,
            volume=volume_id,
            commit=(commit.epoch, commit.seq),
        )
        with tempfile.TemporaryFile() as file:
            for name in names:
                file.write(name)
            file.seek(0)
            run_with_progress(
                [command[0], "--info=progress2", *command[1:]],
                stall_s=_STALL_S,
                on_line=_ignore,
                stdin=file.fileno(),
            )

    def send_ahead(
        self,
        node_id: str,
        *,
        volume_id: str,
        epoch: int,
        source: Path,
        names: Iterable[bytes],
    ) -> None:
        """
        Bring what can be had of *source* while others write to it.

        Raises:
            PeerUnreachableError, BackendError: as `send`; a part is no error.

        """
        try:
            self.send(
                node_id,
                volume_id=volume_id,
                commit=Commit(epoch, AHEAD_SEQ),
                source=source,
                names=names,
            )
        except BackendError as error:
            if not any(f"exited{code}" in error.cause for code in _PARTIAL):
                raise


def _ignore(line: str) -> None:
    del line
