"""
A client as small as can be: bytes in, bytes out, and what an engine sends.

Nothing here knows how our server works; every byte of a request is written out, so
that requests no library would send can be sent as well.
"""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One parsed HTTP answer; header names are lower case."""

    version: str
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the decoded body."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The text of `Err`, "" if the call succeeded."""
        return str(self.json().get("Err", ""))


def connect(path: Path, timeout_s: float = TIMEOUT_S) -> socket.socket:
    """Return a socket connected to *path*, waiting for room in its queue."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A socket with Python's time-out would get EAGAIN from a full queue instead.
    limit = struct.pack("ll", int(timeout_s) + 1, 0)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    try:
        client.connect(str(path))
    except OSError:
        client.close()
        raise
    client.settimeout(timeout_s)
    return client


def read_all(client: socket.socket) -> bytes:
    """Return what comes until the peer closes; a reset ends it as well."""
    received = b""
    while True:
        try:
            chunk = client.recv(65536)
        except ConnectionResetError:
            return received
        if not chunk:
            return received
        received += chunk


def exchange(
    path: Path, sent: bytes, *, end: bool = False, timeout_s: float = TIMEOUT_S
) -> bytes:
    """
    Return every byte that the server answers to *sent*.

    With *end* we say that nothing more will come. A server that refuses a request
    while it is still being sent is no error: its answer is read all the same.
    """
    with connect(path, timeout_s) as client:
        try:
            client.sendall(sent)
            if end:
                client.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return read_all(client)


def parse(received: bytes) -> Answer:
    """Return *received* as the one answer that it must be."""
    head, separator, body = received.partition(b"\r\n\r\n")
    assert separator, f"no HTTP answer: {received[:500]!r}"
    status_line, *lines = head.decode("latin-1").split("\r\n")
    version, status, _ = status_line.split(" ", 2)
    headers = {}
    for line in lines:
        name, _, value = line.partition(": ")
        assert name.lower() not in headers, f"twice: {line}"
        headers[name.lower()] = value
    length = int(headers["content-length"])
    assert len(body) == length, f"{len(body)} bytes, promised {length}"
    return Answer(version, int(status), headers, body)


def engine_request(call: str, body: bytes, *, host: str = "") -> bytes:
    """
    Return the request that dockerd sends for *call* ("VolumeDriver.Get").

    Up to 23.0.6 and 24.0.4 its Host is empty, later it is `plugin.moby.localhost`; a
    Content-Type it never sends.
    """
    return (
        f"POST /{call} HTTP/1.1\r\n"
        f"Host: {host}\r\n"
        "User-Agent: Go-http-client/1.1\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Accept: application/vnd.docker.plugins.v1.2+json\r\n"
        "\r\n"
    ).encode() + body


def go_json(value: object) -> bytes:
    """Return *value* as Go's json.Encoder writes it: compact, with a newline."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def control_request(method: str, target: str, body: bytes = b"") -> bytes:
    """Return a request for the control socket."""
    return (
        f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
