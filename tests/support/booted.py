"""
A machine that a real systemd boots: Debian with dockerd, in a systemd-nspawn.

Its root is an overlay over a Debian that mmdebstrap makes once per machine (about a
minute) and that is kept below `CACHE`; what is changed stays with the machine, over
reboots, until `close`. It ends with this process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from .host import CGROUP_PREFIX, WORK_ROOT, checked, remove_remains, wait_until
from .images import CACHE, busybox_image

if TYPE_CHECKING:
    from collections.abc import Sequence

BUILD_DEADLINE_S = 900
BOOT_DEADLINE_S = 60
PACKAGES = (
    *("systemd-sysv", "dbus", "docker.io", "python3", "rsync", "mount", "procps"),
    *("xfsprogs", "btrfs-progs", "e2fsprogs", "nfs-common", "libcap2-bin"),
    # A new machine that `remora node enroll` comes to.
    *("openssh-server", "sudo", "apt", "iproute2"),
    # One that is set up by hand, as the guides say.
    *("make", "python3-venv", "openssl", "etcd-server", "etcd-client"),
)
# nspawn mounts the controllers read-only, and dockerd makes its groups in them. There
# are no loop devices, by which a pool in a file is mounted.
GIVEN_UNIT = """\
[Unit]
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
ExecStart=-/bin/sh -c 'for group in /sys/fs/cgroup/*/; do \
    mount -o remount,rw,bind "$group"; done'
ExecStart=-/bin/sh -c 'mknod -m 600 /dev/loop-control c 10 237; \
    for number in $$(seq 0 63); do mknod -m 600 /dev/loop$$number b 7 $$number; done'
[Install]
WantedBy=sysinit.target
"""
MASKED = (
    # The network is down for good: nobody is to wait for it.
    *("systemd-networkd.service", "systemd-networkd.socket"),
    "systemd-networkd-wait-online.service",
    # The machine's kernel may have no NFS, and these would fail.
    *("nfs-client.target", "rpcbind.service", "rpcbind.socket", "run-rpc_pipefs.mount"),
)
# What Debian starts when it is installed, and most tests do not want.
OTHERS = ("etcd.service",)
# The groups first: what nspawn starts is born in them.
BOOT_SCRIPT = """
base=$1 work=$2 group=$3 name=$4
for controller in /sys/fs/cgroup/*/; do
    mkdir -p "$controller$group"
    if [ "$controller" = /sys/fs/cgroup/cpuset/ ]; then
        cat "$controller"cpuset.cpus > "$controller$group/cpuset.cpus"
        cat "$controller"cpuset.mems > "$controller$group/cpuset.mems"
    fi
    echo $$ > "$controller$group/cgroup.procs"
done
mount -t overlay -o "lowerdir=$base,upperdir=$work/upper,workdir=$work/scratch" \
    overlay "$work/root"
exec systemd-nspawn --quiet --register=no --keep-unit --private-network \
    --capability=all --system-call-filter="add_key keyctl bpf" --console=pipe \
    --hostname="$name" --directory="$work/root" \
    --bind="$work/docker:/var/lib/docker" --boot
"""


def missing() -> str:
    """Return what this machine lacks, or ''."""
    if os.geteuid() != 0:
        return "root"
    for program in ("systemd-nspawn", "mmdebstrap", "nsenter", "busybox"):
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            return program
    return ""


def base() -> Path:
    """Return the directory of the Debian that machines are laid over."""
    recipe = repr(PACKAGES)
    path = CACHE / f"booted-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock-booted").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="build-") as build:
                root = Path(build) / "root"
                _make_base(root)
                root.rename(path)
    return path


def _make_base(root: Path) -> None:
    done = subprocess.run(
        [
            *("mmdebstrap", "--quiet", "--mode=root", "--variant=essential"),
            f"--include={','.join(PACKAGES)}",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            *("bookworm", str(root)),
        ],
        capture_output=True,
        text=True,
        timeout=BUILD_DEADLINE_S,
        check=False,
    )
    checked(done)


class BootedMachine:
    """See the module's text; what is put below `root` before `boot` is in it."""

    _numbers: ClassVar[itertools.count[int]] = itertools.count(1)

    def __init__(self, name: str = "booted", *, masked: Sequence[str] = OTHERS) -> None:
        """*masked* are units that are not to be started, besides `MASKED`."""
        self.name = name
        self._base = base()
        WORK_ROOT.mkdir(parents=True, exist_ok=True)
        # Named as a host's directory: a later run removes what a killed one left.
        stat = Path("/proc/self/stat").read_text()
        started = stat.rpartition(")")[2].split()[19]
        self.work = WORK_ROOT / f"{os.getpid()}-{started}-booted{next(self._numbers)}"
        for part in ("upper", "scratch", "root", "docker"):
            (self.work / part).mkdir(parents=True)
        self.root = self.work / "upper"
        self.group = f"{CGROUP_PREFIX}{self.work.name}"
        settings = {
            "bridge": "none",
            "iptables": False,
            "cgroup-parent": f"/{self.group}",
        }
        (self.root / "etc/docker").mkdir(parents=True)
        (self.root / "etc/docker/daemon.json").write_text(json.dumps(settings))
        (self.root / "etc/hostname").write_text(f"{name}\n")
        self._add_units(self.root / "etc/systemd/system", masked)
        # With none the first boot would ask questions.
        (self.root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def _add_units(directory: Path, masked: Sequence[str]) -> None:
        wanted = directory / "sysinit.target.wants"
        wanted.mkdir(parents=True)
        (directory / "given.service").write_text(GIVEN_UNIT)
        (wanted / "given.service").symlink_to("../given.service")
        for unit in (*MASKED, *masked):
            (directory / unit).symlink_to("/dev/null")

    @property
    def pid(self) -> int:
        """The machine's process 1, as this machine numbers it."""
        return self._leader

    def boot(self) -> None:
        """Boot; return when systemd has started everything."""
        with (self.work / "console.log").open("ab") as console:
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "--"),
                    # What nspawn started would outlive it: this ends all with it.
                    *("unshare", "--mount", "--propagation", "private"),
                    *("--pid", "--fork", "--kill-child", "--mount-proc", "--"),
                    *("sh", "-euc", BOOT_SCRIPT, "boot"),
                    *(str(self._base), str(self.work), self.group, self.name),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            )
        wait_until(self._is_up, timeout_s=BOOT_DEADLINE_S, what="the machine is up")
        state = self.run(["systemctl", "is-system-running", "--wait"], check=False)
        failed = self.run(["systemctl", "--failed", "--no-legend"]).stdout
        assert state.stdout.strip() == "running", failed

    def _is_up(self) -> bool:
        """Return whether process 1 is there and its manager answers."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError((self.work / "console.log").read_text())
        # unshare, nspawn, and the machine's process 1.
        nspawn = _children(self._process.pid)
        leader = _children(nspawn[0]) if nspawn else []
        if not leader:
            return False
        self._leader = leader[0]
        try:
            done = self.run(["systemctl", "show", "--property=Version"], check=False)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 60.0,
        check: bool = True,
        stdin: bytes = b"",
    ) -> subprocess.CompletedProcess[str]:
        """Return the outcome of *argv* run on the machine; its output is text."""
        entrance = ("nsenter", f"--target={self._leader}", "--mount", "--uts", "--ipc")
        done = subprocess.run(
            [*entrance, "--net", "--pid", "--root", "--wd=/", "--", *argv],
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        )
        result = subprocess.CompletedProcess(
            list(argv),
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )
        return checked(result) if check else result

    def out(self, *argv: str, timeout_s: float = 60.0) -> str:
        """Return what *argv* prints, without the last line feed."""
        return self.run(argv, timeout_s=timeout_s).stdout.rstrip("\n")

    def load_busybox(self) -> None:
        """Give dockerd the image `images.BUSYBOX_IMAGE`."""
        self.run(["docker", "load"], stdin=busybox_image())

    def power_off(self) -> None:
        """Shut down orderly; return when everything has ended."""
        assert self._process is not None
        self.run(["systemctl", "poweroff"], check=False)
        self._process.wait(timeout=BOOT_DEADLINE_S)
        self._process = None

    def close(self) -> None:
        """End the machine and remove everything of it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=BOOT_DEADLINE_S)
            self._process = None
        with contextlib.suppress(FileNotFoundError):
            remove_remains(self.work)


def _children(pid: int) -> list[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in listed.split()]
