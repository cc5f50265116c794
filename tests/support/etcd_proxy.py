"""A gateway in front of an etcd member that loses, holds and changes what tests say."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import urllib3

Body = dict[str, Any]
# Answers at once; the client must not wait for its time-out in each test.
LOST: Final = None


@dataclass
class Proxy:
    """``rule`` answers a request: what the client gets, or `LOST`."""

    target: str
    rule: Callable[[str, Body], Body | None] = field(init=False)
    requests: list[tuple[str, Body]] = field(default_factory=list)
    endpoint: str = ""

    def __post_init__(self) -> None:
        self.rule = self.forward

    def forward(self, path: str, body: Body) -> Body:
        """Return what the member answers; the last line of it, if they are many."""
        answer = urllib3.request(
            "POST", self.target + path, body=json.dumps(body), timeout=10, retries=False
        )
        content: Body = json.loads(answer.data)
        if answer.status != 200:
            content["test_status"] = answer.status
        return content

    def writes(self) -> list[Body]:
        """Return the transactions that write records, without those about slots."""
        return [
            body
            for path, body in self.requests
            if path == "/v3/kv/txn" and len(body.get("success", [])) > 1
        ]


@contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """Yield a proxy of the member at *target*."""
    made = Proxy(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = json.loads(self.rfile.read(length))
            made.requests.append((self.path, body))
            answer = made.rule(self.path, body)
            if answer is LOST:
                self.close_connection = True
                return
            content = json.dumps(answer).encode()
            with contextlib.suppress(OSError):
                self.send_response(answer.pop("test_status", 200))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
