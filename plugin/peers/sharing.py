"""
The ssh that reaches other nodes: one program with one set of options, two connections.

Transfers share one of them: over an open connection a small sync takes a quarter of the
time that it takes over a new one. Requests have the other. Source: ssh_config(5).
"""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Final

from backends.errors import BackendError, DeadlineError
from backends.system import files
from backends.system.jail import Shown
from backends.system.jailed import FROM_BESIDE, TO_BESIDE
from backends.system.programs import in_jail
from backends.system.run import run
from plugin.errors import ConfigError
from plugin.peers.authorization import KNOWN_HOSTS, NODE_KEY
from plugin.peers.peer import Peer
from plugin.peers.receive import (
    CONTROL,
    NAMES_OPTIONS,
    RECEIVE,
    RSYNC_OPTIONS,
    TREE_OPTIONS,
)

# A socket's path has 107 bytes (unix(7)); ssh adds a dot and 16 characters at first.
_SOCKET_PATH_LENGTH_MAX: Final = 107 - 17
# Enough of a random id to be the only one.
_SOCKET_NAME_LENGTH: Final = 16
_EXIT_DEADLINE_S: Final = 5.0
_CONNECT_DEADLINE_S: Final = 20.0
_CONNECT_WITHIN_S: Final = 5.0
# In place of ssh: one says what it is asked to run (after the address) and fails. The
# other carries the bytes, to and from who was started beside a jail. It ends when that
# one does; sh gives a part in the background an empty input, so the other has a copy.
_TELLING: Final = ("sh", "-c", 'shift; echo "$*" >&2; exit 1', "sh")
_PIPING: Final = (
    *("sh", "-c"),
    f"exec 7<&0; cat <&7 >&{TO_BESIDE} & exec cat <&{FROM_BESIDE} {TO_BESIDE}>&-",
)
# The sequence that no commit has: files for the tree itself, before there is a commit.
AHEAD_SEQ: Final = 0
_OPTIONS: Final = (
    "BatchMode=yes",
    "IdentitiesOnly=yes",
    "IdentityAgent=none",
    "PreferredAuthentications=publickey",
    "GlobalKnownHostsFile=none",
    "StrictHostKeyChecking=yes",
    "UpdateHostKeys=no",
    "HostKeyAlgorithms=ssh-ed25519",
    "PubkeyAcceptedAlgorithms=ssh-ed25519",
    "Ciphers=aes128-gcm@openssh.com,aes256-gcm@openssh.com",
    "KexAlgorithms=curve25519-sha256",
    "Compression=no",
    "ClearAllForwardings=yes",
    "EscapeChar=none",
    "LogLevel=ERROR",
    "User=root",
    "ConnectTimeout=5",
    # A node that is stopped is given up after six seconds, in a transfer as well.
    "ServerAliveInterval=2",
    "ServerAliveCountMax=3",
    "ControlMaster=auto",
    "ControlPersist=60",
)


class SharedSsh:
    """
    The ssh commands; *directory* has keys, *sockets* is a directory for sockets.

    Each rsync sends at most *bandwidth_limit_bytes* in a second (0: no limit) and runs
    with *nice*, from 0 to 19.
    """

    def __init__(
        self,
        directory: Path,
        *,
        sockets: Path,
        bandwidth_limit_bytes: int = 0,
        nice: int = 0,
    ) -> None:
        """
        Make *sockets*.

        Raises:
            ConfigError: its path is too long for sockets, or it cannot be made.

        """
        length = len(str(sockets).encode()) + 1 + _SOCKET_NAME_LENGTH
        if length > _SOCKET_PATH_LENGTH_MAX:
            too_long = length - _SOCKET_PATH_LENGTH_MAX
            raise ConfigError(
                [f"{sockets} is {too_long} bytes too long for ssh's sockets"],
                source="control_socket",
            )
        self._directory = directory
        self._sockets = sockets
        self._limit_bytes = bandwidth_limit_bytes
        self._nice = nice
        # Who opens the connection to a node; nodes are few.
        self._connecting: defaultdict[str, Lock] = defaultdict(Lock)
        try:
            files.keep_private(sockets)
        except OSError as error:
            raise ConfigError(
                [f"cannot make {sockets}: {error.strerror}"], source="control_socket"
            ) from error

    def command(self, peer: Peer) -> list[str]:
        """Return the ssh that reaches *peer*, but for the address and the command."""
        files_options = (
            f"UserKnownHostsFile={_literal(self._directory / KNOWN_HOSTS)}",
            f"IdentityFile={_literal(self._directory / NODE_KEY)}",
            f"ControlPath={_literal(self._socket(peer.id))}",
            f"HostKeyAlias={peer.alias}",
            f"Port={peer.port}",
        )
        command = ["ssh", "-F", "none"]
        for option in (*files_options, *_OPTIONS):
            command += ["-o", option]
        return command

    def control_command(self, peer: Peer, address: str) -> list[str]:
        """
        Return the ssh that carries requests to *peer*: an empty line, then answers.

        ssh prints the line when the node has let us in. It does not share: on a slow
        line a request would wait behind all that a transfer has put into the socket,
        and the shared connection has the niceness of the rsync that opened it.
        """
        own = ("-S", "none", "-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo")
        return [*self.command(peer), *own, address, CONTROL]

    def rsync_command(
        self,
        peer: Peer,
        address: str,
        *,
        source: Path,
        volume: str,
        commit: tuple[int, int],
        options: Sequence[str] = (),
    ) -> list[str]:
        """
        Return the rsync that sends files of *source*, named on its input, to *peer*.

        *options* are for this side alone. Names end with a zero byte. The other node
        decides where the files go.
        """
        rsync = self._rsync((*options, *NAMES_OPTIONS), self.command(peer))
        return [*self._nicely(), *rsync, *_ends(source, address, volume, commit)]

    def rsync_tree_command(
        self,
        peer: Peer,
        address: str,
        *,
        source: Path,
        volume: str,
        epoch: int,
        options: Sequence[str] = (),
        log: Path | None = None,
    ) -> list[str]:
        """
        Return the rsync that sends all of *source*, to which others may write.

        It works in a jail, where *source* cannot be written to, and *log* is `/log`.
        Its ssh is outside, with the one command that such a transfer has: rsync has two
        pipes to it, and nothing else of the machine's ssh.

        Raises:
            BackendError, DeadlineError: rsync does not say what it wants to run there.

        """
        ends = _ends(Path("/source"), address, volume, (epoch, AHEAD_SEQ))
        receive = _receiving(self._rsync(TREE_OPTIONS, _TELLING), ends)
        shown = [Shown("source", str(source.parent), source.name)]
        if log is not None:
            place = str(log.parent), log.name
            shown.append(Shown("log", *place, writable=True, is_file=True))
        command = in_jail(
            [*self._rsync((*options, *TREE_OPTIONS), _PIPING), *ends],
            *shown,
            beside=[*self.command(peer), address, receive],
        )
        return [*self._nicely(), *command]

    def connect(self, peer: Peer, address: str) -> None:
        """
        Make the connection to *peer* that transfers share, if there is none.

        If that fails, a transfer makes one by itself. Many that begin at once would all
        do so; the other node's sshd takes few at a time from one address.
        """
        socket, connecting = self._socket(peer.id), self._connecting[peer.id]
        if socket.exists() or not connecting.acquire(timeout=_CONNECT_WITHIN_S):
            return
        try:
            if not socket.exists():
                command = [*self._nicely(), *self.command(peer), "-fN", address]
                run(command, deadline_s=_CONNECT_DEADLINE_S)
        except (BackendError, DeadlineError):
            pass  # the transfer's own ssh says why
        finally:
            connecting.release()

    def _rsync(self, options: Sequence[str], ssh: Sequence[str]) -> list[str]:
        # rsync counts in KiB.
        limit = [f"--bwlimit={self._limit_bytes // 1024}"] if self._limit_bytes else []
        return ["rsync", *options, *RSYNC_OPTIONS, *limit, f"--rsh={shlex.join(ssh)}"]

    def _nicely(self) -> list[str]:
        # The priority of its disk access follows from this. Source: ioprio_set(2).
        return ["nice", "-n", str(self._nice)] if self._nice else []

    def close(self, peer: Peer) -> None:
        """End the connection to *peer*, if there is one, with the transfers over it."""
        if self._socket(peer.id).exists():
            try:
                run(
                    [*self.command(peer), "-O", "exit", peer.alias],
                    deadline_s=_EXIT_DEADLINE_S,
                    allowed=(0, 255),  # it has ended meanwhile
                )
            except BackendError:
                return  # it ends by itself, a minute after its last transfer

    def _socket(self, node_id: str) -> Path:
        return self._sockets / node_id.replace("-", "")[:_SOCKET_NAME_LENGTH]


def _ends(
    source: Path, address: str, volume: str, commit: tuple[int, int]
) -> list[str]:
    """Return what goes where, as rsync takes it."""
    epoch, seq = commit
    host = f"[{address}]" if ":" in address else address
    receive = f"--rsync-path=remora receive {volume} {epoch} {seq}"
    return [receive, "--", f"{source}/", f"{host}:."]


def _receiving(rsync: Sequence[str], ends: Sequence[str]) -> str:
    """Return the command that *rsync*, which tells it, wants the other node to run."""
    told = run(
        [*rsync, *ends], deadline_s=_CONNECT_DEADLINE_S, allowed=range(1, 256)
    ).errors
    for line in told.splitlines():
        if RECEIVE.fullmatch(line):
            return line
    raise BackendError(f"rsync asks for no transfer that we know: {told[:200]!r}")


def _literal(path: Path) -> str:
    """Return *path* as ssh's configuration takes it: quoted, no letter replaced."""
    return f'"{str(path).replace("%", "%%")}"'
