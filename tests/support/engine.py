"""
A Docker Engine in a `Host`: the real dockerd, spoken to with the real command line.

SIGKILL of dockerd takes its containerd with it, as on a machine where dockerd started
it; containers live on under their shims.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import debian_root, images
from .host import Host, checked, end_process, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SOCKET = "/run/docker.sock"
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 60.0
# Debian's own, not one that somebody put below /usr/local.
CLI = next((p for p in ("/usr/bin/docker",) if os.access(p, os.X_OK)), "docker")


def missing() -> str:
    """Return what this machine lacks for a real engine, or ''."""
    if os.geteuid() != 0:
        return "root"
    for program in ("dockerd", "containerd", "runc", "busybox", "nsenter", "ip"):
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            return program
    return ""


class Engine:
    """One dockerd of a host, with its containers and images."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.log = host.log_path("dockerd")
        self._process: subprocess.Popen[bytes] | None = None
        self._argv: list[str] = []
        self._client = debian_root.client(host.pid, SOCKET) or [CLI]
        config = host.work / "docker-cli"
        config.mkdir(exist_ok=True)
        self.cli_environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(host.work / "home"),
            "LANG": "C.UTF-8",
            "DOCKER_CONFIG": str(config),
            "DOCKER_HOST": f"unix://{host.path(SOCKET)}",
        }

    # Life

    def start(
        self, *, live_restore: bool = False, extra_args: Sequence[str] = ()
    ) -> None:
        """Start dockerd; return when it answers."""
        self._argv = [
            *("dockerd", "--host", f"unix://{SOCKET}"),
            *("--bridge=none", "--iptables=false", "--ip6tables=false"),
            *("--exec-opt", "native.cgroupdriver=cgroupfs"),
            *("--cgroup-parent", self.host.cgroup_parent),
            *(("--live-restore",) if live_restore else ()),
            *extra_args,
        ]
        self._launch()

    def _launch(self) -> None:
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start dockerd as the last time without waiting for it."""
        if self._process is not None:
            raise RuntimeError("dockerd is running")
        self._process = self.host.popen(self._argv, log=self.log)

    def wait_ready(self, timeout_s: float = START_DEADLINE_S) -> None:
        """Return when dockerd answers; fail at once if it has ended."""

        def answers() -> bool:
            if self._process is None or self._process.poll() is not None:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise AssertionError(f"dockerd ended at its start:\n{tail}")
            socket = self.host.path(SOCKET)
            return socket.exists() and self._ping()

        wait_until(answers, timeout_s=timeout_s, what="dockerd answers")

    def _ping(self) -> bool:
        try:
            done = self.docker("version", "-f", "{{.Server.Version}}", check=False)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    @property
    def pid(self) -> int:
        """The process id of dockerd."""
        if self._process is None:
            raise RuntimeError("dockerd is not running")
        return self._process.pid

    def stop(self, timeout_s: float = STOP_DEADLINE_S) -> int:
        """Return dockerd's exit code after SIGTERM."""
        return self._end(signal.SIGTERM, timeout_s)

    def kill(self) -> None:
        """End dockerd with SIGKILL; containers stay."""
        containerd = self._containerd_pids()
        self._end(signal.SIGKILL, STOP_DEADLINE_S)
        wait_until(
            lambda: not any(_running(pid) for pid in containerd),
            timeout_s=10,
            what="containerd ends with its dockerd",
        )

    def restart(self) -> None:
        """Stop dockerd orderly and start it as before."""
        self.stop()
        self._launch()

    def start_again(self) -> None:
        """Start a dockerd that was stopped or killed, as before."""
        self._launch()

    def _end(self, signal_number: int, timeout_s: float) -> int:
        process, self._process = self._process, None
        if process is None:
            raise RuntimeError("dockerd is not running")
        try:
            return end_process(
                process, signal_number=signal_number, timeout_s=timeout_s
            )
        finally:
            self.host.forget(process)

    def _containerd_pids(self) -> list[int]:
        threads = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [int(pid) for thread in threads for pid in thread.read_text().split()]

    # Use

    def docker(
        self,
        *args: str,
        timeout_s: float = 60.0,
        check: bool = True,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Return the outcome of `docker ARGS...`; its output is text."""
        done = subprocess.run(
            [*self._client, *args],
            env={**self.cli_environment, **(env or {})},
            input=b"" if stdin is None else stdin,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        result = subprocess.CompletedProcess(
            ["docker", *args],
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )
        return checked(result) if check else result

    def out(self, *args: str, timeout_s: float = 60.0) -> str:
        """Return what `docker ARGS...` prints, without the last line's end."""
        return self.docker(*args, timeout_s=timeout_s).stdout.rstrip("\n")

    def error(self, *args: str, timeout_s: float = 60.0) -> str:
        """Return the error text of `docker ARGS...`, which has to fail."""
        done = self.docker(*args, timeout_s=timeout_s, check=False)
        if done.returncode == 0:
            raise AssertionError(f"docker {' '.join(args)} succeeded: {done.stdout}")
        return done.stderr.strip()

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        """Return `docker KIND inspect NAME`."""
        return json.loads(self.out(kind, "inspect", name))[0]

    def run(self, *args: str, timeout_s: float = 60.0) -> str:
        """Return what `docker run --rm --network none ARGS...` prints."""
        return self.out("run", "--rm", "--network", "none", *args, timeout_s=timeout_s)

    def shell(self, volume: str, script: str, *options: str) -> str:
        """Return what *script* prints in a new container with *volume* at /v."""
        return self.run(
            *options,
            *("--volume-driver", "remora", "-v", f"{volume}:/v"),
            *(images.BUSYBOX_IMAGE, "sh", "-euc", script),
        )

    def hold(self, volume: str, name: str, *options: str) -> str:
        """Start the container *name* that sleeps with *volume* at /v; return its id."""
        return self.out(
            *("run", "-d", "--network", "none", "--name", name, *options),
            *("--volume-driver", "remora", "-v", f"{volume}:/v"),
            images.BUSYBOX_IMAGE,
        )

    # Images

    def load_busybox(self) -> None:
        """Make the image `images.BUSYBOX_IMAGE`."""
        self.docker("load", stdin=images.busybox_image())

    def load_database(self) -> None:
        """Make sure of `images.DATABASE_IMAGE`; a machine's first time is slow."""
        if self.out("images", "-q", images.DATABASE_IMAGE):
            return
        self.docker(
            *("import", "--change", 'CMD ["/start-database"]'),
            *(str(images.database_tar()), images.DATABASE_IMAGE),
            timeout_s=180,
        )

    def remove_everything(self) -> None:
        """Remove all containers and the volumes of our driver."""
        containers = self.out("ps", "-aq").split()
        if containers:
            self.docker("rm", "-f", *containers, timeout_s=120)
        volumes = self.out("volume", "ls", "-q", "-f", "driver=remora").split()
        if volumes:
            self.docker("volume", "rm", *volumes, timeout_s=120)


def _running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def started_engine(host: Host, *, live_restore: bool = False) -> Engine:
    """Return an engine of *host* that runs and has the busybox image."""
    engine = Engine(host)
    engine.start(live_restore=live_restore)
    engine.load_busybox()
    return engine


def timed(action: Any) -> float:
    """Return how long *action* took, in seconds."""
    start = time.monotonic()
    action()
    return time.monotonic() - start
