"""
A stand-in for another volume plugin, as an engine sees it: names, mounts, removal.

As a program, `other_plugin NAME MOUNTPOINT keeps|deletes`: it answers at the socket of
plugin NAME. `{name}` in MOUNTPOINT stands for a volume's name; the directory is taken
or made, as that plugin lays out its storage. `deletes`: `docker volume rm` removes the
bytes, otherwise the name, which is kept in `NAMES` over its end.
"""

from __future__ import annotations

import json
import socketserver
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final

SOCKETS: Final = Path("/run/docker/plugins")
NAMES: Final = Path("/var/lib/other-plugin")
_DELETE_S: Final = 60


class OtherPlugin:
    """What it answers to each call of the engine."""

    def __init__(self, plugin: str, mountpoint: str, *, deletes: bool) -> None:
        self._names = NAMES / plugin
        self._mountpoint = mountpoint
        self._deletes = deletes
        self._names.mkdir(parents=True, exist_ok=True)

    def _path(self, name: str) -> Path:
        return Path(self._mountpoint.format(name=name))

    def answer(self, method: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to `/VolumeDriver.METHOD`, or to Activate."""
        name = asked.get("Name", "")
        if method == "Plugin.Activate":
            return {"Implements": ["VolumeDriver"]}
        if method == "VolumeDriver.Create":
            (self._names / name).touch()
            self._path(name).mkdir(parents=True, exist_ok=True)
        elif method == "VolumeDriver.Capabilities":
            return {"Capabilities": {"Scope": "local"}}
        elif method == "VolumeDriver.List":
            return {"Volumes": []}
        elif not (self._names / name).exists():
            return {"Err": f"no volume {name}"}
        elif method == "VolumeDriver.Get":
            return {"Volume": {"Name": name, "Mountpoint": str(self._path(name))}}
        elif method in ("VolumeDriver.Mount", "VolumeDriver.Path"):
            return {"Mountpoint": str(self._path(name))}
        elif method == "VolumeDriver.Remove":
            (self._names / name).unlink()
            if self._deletes:
                # What it lies in may be a disk that is mounted there.
                find = ["find", str(self._path(name)), "-mindepth", "1", "-delete"]
                subprocess.run(find, check=True, timeout=_DELETE_S)
        return {}


class _Server(socketserver.ThreadingUnixStreamServer):
    plugin: OtherPlugin


class _Handler(BaseHTTPRequestHandler):
    # One call for each connection: so another one at this socket takes over at once.
    server: _Server

    def do_POST(self) -> None:
        """Answer one call."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.server.plugin.answer(self.path[1:], json.loads(body or b"{}"))
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def address_string(self) -> str:
        """Return who asked."""
        return "engine"


def main() -> None:
    """Answer until killed."""
    name, mountpoint, removal = sys.argv[1:]
    socket = SOCKETS / f"{name}.sock"
    socket.parent.mkdir(parents=True, exist_ok=True)
    socket.unlink(missing_ok=True)
    with _Server(str(socket), _Handler) as server:
        server.plugin = OtherPlugin(name, mountpoint, deletes=removal == "deletes")
        server.serve_forever()


if __name__ == "__main__":
    main()
