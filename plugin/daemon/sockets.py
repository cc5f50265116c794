"""
The daemon's sockets: inherited from systemd, or bound here.

Source: unix(7), sd_listen_fds(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from plugin.errors import ConfigError

_FIRST_INHERITED: Final = 3
_BACKLOG: Final = 1024
_PROBE_TIMEOUT_S: Final = 2.0


def inherited_socket(environment: Mapping[str, str]) -> socket.socket | None:
    """
    Return the listening socket that systemd handed over, None if it gave none.

    Raises:
        ConfigError: it handed over something else.

    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = environment.get("LISTEN_FDS", "0")
    if count == "0":
        return None
    if count != "1":
        raise ConfigError(
            [f"{count} sockets were handed over; remora.socket has one"],
            source="socket activation",
        )
    handed = socket.socket(fileno=_FIRST_INHERITED)
    if handed.family != socket.AF_UNIX or handed.type != socket.SOCK_STREAM:
        raise ConfigError(
            ["the socket is not a Unix stream socket (ListenStream=/…)"],
            source="socket activation",
        )
    os.set_inheritable(_FIRST_INHERITED, False)
    return handed


def bind_socket(path: Path) -> socket.socket:
    """
    Return a listening socket at *path*, mode 0600.

    A socket file without a listener, left by a killed daemon, is replaced.

    Raises:
        ConfigError: a daemon listens there, or *path* is no socket or not writable.

    """
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _clear_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise ConfigError(
            [f"cannot listen at {path}: {error.strerror}"], source="sockets"
        ) from error
    return listener


def remove_socket(path: Path) -> None:
    """
    Unlink *path*; one that is gone is no error.

    A dead socket file would cost the engine 15 s at every volume command.
    """
    with suppress(FileNotFoundError):
        path.unlink()


def _clear_stale(path: Path) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_socket():
        raise ConfigError([f"{path} exists and is not a socket"], source="sockets")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            remove_socket(path)
        else:
            raise ConfigError([f"another process listens at {path}"], source="sockets")


def loopback_socket(address: str) -> socket.socket:
    """
    Return a socket that listens at *address*, HOST:PORT of this machine.

    Raises:
        ConfigError: it cannot.

    """
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), int(port)), family=family)
    except OSError as error:
        raise ConfigError(
            [f"metrics_address: cannot listen at {address}: {error.strerror}"],
            source="[daemon]",
        ) from error
