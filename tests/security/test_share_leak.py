"""A server of the caller's own that hangs takes one call's time, and no more."""

from __future__ import annotations

import socket
import struct
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.base import Volume
from backends.nfs import mounting
from backends.nfs.backend import NfsBackend
from backends.nfs.errors import NfsTimeoutError


@pytest.fixture
def port() -> Iterator[int]:
    """Yield where somebody answers NFS's NULL, and nothing after that."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    asked = connection.recv(100)
                    if len(asked) >= 8:
                        accepted = struct.pack(">5I", 1, 0, 0, 0, 0)
                        length = struct.pack(">I", 0x80000000 | 24)
                        connection.sendall(length + asked[4:8] + accepted)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_shares_that_were_never_mounted_are_not_watched(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: object, **__: object) -> None:
        raise NfsTimeoutError("mount.nfs did not end", "x")

    # It would take mount.nfs minutes.
    monkeypatch.setattr(mounting, "mount", hang)
    backend = NfsBackend(tmp_path, node="n")
    try:
        for number in range(10):
            asked = {
                "server": "127.0.0.1",
                "share": f"/x{number}",
                "mountOptions": f"port={port}",
            }
            options = backend.merge_options(
                backend.default_options(), backend.parse_options(asked)
            )
            volume = Volume(
                id=str(uuid.uuid4()),
                name=f"v{number}",
                options=options,
                created_at="",
                requested={},
            )
            with pytest.raises(NfsTimeoutError):
                backend.create(volume, deadline_s=5)
        assert backend._shares.watched() == []
    finally:
        backend.close()
