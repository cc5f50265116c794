"""
A volume plugin that does nothing: names in memory, one directory for all volumes.

What an engine takes with it is the least that it takes with any plugin. Arguments: the
socket and the directory. It keeps its connections, as a Go server does.
"""

from __future__ import annotations

import json
import socketserver
import sys

names: set[str] = set()


class Handler(socketserver.StreamRequestHandler):
    """Answers the calls of one connection."""

    def handle(self) -> None:
        """Answer until the engine hangs up."""
        while line := self.rfile.readline():
            method = line.split()[1].rpartition(b".")[2].decode()
            length = 0
            while (header := self.rfile.readline()) not in (b"\r\n", b""):
                key, _, value = header.partition(b":")
                if key.lower() == b"content-length":
                    length = int(value)
            body = self.rfile.read(length)
            content = json.dumps(answer(method, json.loads(body or b"{}"))).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n\r\n"
            self.wfile.write(head.encode() + content)


def answer(method: str, call: dict[str, str]) -> dict[str, object]:
    """Return the answer to one call."""
    name = call.get("Name", "")
    if method == "Activate":
        return {"Implements": ["VolumeDriver"]}
    if method == "Capabilities":
        return {"Capabilities": {"Scope": "local"}}
    if method == "Create":
        names.add(name)
    if method == "Remove":
        names.discard(name)
    if method == "Get":
        return {"Volume": {"Name": name}} if name in names else {"Err": "not found"}
    if method == "List":
        return {"Volumes": [{"Name": each} for each in names]}
    if method in {"Mount", "Path"}:
        return {"Mountpoint": sys.argv[2]}
    return {}


class Server(socketserver.ThreadingUnixStreamServer):
    """One thread a connection."""

    daemon_threads = True


if __name__ == "__main__":
    Server(sys.argv[1], Handler).serve_forever()
