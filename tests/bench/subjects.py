"""What is measured: our daemon as users start it, and a peer, in one host."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.daemon import PLUGIN_SOCKET, Daemon, UnixConnection
from tests.support.engine import SOCKET as ENGINE_SOCKET
from tests.support.host import REPOSITORY, end_process, wait_until

from .machine import program

if TYPE_CHECKING:
    from tests.support.host import Host

RCLONE_SOCKET = "/run/docker/plugins/rclone.sock"
NO_OP_SOCKET = "/run/docker/plugins/no-op.sock"
CALL_DEADLINE_S = 60.0
START_DEADLINE_S = 30.0
END_DEADLINE_S = 30.0
RETRY_S = 0.001
CONTENT_LENGTH = re.compile(
    rb"^[^{]*?\r\ncontent-length: *(\d+)\r\n(?:[^{]*?\r\n)?\r\n", re.IGNORECASE
)
LAST_CHUNK = b"\r\n0\r\n\r\n"


def call(path: Path, method: str, body: Any = None) -> dict[str, Any]:
    """
    Return the answer to one POST on the plugin socket *path*, by a new connection.

    Plain socket calls: a client library's own time would be a third of the result.
    """
    content = b"" if body is None else json.dumps(body).encode()
    answer = exchange(path, request(method, content))
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def request(method: str, content: bytes) -> bytes:
    """Return the bytes of a request as the engine writes it."""
    return (
        f"POST /{method} HTTP/1.1\r\nHost: plugin.moby.localhost\r\n"
        "User-Agent: Go-http-client/1.1\r\n"
        f"Content-Length: {len(content)}\r\n"
        "Accept: application/vnd.docker.plugins.v1.2+json\r\n\r\n"
    ).encode() + content


def exchange(path: Path, sent: bytes) -> bytes:
    """
    Return the whole answer to *sent*, by a new connection to *path*.

    Like the engine it takes the announced length for the end of the answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(CALL_DEADLINE_S)
        connection.connect(str(path))
        connection.sendall(sent)
        answer = b""
        end = -1
        while end < 0 or len(answer) < end:
            part = connection.recv(1 << 20)
            if not part:
                break
            answer += part
            if end < 0 and (found := CONTENT_LENGTH.search(answer)):
                end = found.end() + int(found[1])
            elif end < 0 and answer.endswith(LAST_CHUNK):
                break
    return answer


def timed_call_ms(path: Path, sent: bytes) -> float:
    """Return how long `exchange` took; an answer with an error is an error."""
    start = time.perf_counter()
    answer = exchange(path, sent)
    duration_ms = (time.perf_counter() - start) * 1000
    head = answer[:256]
    if not head.startswith(b"HTTP/1.1 200") or b'{"Err":"' in head:
        raise AssertionError(f"{sent!r}: {answer[-500:]!r}")
    return duration_ms


def await_answer(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Return when Activate is answered on *path*."""
    sent = request("Plugin.Activate", b"")
    end = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if b"VolumeDriver" in exchange(path, sent):
                return
        except OSError:
            time.sleep(RETRY_S)
    raise AssertionError(f"no answer from {process.args}")


class InstalledDaemon(Daemon):
    """`remora serve` by the program that a user calls, with its own settings."""

    def __init__(self, host: Host, **settings: str) -> None:
        super().__init__(host, **settings)
        self.socket = host.path(PLUGIN_SOCKET)

    def launch(self) -> None:
        """Start the daemon without waiting for it."""
        if self._process is not None:
            raise RuntimeError("the daemon is running")
        ours = {f"REMORA_{key.upper()}": text for key, text in self.settings.items()}
        # The code that is measured is this tree, whatever is installed.
        ours["PYTHONPATH"] = str(REPOSITORY)
        self._process = self.host.popen(
            [str(program("remora")), "serve"],
            env=ours,
            log=self.log,
        )

    def timed_start_ms(self) -> float:
        """Return the time from the start of the process to its first answer."""
        start = time.perf_counter()
        self.launch()
        await_answer(self.socket, self._process)
        return (time.perf_counter() - start) * 1000


class Rclone:
    """`rclone serve docker`: Debian's other volume plugin, on local directories."""

    def __init__(self, host: Host, directory: str) -> None:
        """*directory* is where it keeps everything, as the host sees it."""
        self.host = host
        self.socket = host.path(RCLONE_SOCKET)
        self.log = host.log_path("rclone")
        self._home = f"{directory}/rclone"
        host.path(f"{self._home}/data").mkdir(parents=True)
        host.path(f"{self._home}/rclone.conf").touch()
        self.options = {"remote": f":local:{self._home}/data"}
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def missing() -> str:
        """Return what this machine lacks for it, or ''."""
        for name in ("rclone", "fusermount3"):
            if shutil.which(name) is None:
                return name
        return "" if os.access("/dev/fuse", os.R_OK | os.W_OK) else "/dev/fuse"

    @property
    def pid(self) -> int:
        """The peer's process id."""
        if self._process is None:
            raise RuntimeError("rclone is not running")
        return self._process.pid

    def timed_start_ms(self) -> float:
        """Return the time from the start of the process to its first answer."""
        start = time.perf_counter()
        self._process = self.host.popen(
            [
                *("rclone", "--config", f"{self._home}/rclone.conf"),
                *("--cache-dir", f"{self._home}/cache"),
                *("serve", "docker", "--socket-addr", RCLONE_SOCKET),
                *("--base-dir", f"{self._home}/mounts"),
            ],
            log=self.log,
        )
        await_answer(self.socket, self._process)
        return (time.perf_counter() - start) * 1000

    def stop(self) -> None:
        """End the peer."""
        process, self._process = self._process, None
        if process is None:
            raise RuntimeError("rclone is not running")
        end_process(process, signal_number=signal.SIGTERM, timeout_s=END_DEADLINE_S)
        self.host.forget(process)
        # It leaves its socket behind; a dead one costs the engine 15 s a command.
        self.socket.unlink(missing_ok=True)


class NoOp:
    """A plugin that does nothing; see no_op_plugin.py."""

    def __init__(self, host: Host, directory: str) -> None:
        """Let all its volumes be one directory below *directory*."""
        self.host = host
        self.socket = host.path(NO_OP_SOCKET)
        self._volumes = f"{directory}/no-op"
        self.options: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def timed_start_ms(self) -> float:
        """Return the time from the start of the process to its first answer."""
        self.host.path(self._volumes).mkdir(exist_ok=True)
        start = time.perf_counter()
        program = str(Path(__file__).with_name("no_op_plugin.py"))
        self._process = self.host.popen(
            [sys.executable, "-I", "-S", program, NO_OP_SOCKET, self._volumes],
            log=self.host.log_path("no-op"),
        )
        await_answer(self.socket, self._process)
        return (time.perf_counter() - start) * 1000

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is None:
            raise RuntimeError("the plugin is not running")
        end_process(process, signal_number=signal.SIGTERM, timeout_s=END_DEADLINE_S)
        self.host.forget(process)
        self.socket.unlink(missing_ok=True)


class EngineApi:
    """The engine's HTTP interface over one kept connection, as a client library's."""

    def __init__(self, host: Host) -> None:
        self._connection = UnixConnection(host.path(ENGINE_SOCKET), CALL_DEADLINE_S)

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Return the decoded answer."""
        content = b"" if body is None else json.dumps(body).encode()
        self._connection.request(
            method, path, content, {"Content-Type": "application/json"}
        )
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise AssertionError(f"{method} {path}: {answer.status} {text!r}")
        return json.loads(text) if text.strip() else None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def memory_mb(pid: int) -> tuple[float, float]:
    """Return the (Rss, Pss) of process *pid* in 10^6 bytes."""
    kib = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in {"Rss", "Pss"}:
            kib[key] = int(value.split()[0])
    return kib["Rss"] * 1024 / 1e6, kib["Pss"] * 1024 / 1e6


def settle(seconds: float) -> None:
    """Let what a start or a burst left behind (first passes, threads) finish."""
    end = time.monotonic() + seconds
    wait_until(
        lambda: time.monotonic() >= end, timeout_s=seconds + 1, what="time passes"
    )
