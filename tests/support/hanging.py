"""An SSH server that lets anybody in, and stops for ever at one step of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import paramiko

from tests.support.peers import PORT

STEPS = ("greeting", "keys", "login", "session", "command")
_GOES_ON_AFTER_S = 60.0


class Transport(paramiko.Transport):
    """Knows the one key exchange that our client offers, by the name of its RFC."""

    _kex_info: ClassVar = {
        **paramiko.Transport._kex_info,
        "curve25519-sha256": paramiko.kex_curve25519.KexCurve25519,
    }
    _preferred_kex = ("curve25519-sha256",)


class HangingServer(paramiko.ServerInterface):
    """Lets anybody in, and stops for ever at *step*."""

    def __init__(self, step: str, done: threading.Event) -> None:
        self._step = step
        self._done = done
        self.reached = threading.Event()

    def _at(self, step: str) -> None:
        if step == self._step:
            self.reached.set()
            self._done.wait(_GOES_ON_AFTER_S)

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        self._at("login")
        return paramiko.common.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        self._at("session")
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(
        self, channel: paramiko.Channel, command: bytes
    ) -> bool:
        self._at("command")
        return True


@contextmanager
def hanging(address: str, step: str, host_key: Path) -> Iterator[threading.Event]:
    """Yield what is set when somebody has come to *step*, where nothing goes on."""
    done = threading.Event()
    server = HangingServer(step, done)
    open_ = []

    def serve() -> None:
        with suppress(OSError, EOFError, paramiko.SSHException):
            while True:
                raw, _ = listener.accept()
                open_.append(raw)
                if step in ("greeting", "keys"):
                    raw.sendall(b"SSH-2.0-hangs\r\n" if step == "keys" else b"")
                    server.reached.set()
                    continue
                transport = Transport(raw)
                open_.append(transport)
                transport.add_server_key(paramiko.Ed25519Key(filename=str(host_key)))
                transport.start_server(server=server, event=threading.Event())

    with socket.create_server((address, PORT)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.reached
        finally:
            done.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for each in open_:
                each.close()
