"""
A share without an NFS server: in a node's namespace mount.nfs binds a directory.

Who answers is said by the link `server`, as an address is said by DNS. A thread answers
the RPC call by which the daemon asks whether there is a server.
"""

from __future__ import annotations

import shutil
import socket
import struct
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.protocol.node import Node

_SCRIPT = """#!/bin/sh
d="$(readlink -f {server})${{1#*:/x}}"
[ -d "$d" ] && exec mount --bind "$d" "$2"
echo "mount.nfs: mounting $1 failed, No such file or directory" >&2
exit 32
"""


class BoundShare:
    """The share `127.0.0.1:/x` of a node; directories by name stand for servers."""

    def __init__(self, *servers: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="rb", dir="/tmp"))
        for each in servers:
            (self.directory / each).mkdir()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._answer, daemon=True).start()
        port = self._listener.getsockname()[1]
        self.options = {
            "server": "127.0.0.1",
            "share": "/x",
            "mountOptions": f"port={port}",
        }

    def show(self, node: Node, server: str) -> None:
        """Let *server* answer *node*, whose daemon may have mounted another one."""
        link = self.directory / f"server-{node.directory.name}"
        script = link.with_suffix(".mount")
        if not script.exists():
            script.write_text(_SCRIPT.format(server=link))
            script.chmod(0o755)
            node.run("mount", "--bind", str(script), shutil.which("mount.nfs") or "")
        link.with_suffix(".new").symlink_to(server)
        link.with_suffix(".new").rename(link)
        for line in node.run("cat", "/proc/self/mountinfo").splitlines():
            if "/nfs/" in (point := line.split()[4]):
                node.run("umount", "-l", point)

    def close(self) -> None:
        """End the server; the daemons have ended."""
        self._listener.close()
        shutil.rmtree(self.directory)

    def _answer(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(OSError):
                    connection.settimeout(5)
                    asked = connection.recv(4096)
                    answer = asked[4:8] + struct.pack(">6I", 1, 0, 0, 0, 0, 0)
                    connection.sendall(
                        struct.pack(">I", 1 << 31 | len(answer)) + answer
                    )
