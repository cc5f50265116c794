"""`remora serve` in a `Host`, and the whole `Machine`: host, daemon and engine."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .engine import started_engine
from .host import PYTHON_ENVIRONMENT, Host, end_process, wait_until
from .tuning import tuned

if TYPE_CHECKING:
    from collections.abc import Mapping

PLUGIN_SOCKET = "/run/docker/plugins/remora.sock"
CONTROL_SOCKET = "/run/remora/control.sock"
MOUNTS = "/var/lib/remora/mounts"
START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 30.0


# How `remora` is called: this interpreter and, by PYTHONPATH, this repository's code.
PROGRAM = "from plugin.cli.main import main; main()"


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection to a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = str(path)

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise


class Daemon:
    """One daemon of a host."""

    def __init__(
        self, host: Host, *, reconcile_interval_s: float | None = None, **settings: str
    ) -> None:
        """*settings* are keys of `[daemon]`, for the environment REMORA_KEY."""
        self.host = host
        self.log = host.log_path("remora")
        # Most tests that are refused do not want to wait for it.
        self.settings = {"log_format": "json", "boot_wait_s": "0", **settings}
        self.reconcile_interval_s = reconcile_interval_s
        self._process: subprocess.Popen[bytes] | None = None

    def _environment(self) -> dict[str, str]:
        ours = {f"REMORA_{key.upper()}": text for key, text in self.settings.items()}
        if self.reconcile_interval_s is not None:
            ours |= tuned(reconcile_interval_s=self.reconcile_interval_s)
        return {**PYTHON_ENVIRONMENT, **ours}

    # Life

    def launch(self) -> None:
        """Start the daemon without waiting for it."""
        if self._process is not None:
            raise RuntimeError("the daemon is running")
        self._process = self.host.popen(
            [sys.executable, "-c", PROGRAM, "serve"],
            env=self._environment(),
            log=self.log,
        )

    def start(self, **settings: str) -> None:
        """Start the daemon with *settings* on top; return when it answers."""
        self.settings |= settings
        self.launch()
        self.wait_ready()

    def wait_ready(self, timeout_s: float = START_DEADLINE_S) -> None:
        """Return when both sockets answer; fail at once if the daemon has ended."""

        def answers() -> bool:
            if self._process is None or self._process.poll() is not None:
                tail = self.log.read_text(errors="replace")[-3000:]
                raise AssertionError(f"remora ended at its start:\n{tail}")
            try:
                self.call("Capabilities", {}, prefix="VolumeDriver", timeout_s=2)
                return self.control("GET", "/v1/status")[0] == 200
            except OSError:
                return False

        wait_until(answers, timeout_s=timeout_s, what="remora answers", interval_s=0.02)

    @property
    def running(self) -> bool:
        """Whether the daemon was started and not yet ended by us."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        if self._process is None:
            raise RuntimeError("the daemon is not running")
        return self._process.pid

    def stop(self, timeout_s: float = STOP_DEADLINE_S) -> int:
        """Return the exit code after SIGTERM."""
        return self._end(signal.SIGTERM, timeout_s)

    def kill(self) -> None:
        """End the daemon with SIGKILL."""
        self._end(signal.SIGKILL, STOP_DEADLINE_S)

    def restart(self) -> None:
        """Stop the daemon orderly and start it as before."""
        self.stop()
        self.start()

    def crash(self) -> None:
        """Kill the daemon and start it as before, as systemd does."""
        self.kill()
        self.start()

    def _end(self, signal_number: int, timeout_s: float) -> int:
        process, self._process = self._process, None
        if process is None:
            raise RuntimeError("the daemon is not running")
        try:
            return end_process(
                process, signal_number=signal_number, timeout_s=timeout_s
            )
        finally:
            self.host.forget(process)

    # Use

    def cli(
        self, *args: str, timeout_s: float = 30.0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Return the outcome of `remora ARGS...` run in the host."""
        return self.host.run(
            [sys.executable, "-c", PROGRAM, *args],
            timeout_s=timeout_s,
            check=check,
            env=self._environment(),
        )

    def cli_json(self, *args: str) -> Any:
        """Return what `remora ARGS... --json` prints, decoded."""
        return json.loads(self.cli(*args, "--json").stdout)

    def raw(
        self,
        path: str,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> tuple[int, bytes]:
        """Return status and body of the answer to a POST on the plugin socket."""
        return self._request(PLUGIN_SOCKET, "POST", path, body, headers, timeout_s)

    def call(
        self,
        method: str,
        body: Mapping[str, Any],
        *,
        prefix: str = "VolumeDriver",
        timeout_s: float = 30.0,
    ) -> dict[str, Any]:
        """Return the answer to `/VolumeDriver.METHOD` as the engine would get it."""
        content = json.dumps(body).encode()
        _, answer = self.raw(f"/{prefix}.{method}", content, timeout_s=timeout_s)
        return json.loads(answer)

    def control(
        self, method: str, path: str, body: Any = None, *, timeout_s: float = 30.0
    ) -> tuple[int, Any]:
        """Return status and decoded body of an answer on the control socket."""
        content = b"" if body is None else json.dumps(body).encode()
        status, answer = self._request(
            CONTROL_SOCKET, method, path, content, None, timeout_s
        )
        return status, json.loads(answer) if answer else None

    def _request(
        self,
        inside: str,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str] | None,
        timeout_s: float,
    ) -> tuple[int, bytes]:
        connection = UnixConnection(self.host.path(inside), timeout_s)
        try:
            sent = {"Host": "plugin.moby.localhost", **(headers or {})}
            connection.request(method, path, body=body, headers=sent)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            # A daemon killed meanwhile: for a caller the same as a refused connection.
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()


@dataclass(frozen=True, slots=True)
class References:
    """A volume's mount references, summed over the engine's ids."""

    live: int
    inherited: int


class Machine:
    """A host with a daemon and an engine that run; see `machine` in the fixtures."""

    def __init__(
        self,
        *,
        name: str = "node-a",
        live_restore: bool = False,
        reconcile_interval_s: float | None = 0.5,
        **settings: str,
    ) -> None:
        self.host = Host(name)
        try:
            self.daemon = Daemon(
                self.host, reconcile_interval_s=reconcile_interval_s, **settings
            )
            self.daemon.start()
            self.engine = started_engine(self.host, live_restore=live_restore)
        except BaseException:
            self.host.close()
            raise

    def close(self) -> None:
        """End the machine with everything in it."""
        self.host.close()

    def volume(self, name: str) -> dict[str, Any]:
        """Return what the daemon knows of volume *name*."""
        status, answer = self.daemon.control("GET", f"/v1/volumes/{name}")
        if status != 200:
            raise AssertionError(f"{name}: {answer}")
        return answer

    def references(self, name: str) -> References:
        """Return the mount references of volume *name*."""
        return References(**self.volume(name)["references"])

    def mounted(self, name: str) -> bool:
        """Return whether the kernel shows *name*'s mount, the same as the daemon."""
        path = f"{MOUNTS}/{self.volume(name)['id']}"
        return any(entry.mount_point == path for entry in self.host.mounts())

    def mount_points(self) -> list[str]:
        """Return every mount below the daemon's directory, as the kernel shows it."""
        return [entry.mount_point for entry in self.host.mounts()]

    def remains(self) -> list[str]:
        """Return mounts and mount points, mounted or not, that are left."""
        left = {str(path) for path in self.host.path(MOUNTS).iterdir()}
        inside = {MOUNTS + "/" + Path(path).name for path in left}
        return sorted(inside | set(self.mount_points()))

    def assert_nothing_mounted(self, *, within_s: float = 0.0) -> None:
        """Fail unless no mount, mount point or reference is left *within_s*."""
        wait_until(
            lambda: not self.remains() and not self._held(),
            timeout_s=within_s,
            what="no mount left",
            evidence=lambda: f"{self.remains()}, {self._held()}",
        )

    def _held(self) -> list[str]:
        _, rows = self.daemon.control("GET", "/v1/volumes")
        return [row["name"] for row in rows if any(row["references"].values())]


def memory_bytes(pid: int) -> int:
    """Return the resident memory of the process *pid*."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
