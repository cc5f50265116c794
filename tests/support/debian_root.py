"""
Hosts whose files are those of another Debian: its engine, client, runc and libraries.

The environment variable REMORA_ENGINE names one of `ROOTS`; every `Host` made while it
is set has that root, so that any test of tests/engine runs under that engine. A root
is made with mmdebstrap once per machine (one to two minutes, 700 MB) and kept below
`CACHE` under a name that changes with its recipe; remove it to get newer packages.

It is the root of the whole host, not of dockerd alone. On a real machine the daemon and
dockerd share one mount namespace: what the daemon mounts is there for dockerd without
any propagation, and no second namespace lists a mount that nobody uses any more, which
is the daemon's proof of disuse. With two roots there would have to be two namespaces
(with a mere chroot, `docker exec` lands in the wrong root), and none of this would be
tested as it is. The price is the daemon's Python: it is this machine's, bound into the
root, and runs on the other Debian's libraries, which are newer and of the same names.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .archive import debian_archive
from .images import CACHE

if TYPE_CHECKING:
    from collections.abc import Iterator

VARIABLE = "REMORA_ENGINE"
REPOSITORY = Path(__file__).resolve().parents[2]
BUILD_DEADLINE_S = 1200.0

# What Python's standard library and the daemon's checks are linked with or call.
FOR_REMORA = (
    *("libbz2-1.0", "libexpat1", "libffi8", "liblzma5", "libsqlite3-0", "libuuid1"),
    *("rsync", "e2fsprogs", "xfsprogs", "btrfs-progs"),
)
FOR_TESTS = (
    *("busybox-static", "curl", "docker-registry", "hostname", "iproute2", "mount"),
    *("etcd-client", "etcd-server", "procps"),
)
OPTIONS = (
    # Indexes of a mirror that stands still are out of date, not wrong.
    '--aptopt=Acquire::Check-Valid-Until "false"',
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)


@dataclass(frozen=True, slots=True)
class DebianRoot:
    """What a root is made of."""

    suite: str
    packages: tuple[str, ...]

    def command(self) -> list[str]:
        """Return the command that makes the root, but for where."""
        packages = (*self.packages, *FOR_REMORA, *FOR_TESTS)
        return [
            *("mmdebstrap", "--quiet", "--mode=root", "--variant=essential", *OPTIONS),
            # It lets no service of a package start (policy-rc.d), and the mirror's
            # signature is checked with this machine's keys.
            *(f"--include={','.join(packages)}", self.suite),
        ]

    def path(self) -> Path:
        """Return where the root is or will be."""
        recipe = repr(self.command())
        digest = hashlib.sha256(recipe.encode()).hexdigest()[:16]
        return CACHE / f"{self.suite}-{digest}"


DOCKER = ("docker.io", "docker-cli", "docker-compose", "containerd", "runc")
ROOTS = {
    "sid": DebianRoot("sid", (*DOCKER, "podman")),
    "trixie": DebianRoot("trixie", (*DOCKER, "podman")),
    "bookworm": DebianRoot("bookworm", ("podman", "runc")),
}

# The overlay lets tests and packages write without changing what others use, too.
ENTER_SCRIPT = """
work=$1
root=$work/root
mkdir "$root" "$work/root-upper" "$work/root-work"
mount -t overlay overlay "$root" \\
    -o "lowerdir=$tree,upperdir=$work/root-upper,workdir=$work/root-work"
for directory in /proc /sys /dev; do
    mount --rbind "$directory" "$root$directory"
done
for path in $shared; do
    if [ -d "$path" ]; then
        mkdir -p "$root$path"
    else
        mkdir -p "$root${path%/*}"
        : > "$root$path"
    fi
    mount --bind "$path" "$root$path"
done
ln -sfn "$interpreter" "$root/usr/bin/python3"
mkdir "$root/.machine"
cd "$root"
pivot_root . .machine
cd /
umount --lazy /.machine
rmdir /.machine
"""


def boot_script(work_root: Path) -> str:
    """
    Return what gives process 1 of a host the chosen root, or '' if none is chosen.

    Its first argument is the host's directory below *work_root*.
    """
    name = os.environ.get(VARIABLE, "")
    if not name:
        return ""
    interpreter = Path(sys.executable).resolve()
    shared = [
        # Programs and their arguments: the same files under the same names.
        *(interpreter, sysconfig.get_path("stdlib")),
        *(REPOSITORY, Path(sys.prefix).resolve()),
        *(tempfile.gettempdir(), work_root, CACHE),
    ]
    words = " ".join(shlex.quote(str(path)) for path in dict.fromkeys(map(str, shared)))
    return (
        f"tree={shlex.quote(str(tree(ROOTS[name])))}\n"
        f"shared={shlex.quote(words)}\n"
        f"interpreter={shlex.quote(str(interpreter))}\n"
        f"{ENTER_SCRIPT}"
    )


def client(pid: int, socket: str) -> list[str]:
    """
    Return the `docker` of the chosen root, or [] if none is chosen.

    It is run in the mount namespace of the host whose process 1 is *pid*: it needs the
    libraries there, and finds the engine's *socket* there.
    """
    if not os.environ.get(VARIABLE):
        return []
    entrance = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "--"]
    return [*entrance, "docker", "--host", f"unix://{socket}"]


@contextlib.contextmanager
def chosen(name: str) -> Iterator[None]:
    """Give the hosts made meanwhile the root *name*."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def tree(root: DebianRoot) -> Path:
    """Return the directory with *root*'s files; the first call makes it."""
    path = root.path()
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{root.suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="build-") as build:
                _make(root, Path(build) / "root")
                (Path(build) / "root").rename(path)
    return path


def _make(root: DebianRoot, target: Path) -> None:
    # Mounts of its own, so that it leaves none behind, whatever ends it.
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private", "--"),
            *(*root.command(), str(target), debian_archive()),
        ],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        timeout=BUILD_DEADLINE_S,
        check=False,
    )
    if done.returncode != 0:
        output = (done.stdout + done.stderr)[-3000:].decode(errors="replace")
        raise RuntimeError(f"no root of Debian {root.suite}: {output}")
