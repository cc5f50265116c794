"""
Many calls on the plugin's socket of a node, made inside it by several threads.

Over the serial line a call takes 30 ms; here it takes what it takes. As a program it
reads `{"threads": N, "chains": [[[METHOD, BODY], ...], ...]}` and prints for each chain
`[[ANSWER, MS], ...]`: the calls of a chain follow one another, chains run side by side.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.support.host import PYTHON_ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.lab.node import Node

PLUGIN_SOCKET = "/run/docker/plugins/remora.sock"
CALL_DEADLINE_S = 120.0

Call = tuple[str, dict[str, Any]]


class Answer(NamedTuple):
    """What a call was answered, and how long that took."""

    body: dict[str, Any]
    took_ms: float


def call_inside(
    node: Node,
    chains: Sequence[Sequence[Call]],
    *,
    threads: int,
    timeout_s: float = CALL_DEADLINE_S,
) -> list[list[Answer]]:
    """Return the answers to every call of *chains*, made in *node*."""
    asked = json.dumps({"threads": threads, "chains": chains})
    done = node.run(
        [sys.executable, "-m", "tests.lab.nfs_calls"],
        stdin=asked.encode(),
        env=PYTHON_ENVIRONMENT,
        timeout_s=timeout_s,
    )
    return [[Answer(*each) for each in chain] for chain in json.loads(done.stdout)]


def timed_call(method: str, body: dict[str, Any]) -> Answer:
    """Return the answer to one call by a new connection, as the engine makes it."""
    began = time.perf_counter()
    connection = http.client.HTTPConnection("localhost", timeout=CALL_DEADLINE_S)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(CALL_DEADLINE_S)
        connection.sock.connect(PLUGIN_SOCKET)
        connection.request("POST", f"/VolumeDriver.{method}", json.dumps(body))
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return Answer(answer, (time.perf_counter() - began) * 1000)


def main() -> None:
    """Make the calls that standard input asks for."""
    asked = json.load(sys.stdin)

    def follow(chain: list[Call]) -> list[Answer]:
        return [timed_call(method, body) for method, body in chain]

    with concurrent.futures.ThreadPoolExecutor(asked["threads"]) as pool:
        json.dump(list(pool.map(follow, asked["chains"])), sys.stdout)


if __name__ == "__main__":
    main()
