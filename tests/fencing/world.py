"""
Volumes, writers that stamp what they write, and daemons with their guard.

A writer appends the time since boot to a file of the volume, again and again, and
flushes it: the file itself tells when it could write.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.system.mountinfo import parse_mountinfo
from plugin.fencing.held import HeldVolume
from tests.support.host import REPOSITORY, wait_until
from tests.support.processes import signal_all

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WAIT_S = 60.0
# What the guard promises. /proc/uptime, which stamps are, is cut to 10 ms.
FENCED_WITHIN_S = 1.0
INSIDE = "/mnt"
PROGRAM = Path(__file__).with_name("daemon_program.py")
# Arguments: the file. Busybox's, for containers have no other.
STAMP = 'read now rest < /proc/uptime; echo "$now" >> "$1"'
# A run that is killed ends nothing of this.
os.environ["REMORA_TEST_RUN"] = str(os.getpid())
RUNS = '[ -d "/proc/$REMORA_TEST_RUN" ]'
WRITE = f'while {RUNS}; do {STAMP}; sync -d "$1"; done'
# Each stamp by a process of its own, eight at a time.
FORK = f"while {RUNS}; do for n in 1 2 3 4 5 6 7 8; do ({STAMP}) & done; wait; done"
# Each stamp by a child of the last one, which ends at once: no list is ever true.
FLEE = f'{RUNS} || exit; {STAMP}; sh -c "$0" "$0" "$1" &'

# By a thread that goes on when the first one of its process has ended.
HEADLESS = """exec python3 -S -c '
import ctypes, sys, threading, time
def work():
    while True:
        with open(sys.argv[1], "a") as stamps:
            stamps.write("%.2f\\n" % time.clock_gettime(time.CLOCK_BOOTTIME))
        time.sleep(0.01)
threading.Thread(target=work).start()
time.sleep(0.1)
ctypes.CDLL(None).pthread_exit(None)
' "$1"
"""


def now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def new_id() -> str:
    """Return the id of a new volume."""
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True)
class Volume:
    """A directory bound to where a daemon has it, the way of rsync volumes."""

    id: str
    live: Path
    target: Path
    device: str
    root: str

    @classmethod
    def make(cls, directory: Path) -> Volume:
        volume_id = new_id()
        live = directory / "pool" / volume_id / "live"
        target = directory / "mounts" / volume_id
        for path in (live, target):
            path.mkdir(parents=True)
        subprocess.run(["mount", "--bind", live, target], check=True, timeout=10)
        table = Path("/proc/self/mountinfo").read_text()
        [entry] = [e for e in parse_mountinfo(table) if e.mount_point == str(target)]
        return cls(volume_id, live, target, entry.device, entry.root)

    def held(self, for_s: float, **changes: Any) -> HeldVolume:
        """Return that this volume is held *for_s* from now on."""
        return HeldVolume(
            **{
                "id": self.id,
                "device": self.device,
                "root": self.root,
                "target": str(self.target),
                "deadline_s": now_s() + for_s,
                **changes,
            }
        )

    def stamps(self, name: str = "stamps") -> list[float]:
        """Return when each write was made."""
        try:
            lines = (self.live / name).read_text().splitlines()
        except FileNotFoundError:
            return []
        return [float(line) for line in lines]

    def wait_writing(self, name: str = "stamps") -> None:
        """Return when something is written that was not there yet."""
        before = now_s()
        wait_until(
            lambda: max(self.stamps(name)[-20:], default=0.0) > before,
            timeout_s=WAIT_S,
            what=f"a write to {name}",
        )

    def assert_quiet_since(self, at_s: float, name: str = "stamps") -> None:
        """Fail if anything is written from *at_s* on; looks for a while."""
        end = now_s() + 1.0
        while now_s() < end:
            time.sleep(0.1)
            late = [stamp for stamp in self.stamps(name) if stamp > at_s]
            assert late == [], f"written {late[-1] - at_s:.2f} s after the deadline"


class Daemon:
    """A process that uses `Guard`, started in this or another mount namespace."""

    def __init__(self, run_dir: Path, process: subprocess.Popen[bytes]) -> None:
        self.run_dir = run_dir
        self.process = process
        self._pending = b""
        assert self._line() == b"ready"

    def ask(self, op: str, **request: Any) -> Any:
        """Return the answer to a request."""
        self.process.stdin.write(json.dumps({"op": op, **request}).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def hold(self, *volumes: HeldVolume) -> dict[str, str]:
        return self.ask("hold", volumes=[asdict(volume) for volume in volumes])

    def renew(self, *volumes: HeldVolume, ttl_s: float) -> None:
        """Hold *volumes* from now on, as long as the process runs."""
        self.ask("renew", volumes=[asdict(volume) for volume in volumes], ttl_s=ttl_s)

    def states(self) -> dict[str, str]:
        return self.ask("states")

    def wait_state(self, volume: Volume, state: str) -> None:
        wait_until(
            lambda: self.states().get(volume.id) == state,
            timeout_s=WAIT_S,
            what=f"the volume is {state}",
            evidence=self.guard_log,
        )

    def guard_log(self) -> str:
        return (self.run_dir / "guard.log").read_text()

    def kill_now(self) -> None:
        """End the process without a chance to say so."""
        self.process.kill()
        self.process.wait(timeout=WAIT_S)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.process.send_signal(signal.SIGCONT)
        self.kill_now()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                stream.close()

    def _line(self) -> bytes:
        end = time.monotonic() + WAIT_S
        while b"\n" not in self._pending:
            output = self.process.stdout
            assert select.select([output], [], [], max(0, end - time.monotonic()))[0]
            chunk = os.read(output.fileno(), 65536)
            assert chunk, "the daemon has ended"
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line


def start_daemon(run_dir: Path, *, prefix: Sequence[str] = ()) -> Daemon:
    """Return a daemon whose command follows *prefix*."""
    process = subprocess.Popen(
        [*prefix, sys.executable, str(PROGRAM), str(run_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "PYTHONPATH": str(REPOSITORY)},
    )
    return Daemon(run_dir, process)


def guard_pids(run_dir: Path) -> list[int]:
    """Return the processes that guard in *run_dir*."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"plugin.fencing.guard" in b" ".join(words) and (
                    str(run_dir).encode() in words
                ):
                    pids.append(int(entry.name))
    return pids


def kill_guard(run_dir: Path) -> None:
    signal_all(guard_pids(run_dir), signal.SIGKILL)


@contextlib.contextmanager
def container(
    volume: Volume, script: str, *, join: Path | None = None, user: int = 0
) -> Iterator[subprocess.Popen[bytes]]:
    """
    Run *script* in a mount namespace that shows *volume* at `INSIDE`.

    As Docker would, without a control group unless *join* names one.
    """
    enter = f"echo $$ > {join}/cgroup.procs; " if join else ""
    become = f"setpriv --reuid={user} --clear-groups" if user else ""
    command = (
        f"{enter}mount --bind {volume.target} {INSIDE}; "
        f'exec {become} busybox sh -c "$0" "$0" {INSIDE}/stamps'
    )
    process = subprocess.Popen(
        ["unshare", "--mount", "--", "sh", "-euc", command, script],
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=WAIT_S)
