"""One node's way to etcd, which a test can cut without etcd or other nodes noticing."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from urllib.parse import urlsplit

from tests.support.etcd import Cluster, new_address

_CHUNK = 1 << 16


class Link:
    """Passes connections on to the first member of *server*, while it is not cut."""

    def __init__(self, server: Cluster) -> None:
        target = urlsplit(server.endpoints[0])
        assert target.hostname is not None
        assert target.port is not None
        self._target = (target.hostname, target.port)
        self._listener = socket.create_server((new_address(), 0))
        address, port = self._listener.getsockname()
        self.endpoints = (f"http://{address}:{port}",)
        self._whole = True
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection, and each new one at once."""
        self._whole = False
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole = True

    def close(self) -> None:
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(near,), daemon=True).start()

    def _pass(self, near: socket.socket) -> None:
        with near, suppress(OSError):
            if not self._whole:
                return
            with socket.create_connection(self._target, 5) as far:
                far.settimeout(None)
                with self._lock:
                    self._open |= {near, far}
                if not self._whole:
                    self.cut()
                back = threading.Thread(target=_copy, args=(far, near), daemon=True)
                back.start()
                _copy(near, far)
                back.join()
                with self._lock:
                    self._open -= {near, far}


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until one of the two ends, and then end the other."""
    with suppress(OSError):
        while chunk := source.recv(_CHUNK):
            target.sendall(chunk)
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
