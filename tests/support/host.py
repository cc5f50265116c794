"""
One machine for a test: private namespaces with the default paths of a real one.

A `Host` has its own mounts, processes, network, host name and IPC, so that a dockerd
and a daemon run in it with their default paths (/run, /etc, /var/lib/remora) and
several hosts run side by side. Its files are the machine's own, except:

- /run and /var/lib are fresh tmpfs; /var/lib/docker and /var/lib/remora lie on disk,
  below the host's work directory;
- /etc is an overlay: what a test writes there stays in the host.

Process 1 of the host is a `cat` that waits for the end of its input (and lets the
kernel reap orphans). It ends with this process, however that ends; the kernel then ends
every process of the host and drops its mounts. A work directory that a killed test run
left is removed by the next run.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar, Self

from . import debian_root

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

REPOSITORY = Path(__file__).resolve().parents[2]
# The code under test is this tree; at SIGABRT it says what its threads wait for.
PYTHON_ENVIRONMENT = {
    "PYTHONPATH": str(REPOSITORY),
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONFAULTHANDLER": "1",
}
WORK_ROOT = Path(os.environ.get("REMORA_TESTS_WORK", "/var/tmp/remora-tests"))
CGROUP_PREFIX = "remora-tests-"
DISK_DIRECTORIES = ("/var/lib/docker", "/var/lib/remora")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_DEADLINE_S = 20.0
CLOSE_DEADLINE_S = 30.0
LOG_TAIL_BYTES = 20_000
CLONE_NEWPID = 0x2000_0000

# What is mounted before `rshared` is the machine's; it is never unmounted here.
BOOT_SCRIPT = """
work=$1
etc="lowerdir=/etc,upperdir=$work/etc,workdir=$work/etc-work"
mount --make-rshared /
mount -t overlay -o "$etc" overlay /etc
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t tmpfs -o mode=0755 tmpfs /var/lib
mkdir -p /run/docker/plugins /run/lock /etc/docker /etc/remora
for directory in docker remora; do
    mkdir "/var/lib/$directory"
    mount --bind "$work/$directory" "/var/lib/$directory"
done
ip link set lo up
hostname "$2"
echo up
exec env --ignore-signal=CHLD cat > /dev/null
"""


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of /proc/PID/mountinfo."""

    mount_id: int
    device: str
    root: str
    mount_point: str
    fs_type: str
    source: str


def parse_mountinfo(text: str) -> list[MountEntry]:
    """Return the mounts that *text* (the content of a mountinfo file) lists."""
    entries = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        mount_id, _, device, root, mount_point = left.split()[:5]
        fs_type, source = right.split()[:2]
        entries.append(
            MountEntry(
                int(mount_id),
                device,
                _plain(root),
                _plain(mount_point),
                fs_type,
                _plain(source),
            )
        )
    return entries


def _plain(path: str) -> str:
    """Return *path* without the kernel's octal escapes."""
    return path.encode("latin-1").decode("unicode_escape") if "\\" in path else path


class Host:
    """A machine of its own, made of namespaces; see the module's text."""

    alive: ClassVar[list[Host]] = []
    _numbers: ClassVar[itertools.count[int]] = itertools.count(1)

    def __init__(self, name: str = "node-a") -> None:
        sweep_leftovers()
        self.name = name
        self.id = f"{_identity(os.getpid())}-{next(self._numbers)}"
        self.work = WORK_ROOT / self.id
        for directory in ("etc", "etc-work", "docker", "remora", "logs", "home"):
            (self.work / directory).mkdir(parents=True, exist_ok=True)
        self.cgroup_parent = f"/{CGROUP_PREFIX}{self.id}"
        self._children: list[subprocess.Popen[bytes]] = []
        self._log_marks: dict[Path, int] = {}
        root = debian_root.boot_script(WORK_ROOT)
        self._holder = subprocess.Popen(
            [
                *("unshare", "--mount", "--propagation", "private"),
                *("--pid", "--fork", "--kill-child", "--mount-proc"),
                *("--net", "--uts", "--ipc"),
                *("sh", "-euc", root + BOOT_SCRIPT, "host", str(self.work), name),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": SYSTEM_PATH},
        )
        Host.alive.append(self)
        try:
            self._await_boot()
            self.pid = _only_child(self._holder.pid)
            self._pid_namespace = os.open(f"/proc/{self.pid}/ns/pid", os.O_RDONLY)
        except BaseException:
            self._end_holder()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Files

    def path(self, inside: str) -> Path:
        """Return this process's name for the file *inside* of the host."""
        return Path(f"/proc/{self.pid}/root") / inside.lstrip("/")

    def log_path(self, name: str) -> Path:
        """Return the file for the log *name*; the end of it is shown on a failure."""
        path = self.work / "logs" / f"{name}.log"
        self._log_marks.setdefault(path, 0)
        return path

    def mark_logs(self) -> None:
        """Let `new_log_text` begin with what is written from now on."""
        for path in self._log_marks:
            self._log_marks[path] = path.stat().st_size if path.exists() else 0

    def new_log_text(self) -> dict[str, str]:
        """Return for every log what was written since `mark_logs`, at most its end."""
        texts = {}
        for path, mark in self._log_marks.items():
            if not path.exists():
                continue
            with path.open("rb") as log:
                log.seek(max(mark, path.stat().st_size - LOG_TAIL_BYTES))
                texts[f"{self.name}: {path.name}"] = log.read().decode(errors="replace")
        return texts

    def mounts(self, below: str = "/var/lib/remora") -> list[MountEntry]:
        """Return the mounts of the host strictly below the directory *below*."""
        text = Path(f"/proc/{self.pid}/mountinfo").read_text()
        return [
            entry
            for entry in parse_mountinfo(text)
            if entry.mount_point.startswith(below + "/")
        ]

    # Processes

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = None,
    ) -> subprocess.Popen[bytes]:
        """
        Start *argv* as a process of the host; its pid is the program's own.

        Its output goes to the end of the file *log*, to *stdout*, or nowhere.
        """
        entrance = [
            "nsenter",
            *(f"--{kind}=/proc/{self.pid}/ns/{file}" for kind, file in _ENTERED),
        ]
        with contextlib.ExitStack() as stack:
            output: int | IO[bytes] = subprocess.DEVNULL
            if log is not None:
                output = stack.enter_context(log.open("ab"))
            own = os.open("/proc/self/ns/pid", os.O_RDONLY)
            stack.callback(os.close, own)
            _set_namespace_of_children(self._pid_namespace)
            stack.callback(_set_namespace_of_children, own)
            process = subprocess.Popen(
                [*entrance, "--", *argv],
                env=self.environment(env),
                stdin=stdin,
                stdout=output if stdout is None else stdout,
                stderr=output if stdout is None or log else subprocess.PIPE,
            )
        self._children.append(process)
        return process

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 30.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Return the outcome of *argv* run in the host; its output is text."""
        process = self.popen(argv, env=env, stdout=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=timeout_s)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
            self._children.remove(process)
        done = subprocess.CompletedProcess(
            list(argv),
            process.returncode,
            out.decode(errors="replace"),
            err.decode(errors="replace"),
        )
        return checked(done) if check else done

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of the host's programs, with *extra* on top."""
        return {
            "PATH": SYSTEM_PATH,
            "HOME": str(self.work / "home"),
            "LANG": "C.UTF-8",
            **(extra or {}),
        }

    def forget(self, process: subprocess.Popen[bytes]) -> None:
        """Let go of *process*, which has ended and was waited for."""
        if process in self._children:
            self._children.remove(process)

    # Life

    def close(self) -> None:
        """End every process of the host, drop its mounts, remove its work directory."""
        if self not in Host.alive:
            return
        os.close(self._pid_namespace)
        self._end_holder()

    def _await_boot(self) -> None:
        watchdog = time.monotonic() + START_DEADLINE_S
        out = self._holder.stdout
        os.set_blocking(out.fileno(), False)
        while time.monotonic() < watchdog:
            if (out.readline() or b"").strip() == b"up":
                return
            if self._holder.poll() is not None:
                break
            time.sleep(0.01)
        self._holder.kill()
        raise RuntimeError(f"no host: {self._holder.stderr.read().decode()}")

    def _end_holder(self) -> None:
        Host.alive.remove(self)
        self._holder.stdin.close()
        # Process 1 cannot end before those it has not borne have been waited for.
        for child in self._children:
            child.wait(timeout=CLOSE_DEADLINE_S)
            for stream in (child.stdout, child.stderr, child.stdin):
                if stream is not None:
                    stream.close()
        self._children.clear()
        self._holder.wait(timeout=CLOSE_DEADLINE_S)
        self._holder.stdout.close()
        self._holder.stderr.close()
        remove_remains(self.work)


_ENTERED = (("mount", "mnt"), ("net", "net"), ("uts", "uts"), ("ipc", "ipc"))


def checked(
    done: subprocess.CompletedProcess[str],
) -> subprocess.CompletedProcess[str]:
    """Return *done*; raise with all its output if it failed."""
    if done.returncode != 0:
        raise AssertionError(
            f"{' '.join(done.args)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done


def wait_until(
    condition: Callable[[], object],
    *,
    timeout_s: float,
    what: str,
    interval_s: float = 0.05,
    evidence: Callable[[], object] = str,
) -> None:
    """Return when *condition* holds; fail with *what* and *evidence* after a time."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s: {what} {evidence()}")
        time.sleep(interval_s)


def sweep_leftovers() -> None:
    """Remove the work directories whose test process has ended."""
    WORK_ROOT.mkdir(parents=True, exist_ok=True)
    for work in WORK_ROOT.iterdir():
        owner, _, _ = work.name.rpartition("-")
        pid = owner.partition("-")[0]
        if pid.isdigit() and _identity(int(pid)) != owner:
            remove_remains(work)


def remove_remains(work: Path) -> None:
    """Remove the directory *work* of a host without processes, and its cgroups."""
    pattern = f"{CGROUP_PREFIX}{work.name}"
    cgroups = [*Path("/sys/fs/cgroup").glob(pattern)]
    cgroups += Path("/sys/fs/cgroup").glob(f"*/{pattern}")
    end = time.monotonic() + CLOSE_DEADLINE_S
    for cgroup in cgroups:
        for directory, _, _ in os.walk(cgroup, topdown=False):
            while time.monotonic() < end:
                # Busy until the kernel is done with its last, killed process.
                with contextlib.suppress(FileNotFoundError):
                    try:
                        Path(directory).rmdir()
                    except OSError as error:
                        if error.errno == errno.EBUSY:
                            time.sleep(0.02)
                            continue
                        raise
                break
    shutil.rmtree(work, ignore_errors=True)


def _identity(pid: int) -> str:
    """Return a name for the process *pid* that no later process shares, or ''."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return f"{pid}-{stat.rpartition(')')[2].split()[19]}"


def _only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _set_namespace_of_children(descriptor: int) -> None:
    """Put what this thread starts from now on into that process namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWPID) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def end_process(
    process: subprocess.Popen[bytes], *, signal_number: int, timeout_s: float
) -> int:
    """Return the exit code of *process* after *signal_number*; kill it if it stays."""
    if process.poll() is None:
        process.send_signal(signal_number)
    try:
        return process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=timeout_s)
        raise
