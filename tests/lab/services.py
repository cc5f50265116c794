"""The daemon and a Docker Engine in a node."""

from __future__ import annotations

import http.client
import io
import json
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tests.support import images
from tests.support.daemon import (
    CONTROL_SOCKET,
    PLUGIN_SOCKET,
    PROGRAM,
)
from tests.support.host import PYTHON_ENVIRONMENT, checked, wait_until
from tests.support.tuning import tuned

from .commands import text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .commands import NodeProcess
    from .node import Node

START_DEADLINE_S = 90.0
STOP_DEADLINE_S = 60.0
ABORT_WAIT_S = 5.0
SHOW_PROCESSES = "ps --ppid 2 -p 2 --deselect -Lo pid,ppid,tid,stat,wchan:24,args"
ENGINE_SOCKET = "/run/docker.sock"
# Debian's own, not one that somebody put below /usr/local.
DOCKERD, DOCKER = "/usr/sbin/dockerd", "/usr/bin/docker"


class Service:
    """A program that runs in a node until it is stopped or the node's power fails."""

    def __init__(self, node: Node, name: str) -> None:
        self.node = node
        self.name = name
        self.log = node.log_path(name)
        self._process: NodeProcess | None = None

    @property
    def running(self) -> bool:
        """Whether it was started in this boot of the node and has not ended."""
        try:
            return self._process is not None and self._process.poll() is None
        except ConnectionError:
            return False

    @property
    def pid(self) -> int:
        """Its process id in the node."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    def stop(self, timeout_s: float = STOP_DEADLINE_S) -> int:
        """Return the exit code after SIGTERM."""
        return self._end(signal.SIGTERM, timeout_s)

    def kill(self) -> None:
        """End it with SIGKILL; what it started lives on."""
        self._end(signal.SIGKILL, STOP_DEADLINE_S)

    def signal(self, number: int) -> None:
        """Send it, and not what it started, the signal *number*."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        self._process.send_signal(number, group=False)

    def freeze(self) -> None:
        """Stop it in the middle of whatever it does; its connections stay."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run on, if it was frozen."""
        self.signal(signal.SIGCONT)

    def start(self) -> None:
        """Start it, with the arguments of the last time; return when it answers."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start it without waiting for it."""
        if self.running:
            raise RuntimeError(f"{self.name} is running")
        self._process = self.node.popen(self._argv(), env=self._env(), log=self.log)

    def wait_ready(self) -> None:
        """Return when it answers."""
        wait_until(
            self._answers,
            timeout_s=START_DEADLINE_S,
            what=f"{self.name} answers",
            evidence=lambda: self._stuck(self._process),
        )

    def restart(self) -> None:
        """Stop it orderly and start it as before."""
        self.stop()
        self.start()

    def crash(self) -> None:
        """Kill it and start it as before, as systemd does."""
        self.kill()
        self.start()

    def _argv(self) -> list[str]:
        raise NotImplementedError

    def _env(self) -> Mapping[str, str]:
        return {}

    def _ready(self) -> bool:
        raise NotImplementedError

    def _answers(self) -> bool:
        if not self.running:
            raise AssertionError(f"{self.name} ended at its start:\n{self._tail()}")
        try:
            return self._ready()
        except OSError:
            return False

    def _tail(self) -> str:
        return text_of(self.log)[-6000:]

    def _end(self, number: int, timeout_s: float) -> int:
        process, self._process = self._process, None
        if process is None:
            raise RuntimeError(f"{self.name} is not running")
        process.send_signal(number, group=False)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            stuck = self._stuck(process)
            process.kill()
            raise AssertionError(
                f"{self.name} has not ended within {timeout_s} s of signal {number}: "
                f"{stuck}"
            ) from None

    def _stuck(self, process: NodeProcess | None) -> str:
        """Return what is known of *process*, which does not go on, and abort it."""
        if process is None:
            return self._tail()
        processes = self.node.run(SHOW_PROCESSES, check=False).stdout
        # With PYTHON_ENVIRONMENT it says what its threads wait for.
        process.send_signal(signal.SIGABRT, group=False)
        with suppress(subprocess.TimeoutExpired):
            process.wait(ABORT_WAIT_S)
        return f"on {self.node.name}\n{processes}\n{self._tail()}"

    def _request(
        self, socket: str, method: str, path: str, body: bytes, timeout_s: float
    ) -> tuple[int, bytes]:
        """Return status and body of the answer that *socket* gives to a request."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: plugin.moby.localhost\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        raw = self.node.exchange_with_socket(
            socket, head.encode() + body, timeout_s=timeout_s
        )
        answer = http.client.HTTPResponse(_Received(raw))  # type: ignore[arg-type]
        try:
            answer.begin()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            # A daemon killed meanwhile: for a caller the same as a refused connection.
            raise ConnectionError(str(error)) from error


class _Received:
    """What `HTTPResponse` reads from in place of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        """Return all that was received."""
        return io.BytesIO(self._data)


class Remora(Service):
    """`remora serve` in a node, this repository's code; its state is on the disk."""

    def __init__(
        self, node: Node, *, reconcile_interval_s: float | None = 0.5, **settings: str
    ) -> None:
        """*settings* are keys of `[daemon]`, for the environment REMORA_KEY."""
        super().__init__(node, "remora")
        # The nodes have just booted, and most tests that are refused do not want to
        # wait for it.
        self.settings = {"log_format": "json", "boot_wait_s": "0", **settings}
        self._program = PROGRAM
        self._tuning: dict[str, str] = {}
        if reconcile_interval_s is not None:
            self._tuning = tuned(reconcile_interval_s=reconcile_interval_s)

    def call(
        self, method: str, body: Mapping[str, Any], *, timeout_s: float = 120.0
    ) -> dict[str, Any]:
        """Return the answer to `/VolumeDriver.METHOD` as the engine would get it."""
        content = json.dumps(body).encode()
        _, answer = self._request(
            PLUGIN_SOCKET, "POST", f"/VolumeDriver.{method}", content, timeout_s
        )
        return json.loads(answer)

    def control(
        self, method: str, path: str, body: Any = None, *, timeout_s: float = 60.0
    ) -> tuple[int, Any]:
        """Return status and decoded body of an answer on the control socket."""
        content = b"" if body is None else json.dumps(body).encode()
        status, answer = self._request(CONTROL_SOCKET, method, path, content, timeout_s)
        return status, json.loads(answer) if answer else None

    def cli(
        self, *args: str, timeout_s: float = 60.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Return the outcome of `remora ARGS...`; takes a second or more in a node."""
        argv = [sys.executable, "-c", PROGRAM, *args]
        return self.node.run(argv, timeout_s=timeout_s, check=check, env=self._env())

    def _argv(self) -> list[str]:
        return [sys.executable, "-c", self._program, "serve"]

    def _env(self) -> Mapping[str, str]:
        ours = {f"REMORA_{key.upper()}": text for key, text in self.settings.items()}
        return {**PYTHON_ENVIRONMENT, **self._tuning, **ours}

    def _ready(self) -> bool:
        self.call("Capabilities", {}, timeout_s=5)
        return self.control("GET", "/v1/status", timeout_s=5)[0] == 200


class Engine(Service):
    """dockerd in a node, without a network of its own; its data is on the disk."""

    def __init__(self, node: Node, *extra_args: str) -> None:
        super().__init__(node, "dockerd")
        self._extra_args = extra_args

    def docker(
        self,
        *args: str,
        timeout_s: float = 120.0,
        check: bool = True,
        stdin: bytes = b"",
    ) -> subprocess.CompletedProcess[str]:
        """Return the outcome of `docker ARGS...`; its output is text."""
        done = self.node.run(
            [DOCKER, *args], timeout_s=timeout_s, check=False, stdin=stdin
        )
        return checked(done) if check else done

    def out(self, *args: str, timeout_s: float = 120.0) -> str:
        """Return what `docker ARGS...` prints, without the last line's end."""
        return self.docker(*args, timeout_s=timeout_s).stdout.rstrip("\n")

    def get(self, path: str) -> Any:
        """Return what the engine's API answers; much quicker than its command."""
        status, answer = self._request(ENGINE_SOCKET, "GET", path, b"", 30)
        assert status == 200, answer
        return json.loads(answer)

    def shell(self, volume: str, script: str, *options: str) -> str:
        """Return what *script* prints in a new container with *volume* at /v."""
        return self.out(
            *("run", "--rm", "--network", "none", *options),
            *("--volume-driver", "remora", "-v", f"{volume}:/v"),
            *(images.BUSYBOX_IMAGE, "sh", "-euc", script),
        )

    def load_busybox(self) -> None:
        """Make the image `images.BUSYBOX_IMAGE`."""
        self.docker("load", stdin=images.busybox_image())

    def _argv(self) -> list[str]:
        return [
            *(DOCKERD, "--host", f"unix://{ENGINE_SOCKET}"),
            *("--bridge=none", "--iptables=false", "--ip6tables=false"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs", *self._extra_args),
        ]

    def _ready(self) -> bool:
        path = "/_ping"
        return self._request(ENGINE_SOCKET, "GET", path, b"", 5)[0] == 200
