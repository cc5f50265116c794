"""
Images for the tests' containers, made without a registry.

`busybox_image` is a 2 MB root as `docker load` takes it; `database_tar` a Debian with
MariaDB for `docker import`, made once per machine with debootstrap (about a minute) and
kept below `CACHE` under a name that changes with its recipe.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from .archive import debian_archive

BUSYBOX_IMAGE = "remora-test:1"
DATABASE_IMAGE = "remora-test-database:1"
CACHE = Path(os.environ.get("REMORA_TESTS_CACHE", "/var/cache/remora-tests"))
BUILD_DEADLINE_S = 900.0

BUSYBOX_CONFIG = {
    "Cmd": ["sleep", "86400"],
    "Env": ["PATH=/bin"],
    # Process 1 ignores a SIGTERM it does not handle: every stop would take 10 s.
    "StopSignal": "SIGKILL",
}

# What an image brings for copy-up: an owner, a mode, a link, an attribute's carrier.
SEED_FILES = {
    "seed/plain": (0, 0, 0o644, b"from the image\n"),
    "seed/owned": (1000, 1001, 0o640, b"owned\n"),
    "seed/deep/er/file": (0, 0, 0o755, b"#!/bin/sh\n"),
}

DATABASE_PACKAGES = ("mariadb-server-core", "mariadb-client-core", "busybox-static")
DATABASE_START = """#!/bin/sh
set -eu
data=/var/lib/mysql
mkdir -p /run/mysqld
chown mysql: /run/mysqld "$data"
if [ ! -d "$data/mysql" ]; then
    mariadb-install-db --user=mysql --datadir="$data" --skip-test-db \\
        --auth-root-authentication-method=normal > /dev/null
fi
exec mariadbd --user=mysql --datadir="$data" --socket=/run/mysqld/mysqld.sock \\
    --bind-address=0.0.0.0 --innodb-buffer-pool-size=16M --innodb-log-file-size=8M
"""
DATABASE_SETUP = """
set -eu
useradd --system --home-dir /nonexistent --shell /usr/sbin/nologin mysql
mkdir -p /var/lib/mysql
chmod 0755 /start-database
rm -rf /var/cache/apt /var/lib/apt /var/cache/debconf /usr/share/doc /usr/share/man \
    /usr/share/locale /usr/share/info /var/log/* /usr/share/mysql/*/errmsg.sys.bak
"""


def missing() -> str:
    """Return the program that `database_tar` lacks, or '' if it can be had."""
    if database_path().exists() or shutil.which("debootstrap"):
        return ""
    return "debootstrap"


@functools.cache
def busybox_image() -> bytes:
    """Return the image `BUSYBOX_IMAGE` as `docker save` would write it."""
    layer = _busybox_layer()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": BUSYBOX_CONFIG,
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"],
        },
    }
    manifest = [
        {
            "Config": "config.json",
            "RepoTags": [BUSYBOX_IMAGE],
            "Layers": ["layer.tar"],
        }
    ]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        _add(tar, "config.json", content=json.dumps(config).encode())
        _add(tar, "layer.tar", content=layer)
        _add(tar, "manifest.json", content=json.dumps(manifest).encode())
    return buffer.getvalue()


def _busybox_layer() -> bytes:
    """Return a root directory with busybox in it, as an uncompressed tar."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RuntimeError("busybox is missing (package busybox-static)")
    applets = subprocess.run(
        [busybox, "--list"], check=True, capture_output=True, text=True, timeout=10
    ).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for directory in ("bin", "etc", "tmp", "proc", "sys", "dev", "seed/deep/er"):
            _add(tar, directory, kind=tarfile.DIRTYPE, mode=0o755)
        _add(tar, "bin/busybox", mode=0o755, content=Path(busybox).read_bytes())
        for applet in applets:
            if applet != "busybox":
                _add(tar, f"bin/{applet}", kind=tarfile.SYMTYPE, link="busybox")
        _add(tar, "etc/passwd", content=b"root:x:0:0::/:/bin/sh\n")
        _add(tar, "etc/group", content=b"root:x:0:\n")
        for name, (uid, gid, mode, content) in SEED_FILES.items():
            _add(tar, name, mode=mode, content=content, owner=(uid, gid))
        _add(tar, "seed/link", kind=tarfile.SYMTYPE, link="plain")
    return buffer.getvalue()


def _add(
    tar: tarfile.TarFile,
    name: str,
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    content: bytes = b"",
    link: str = "",
    owner: tuple[int, int] = (0, 0),
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.linkname = kind, mode, link
    member.size = len(content)
    member.uid, member.gid = owner
    tar.addfile(member, io.BytesIO(content))


def database_path() -> Path:
    """Return where the database image's tar is or will be."""
    recipe = repr((DATABASE_PACKAGES, DATABASE_START, DATABASE_SETUP))
    return CACHE / f"database-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.tar"


def database_tar() -> Path:
    """Return a Debian root with MariaDB as a tar; the first call makes it."""
    path = database_path()
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="build-") as build:
                _build_database(Path(build), path)
    return path


def database_root() -> Path:
    """Return the directory with what `database_tar` holds; the first call makes it."""
    tar = database_tar()
    root = tar.with_suffix("")
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="build-") as build:
                part = Path(build) / "root"
                part.mkdir()
                command("tar", "-C", str(part), "-xpf", str(tar))
                part.rename(root)
    return root


def _build_database(build: Path, path: Path) -> None:
    root, part = build / "root", build / "part.tar"
    packages = ",".join(DATABASE_PACKAGES)
    command(
        *("debootstrap", "--variant=minbase", f"--include={packages}"),
        *("bookworm", str(root), debian_archive()),
    )
    (root / "start-database").write_text(DATABASE_START)
    command("chroot", str(root), "sh", "-c", DATABASE_SETUP)
    command("tar", "-C", str(root), "--exclude=./dev/*", "-cf", str(part), ".")
    part.rename(path)


def command(*argv: str) -> None:
    """Run *argv* with mounts of its own, so that it leaves none behind."""
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "--", *argv],
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "DEBIAN_FRONTEND": "noninteractive",
        },
        capture_output=True,
        timeout=BUILD_DEADLINE_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{argv}: {(done.stdout + done.stderr)[-2000:].decode()}")
