"""
One node for a test: its directories, its mount namespace, its daemon.

The daemon is the real process with every path below a short temporary directory. Its
mounts are made in a namespace that a shell holds: they outlive the daemon, as a host's
do, and end with the test run, however that ends. A filesystem in a file can stand
below the pool and the mount points, to be frozen: the kernel then lets every write
wait, as storage that hangs does.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from tests.protocol import client
from tests.support import processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

REPOSITORY = Path(__file__).resolve().parents[2]
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UNSHARE = ("unshare", "--mount", "--propagation", "private", "--")
# Holds the namespace until this process ends, however it does, and its disk thawed
# after that: on a frozen one the daemon could not end, nor the namespace with it.
HOLD = 'echo up; cat; [ ! -d "$1" ] || fsfreeze --unfreeze "$1" 2>/dev/null; true'
# A start takes half a second of a processor, which may be long in coming.
START_DEADLINE_S, STOP_DEADLINE_S = 60.0, 20.0
LOOK_AGAIN_S, LOOK_AGAIN_MAX_S = 0.02, 0.1
_CAP_SYS_ADMIN = 21
_DISK_SIZE_BYTES = 64 * 2**20


def missing() -> str:
    """Return what this machine lacks for a node, or ""."""
    status = Path("/proc/self/status").read_text("ascii")
    if not int(status.partition("CapEff:")[2].split()[0], 16) >> _CAP_SYS_ADMIN & 1:
        return "CAP_SYS_ADMIN"
    for program in ("unshare", "nsenter", "setpriv"):
        if shutil.which(program, path=SYSTEM_PATH) is None:
            return program
    return ""


def wait_until(
    condition: Callable[[], object], what: str, *, timeout_s: float = 20.0
) -> None:
    """
    Return when *condition* holds; fail with *what* after *timeout_s*.

    To look costs the daemon a call, and all tests the processor: what takes long is
    looked at less often.
    """
    began_s = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - began_s
        assert waited_s < timeout_s, f"not within {timeout_s} s: {what}"
        time.sleep(min(max(LOOK_AGAIN_S, waited_s / 20), LOOK_AGAIN_MAX_S))


class Node:
    """See the module's text; `close` ends everything that it started."""

    # The environment with the daemon's own intervals.
    tuning: Mapping[str, str] = MappingProxyType({})

    def __init__(self, *, disk: bool = False, profiles: str = "", **settings: Any):
        """
        Make the node; nothing runs yet.

        *settings* are keys of `[daemon]`, *profiles* is more TOML. With *disk*, pool
        and mount points lie on a filesystem of their own.
        """
        self.directory = Path(tempfile.mkdtemp(prefix="rp", dir="/tmp"))
        self.plugin_socket = self.directory / "plugins/remora.sock"
        self.control_socket = self.directory / "control.sock"
        self.state_dir = self.directory / "state"
        self.log = self.directory / "log"
        self.log.touch()
        self._disk = self.directory / "disk"
        self._frozen = False
        data = self._disk if disk else self.state_dir
        self.pool = data / "pool"
        self.mount_dir = data / "mounts"
        self.config = self.directory / "remora.toml"
        self.settings = {
            "plugin_socket": str(self.plugin_socket),
            "control_socket": str(self.control_socket),
            "state_dir": str(self.state_dir),
            "pool": str(self.pool),
            "mount_dir": str(self.mount_dir),
            "log_format": "json",
            # Most tests that are refused do not want to wait for it.
            "boot_wait_s": 0,
            **settings,
        }
        values = "\n".join(f"{k} = {json.dumps(v)}" for k, v in self.settings.items())
        self.config.write_text(f"[daemon]\n{values}\n{profiles}\n")
        self._children: list[subprocess.Popen[bytes]] = []
        self.process: subprocess.Popen[bytes] | None = None
        self._holder = subprocess.Popen(
            [*UNSHARE, "sh", "-c", HOLD, "sh", str(self._disk)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert self._holder.stdout.readline() == b"up\n"
            if disk:
                self._make_disk()
        except BaseException:
            self.close()
            raise

    # Processes

    def inside(self, *command: str) -> list[str]:
        """Return the command that runs *command* in the node's mount namespace."""
        # A daemon must not outlive a test run that was killed.
        guard = ["setpriv", "--pdeathsig", "KILL", "--", "nsenter"]
        return [*guard, f"--mount=/proc/{self._holder.pid}/ns/mnt", "--", *command]

    def run(self, *command: str, timeout_s: float = 30.0) -> str:
        """Return the output of *command*, run in the node; it must succeed."""
        done = subprocess.run(
            self.inside(*command), capture_output=True, timeout=timeout_s, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr.decode()}"
        return done.stdout.decode()

    def popen(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Return *command*, started in the node; its output goes to the log."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.inside(*command),
                env=self.environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
            )
        self._children.append(process)
        return process

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of a `remora` of this node."""
        return {
            "PATH": SYSTEM_PATH,
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(REPOSITORY),
            "REMORA_CONFIG": str(self.config),
            **self.tuning,
            **(extra or {}),
        }

    @staticmethod
    def remora(*arguments: str) -> list[str]:
        """Return the command `remora ARGUMENTS...` of this tree."""
        return [sys.executable, "-m", "plugin.cli.main", *arguments]

    # The daemon's life

    def launch(
        self,
        environment: Mapping[str, str] | None = None,
        *,
        command: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start the daemon without waiting for it."""
        assert self.process is None, "the daemon runs already"
        self.process = self.popen(
            command or self.remora("serve"), environment=environment, pass_fds=pass_fds
        )
        return self.process

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the daemon; return when it answers."""
        self.launch(environment)
        self.wait_ready()

    def wait_ready(self, timeout_s: float = START_DEADLINE_S) -> None:
        """Return when both sockets answer; fail at once if the daemon has ended."""

        def answers() -> bool:
            assert self.process.poll() is None, f"ended at its start: {self.log_tail()}"
            try:
                return self.control("GET", "/v1/status").status == 200 and bool(
                    self.call("Capabilities").json()
                )
            except (FileNotFoundError, ConnectionRefusedError):
                return False

        wait_until(answers, "the daemon answers", timeout_s=timeout_s)

    def wait_exit(self, timeout_s: float = STOP_DEADLINE_S) -> int:
        """Return the daemon's exit code."""
        process, self.process = self.process, None
        try:
            return process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=timeout_s)
            raise

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Return the daemon's exit code after the signal *number*."""
        self.process.send_signal(number)
        return self.wait_exit()

    def kill(self) -> None:
        """End the daemon as a crash does."""
        assert self.stop(signal.SIGKILL) == -signal.SIGKILL

    def refused_start(
        self, environment: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Return exit code and standard error of a daemon that must not start."""
        done = subprocess.run(
            self.inside(*self.remora("serve")),
            env=self.environment(environment),
            capture_output=True,
            timeout=START_DEADLINE_S,
            check=False,
        )
        return done.returncode, done.stderr.decode()

    def close(self) -> None:
        """End every process of the node, and with the last its mounts; remove all."""
        # On a frozen filesystem nothing could end.
        self.thaw()
        for process in self._children:
            process.kill()
            process.wait(timeout=STOP_DEADLINE_S)
        self._holder.stdin.close()
        self._holder.wait(timeout=STOP_DEADLINE_S)
        self._holder.stdout.close()
        # In a cluster a guard outlives its daemon.
        processes.kill_all_with(str(self.directory))
        # A command that died with the daemon may be deleting there still.
        subprocess.run(["rm", "-rf", "--", self.directory], check=True, timeout=60)

    # Storage

    def _make_disk(self) -> None:
        image = self.directory / "image"
        with image.open("wb") as file:
            file.truncate(_DISK_SIZE_BYTES)
        self._disk.mkdir()
        self.run("mkfs.ext4", "-q", str(image))
        # The loop device is freed when the namespace, and so the mount, is gone.
        self.run("mount", "-o", "loop", str(image), str(self._disk))

    def freeze(self) -> None:
        """Let every write to pool and mount points wait from now on."""
        self.run("fsfreeze", "--freeze", str(self._disk))
        self._frozen = True

    def thaw(self) -> None:
        """Let storage work again; a disk that is not frozen stays as it is."""
        if self._frozen:
            self.run("fsfreeze", "--unfreeze", str(self._disk))
            self._frozen = False

    def wait_blocked(self) -> None:
        """Return when a thread of the daemon waits in the kernel for storage."""

        def waiting() -> set[str]:
            found = set()
            for each in Path(f"/proc/{self.process.pid}/task").glob("*/stat"):
                with suppress(OSError):  # it has ended meanwhile
                    if each.read_text().rpartition(") ")[2].startswith("D"):
                        found.add(each.parent.name)
            return found

        def blocked() -> bool:
            first = waiting()
            time.sleep(0.05)  # longer than a disk that works lets anybody wait
            return bool(first & waiting())

        wait_until(blocked, "a thread waits for storage")

    def path(self, inside: Path) -> Path:
        """Return the name by which this process reaches the node's file *inside*."""
        return Path(f"/proc/{self._holder.pid}/root{inside}")

    def mounts(self) -> list[str]:
        """Return the names of the mounts below mount_dir, as the kernel shows them."""
        points = map(Path, self.mount_points())
        return sorted(at.name for at in points if at.parent == self.mount_dir)

    def mount_points(self) -> list[str]:
        """Return all of them."""
        return processes.mount_points(self._holder.pid)

    def mount_directories(self) -> list[str]:
        """Return the names below mount_dir, mounted or not."""
        return sorted(each.name for each in self.path(self.mount_dir).iterdir())

    def stored(self) -> list[str]:
        """Return the ids of the volumes on disk."""
        return sorted(each.name for each in self.path(self.pool / "volumes").iterdir())

    # Calls

    def send(self, sent: bytes, **how: Any) -> bytes:
        """Return the bytes answered to the bytes *sent* to the plugin socket."""
        return client.exchange(self.plugin_socket, sent, **how)

    def call(self, operation: str, body: object = None, **how: Any) -> client.Answer:
        """Return the answer to `/VolumeDriver.OPERATION` as an engine calls it."""
        content = client.go_json({} if body is None else body)
        request = client.engine_request(f"VolumeDriver.{operation}", content)
        return client.parse(self.send(request, **how))

    def ok(self, operation: str, **body: object) -> Any:
        """Return the decoded answer of a call that must succeed."""
        answer = self.call(operation, body)
        assert answer.status == 200
        assert answer.error == "", f"{operation} {body}: {answer.error}"
        return answer.json()

    def refused(self, operation: str, **body: object) -> str:
        """Return the one line with which the call is refused."""
        answer = self.call(operation, body)
        assert answer.status == 200
        assert answer.error, f"{operation} {body} succeeded: {answer.body!r}"
        assert answer.error.isprintable(), answer.error
        return answer.error

    def create(self, name: str, **options: str) -> str:
        """Return the id of the new volume *name*."""
        self.ok("Create", Name=name, Opts=options or None)
        return str(self.get(name)["Status"]["id"])

    def get(self, name: str) -> Any:
        """Return volume *name* as Get answers it."""
        return self.ok("Get", Name=name)["Volume"]

    def references(self, name: str) -> tuple[int, int]:
        """Return how many mounts hold volume *name*: (live, inherited)."""
        found = self.get(name)["Status"]["references"]
        return found["live"], found["inherited"]

    def names(self) -> list[str]:
        """Return the names that List answers."""
        return [each["Name"] for each in self.ok("List")["Volumes"]]

    def control(self, method: str, target: str, body: object = None) -> client.Answer:
        """Return the answer of the control socket."""
        content = b"" if body is None else client.go_json(body)
        request = client.control_request(method, target, content)
        return client.parse(client.exchange(self.control_socket, request))

    # Logs

    def log_lines(self) -> list[dict[str, Any]]:
        """Return the log, each line of which must be one JSON object."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def log_tail(self) -> str:
        """Return the end of the log, for a failure's text."""
        return self.log.read_text(errors="replace")[-3000:]


@contextmanager
def running(**arguments: Any) -> Iterator[Node]:
    """Yield a node whose daemon runs; skip the test where none can."""
    if lacking := missing():
        pytest.skip(f"needs {lacking}")
    node = Node(**arguments)
    try:
        node.start()
        yield node
    finally:
        node.close()


def memory_bytes(pid: int) -> int:
    """Return the resident memory of the process *pid*."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
