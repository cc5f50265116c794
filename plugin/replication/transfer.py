"""
Brings files to another node's staging directory, with rsync over the shared ssh.

What arrives is part of nothing until the other node says so.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import IO, Final

from backends.errors import BackendError
from backends.system.run import LeasedError, run_with_progress
from plugin.logs import fields
from plugin.ownership.state import Commit
from plugin.peers.channel import PeerChannel, Peers
from plugin.peers.sharing import AHEAD_SEQ
from plugin.replication.progress import Progress
from plugin.replication.room import ask_for_room

log = logging.getLogger(__name__)
# So long neither side may stand still. ssh gives a silent node up after six seconds; of
# one that hangs, only its rsync tells.
_STALL_S: Final = 60.0
_OPTIONS: Final = ("--info=progress2", "--no-human-readable", "--log-file-format=")
# Bytes sent, in rsync's log file. Its --stats would tell them too, but would change the
# options that the other side is started with.
_CARRIED: Final = re.compile(rb" sent ([0-9]{1,18}) bytes  received ")
_LOG_END_BYTES: Final = 64 * 1024
# So much may come to a volume while it is sent ahead, besides what it had. A file that
# is made larger meanwhile, by a hole, would be sent as zeros for days.
_GROWTH_MAX_BYTES: Final = 16 * 2**30
# rsync's exit codes if files vanished or could not be read: the other node tells which.
_PARTIAL: Final = (" 23:", " 24:")


class RsyncTransfer:
    """Sends to the nodes that *peers* knows, and tells *progress*."""

    def __init__(self, peers: Peers, progress: Progress) -> None:
        self._peers = peers
        self.progress = progress

    def send(
        self,
        node_id: str,
        *,
        volume_id: str,
        commit: Commit,
        source: Path,
        names: Iterable[bytes] | None,
        total_bytes: int = 0,
    ) -> int:
        """
        Return the bytes on the line after bringing files of *source* to a node.

        All, or *names*, each ended by a zero byte. *total_bytes* may be 0: not known.

        Raises:
            RemoraError: the node is not reached, its disk is too full, or rsync failed.

        """
        channel, is_ahead = self._peers.channel(node_id), commit.seq == AHEAD_SEQ
        ask_for_room(self._peers, node_id, volume_id, source, total_bytes)
        with tempfile.TemporaryFile() as file, tempfile.NamedTemporaryFile() as told:
            whole, path = names is None, Path(told.name)
            command = self._command(
                channel, volume_id, commit, source, path, whole=whole
            )
            number = self.progress.begin("sending", volume_id, node_id, total_bytes)
            had_bytes = total_bytes if is_ahead else None
            try:
                file.writelines(names or ())
                file.seek(0)
                run_with_progress(
                    command,
                    stall_s=_STALL_S,
                    on_line=partial(self._note_line, number, had_bytes),
                    stdin=file.fileno(),
                )
            except BackendError as error:
                # One file keeps no others back: the member tells what it lacks.
                if not _is_partial(error):
                    raise
                log.info("%s", error, extra=fields(node=node_id, volume_id=volume_id))
            finally:
                self.progress.end(number)
                carried_bytes = _carried_bytes(told)
                self.progress.count("sending", size_bytes=carried_bytes)
        return carried_bytes

    def _note_line(self, number: int, had_bytes: int | None, line: str) -> None:
        """Take note of *line*; end what is sent of a tree that *had_bytes* at first."""
        done_bytes = self.progress.note_line(number, line)
        if had_bytes is None or done_bytes <= 2 * had_bytes + _GROWTH_MAX_BYTES:
            return
        raise BackendError(
            f"the files have grown: {done_bytes >> 30} GiB were sent, and they had "
            f"{had_bytes >> 30} GiB at first",
            hint="it begins anew by itself; look for a file with large holes",
        )

    def _command(
        self,
        channel: PeerChannel,
        volume_id: str,
        commit: Commit,
        source: Path,
        log: Path,
        *,
        whole: bool,
    ) -> list[str]:
        ssh, to = self._peers.ssh, (channel.peer, channel.address)
        ssh.connect(*to)
        if not whole:
            return ssh.rsync_command(
                *to,
                source=source,
                volume=volume_id,
                commit=(commit.epoch, commit.seq),
                options=(*_OPTIONS, f"--log-file={log}"),
            )
        return ssh.rsync_tree_command(
            *to,
            source=source,
            volume=volume_id,
            epoch=commit.epoch,
            options=(*_OPTIONS, "--log-file=/log"),
            log=log,
        )

    def send_ahead(
        self,
        node_id: str,
        *,
        volume_id: str,
        epoch: int,
        source: Path,
        total_bytes: int,
    ) -> int:
        """
        Send as much of *source* as can be read while others write to it; see `send`.

        Raises:
            PeerUnreachableError, BackendError: as `send`; a part is no error.

        """
        return self.send(
            node_id,
            volume_id=volume_id,
            commit=Commit(epoch, AHEAD_SEQ),
            source=source,
            names=None,
            total_bytes=total_bytes,
        )


def _is_partial(error: BackendError) -> bool:
    told = any(f"exited{code}" in error.cause for code in _PARTIAL)
    # The commit brings such a file, or says which one it is.
    return told or isinstance(error, LeasedError)


def _carried_bytes(log: IO[bytes]) -> int:
    """
    Return the bytes sent that rsync's log tells of, 0 if it ended too early.

    A jailed rsync that others have taken over may have made it of any size.
    """
    log.seek(max(0, os.fstat(log.fileno()).st_size - _LOG_END_BYTES))
    match = _CARRIED.search(log.read(_LOG_END_BYTES))
    return int(match[1]) if match else 0
