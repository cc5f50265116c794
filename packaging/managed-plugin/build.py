#!/usr/bin/python3
"""
Build a root filesystem, and of it what PRODUCT is.

    build [--name remora] [--output DIRECTORY] [--no-create] [--fresh] [PRODUCT]

`plugin`, the managed plugin, and `cluster-volumes`, the one for Swarm's cluster
volumes, are given to `docker plugin create`; `image` is a file for a DaemonSet of
Kubernetes, `remora.tar`. The last two have the CSI driver in them.

Prints one line of JSON: the digest of the root filesystem, its size and where it is.
With the same sources, lock file and Debian archives the digest is the same.

Environment: SOURCE_DATE_EPOCH (default: the time of the last commit),
REMORA_PLUGIN_CACHE (/var/cache/remora-plugin), REMORA_APT_SOURCES (a sources file for
apt), DOCKER (docker). Needs root, mmdebstrap and pip.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import oci  # noqa: E402
import project  # noqa: E402
import rootfs  # noqa: E402

SITE: Final = "usr/lib/python3/dist-packages"
PYTHON_VERSION: Final = "3.11"
# Newest first; Debian 12 has glibc 2.36.
GLIBC_MINORS: Final = (34, 28, 17)
# Not in config.json's env: an upgrade keeps the environment of the version installed
# first, so that a variable added later would be missing. The first is config.json's
# propagatedMount; the second is a directory that the host sees too.
DEFAULTS: Final = {
    "REMORA_MOUNT_DIR": "/mnt/volumes",
    "REMORA_CONTROL_SOCKET": "/var/lib/remora/control.sock",
}
# What differs with a driver beside the daemon: the engine talks to the driver, and sees
# what is mounted below the directory that Swarm names. Source: swarmkit, agent/csi.
CLUSTER_VOLUMES_CONFIG: Final = {
    "description": "Remora: cluster volumes that travel with their tasks",
    "documentation": "docs/guides/swarm-cluster-volumes.md",
    "entrypoint": ["/usr/bin/remora-both"],
    "interface": {
        "types": ["docker.csicontroller/1.0", "docker.csinode/1.0"],
        "socket": "remora.sock",
    },
    "propagatedMount": "/data/published",
}
CLUSTER_VOLUMES_DEFAULTS: Final = {
    **DEFAULTS,
    "REMORA_PLUGIN_SOCKET": "/run/remora/plugin.sock",
    "CSI_ENDPOINT": "/run/docker/plugins/remora.sock",
}
PLUGIN, CLUSTER_VOLUMES, IMAGE = PRODUCTS = ("plugin", "cluster-volumes", "image")
IMAGE_FILE: Final = "remora.tar"
FALLBACK_EPOCH: Final = 1735689600


def main() -> None:
    """Build as the command line says."""
    arguments = _arguments()
    os.umask(0o022)
    contents = tomllib.loads((HERE / "contents.toml").read_text(encoding="utf-8"))
    started = time.monotonic()
    with_csi = arguments.product != PLUGIN
    if with_csi:
        contents["packages"] += contents["csi_packages"]
    base = _base(contents, fresh=arguments.fresh)
    output = (arguments.output or ROOT / f"build/{arguments.product}").resolve()
    _clear(output)
    target = output / "rootfs"
    target.mkdir(parents=True)
    _install_packages(target, contents["site_without"], with_csi=with_csi)
    rootfs.assemble(base, target, contents)
    _install_project(target, arguments.product)
    _compile(target)
    _check(target, with_csi=with_csi)
    _set_times(target, _epoch())
    if arguments.product == IMAGE:
        _write_image(output, arguments.name)
    else:
        _write_config(output, arguments.product)
        if not arguments.no_create:
            docker = os.environ.get("DOCKER", "docker")
            rootfs.run([docker, "plugin", "create", arguments.name, str(output)])
    size_bytes, files = _size(target)
    summary = {
        "digest": _digest(target),
        "size_bytes": size_bytes,
        "files": files,
        "output": str(output),
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(summary))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Build the managed plugin, or an image"
    )
    parser.add_argument("product", nargs="?", choices=PRODUCTS, default=PLUGIN)
    parser.add_argument("--name", default="remora", help="the plugin's or image's name")
    parser.add_argument(
        "--output",
        type=Path,
        help="a new directory, or an earlier build's  [default: build/PRODUCT]",
    )
    parser.add_argument(
        "--no-create", action="store_true", help="leave docker plugin create out"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="take Debian's packages anew"
    )
    return parser.parse_args()


def _clear(output: Path) -> None:
    """Remove an earlier build from *output*; anything else in it is an error."""
    found = {path.name for path in output.iterdir()} if output.exists() else set()
    if not found <= {"config.json", "rootfs", IMAGE_FILE}:
        raise SystemExit(f"{output} holds something else than an earlier build")
    if found:
        shutil.rmtree(output)


def _base(contents: dict[str, Any], *, fresh: bool) -> Path:
    """Return the directory of unpacked Debian packages, the cached one if it exists."""
    sources = os.environ.get("REMORA_APT_SOURCES")
    recipe = json.dumps(
        [
            contents["suite"],
            contents["packages"],
            platform.machine(),
            Path(sources).read_text(encoding="utf-8") if sources else "",
        ]
    )
    key = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("REMORA_PLUGIN_CACHE", "/var/cache/remora-plugin"))
    base = cache / f"base-{key}"
    if base.exists() and not fresh:
        return base
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        unpacked = Path(scratch) / "base"
        rootfs.unpack_packages(unpacked, contents, sources)
        if base.exists():
            base.rename(Path(scratch) / "old")
        unpacked.rename(base)
    return base


def _install_project(target: Path, product: str) -> None:
    """Install the code, and what starts it there."""
    defaults = {
        PLUGIN: DEFAULTS,
        CLUSTER_VOLUMES: CLUSTER_VOLUMES_DEFAULTS,
        # A DaemonSet's environment is all its own.
        IMAGE: {},
    }[product]
    command = target / "usr/bin/remora"
    project.install(target / SITE, command, "/usr/bin/python3", defaults)
    if product == CLUSTER_VOLUMES:
        shutil.copyfile(HERE / "both.py", command.with_name("remora-both"))
        command.with_name("remora-both").chmod(0o755)
        (target / "data/published").mkdir(parents=True)


def _write_config(output: Path, product: str) -> None:
    """Write the engine's description of the plugin: config.json, or like it."""
    config = json.loads((ROOT / "config.json").read_text(encoding="utf-8"))
    if product == CLUSTER_VOLUMES:
        config |= CLUSTER_VOLUMES_CONFIG
        text = json.dumps(config, indent=2) + "\n"
    else:
        text = (ROOT / "config.json").read_text(encoding="utf-8")
    (output / "config.json").write_text(text, encoding="utf-8")


def _write_image(output: Path, name: str) -> None:
    """Write the image *name*, whose version is ours if it names none."""
    layer = output / "layer"
    oci.write(
        output / "rootfs",
        layer=layer,
        name=name if ":" in name else f"{name}:{plugin_version()}",
        anonymous=_anonymous,
        archive=output / IMAGE_FILE,
    )
    layer.unlink()


def plugin_version() -> str:
    """Return the version that the code has of itself."""
    text = (ROOT / "plugin/__init__.py").read_text(encoding="utf-8")
    return text.partition('__version__ = "')[2].partition('"')[0]


def _install_packages(target: Path, without: list[str], *, with_csi: bool) -> None:
    """Install the locked requirements, as wheels for the plugin's own Python."""
    machine = platform.machine()
    command = [
        *_pip(),
        "install",
        "-qq",
        "--root-user-action=ignore",
        "--no-deps",
        "--require-hashes",
        "--requirement",
        str(ROOT / "requirements/runtime.txt"),
        *(["-r", str(ROOT / "requirements/csi.txt")] if with_csi else []),
        "--target",
        str(target / SITE),
        "--no-compile",
        "--only-binary=:all:",
        "--implementation=cp",
        f"--python-version={PYTHON_VERSION}",
        "--abi=cp311",
        "--abi=abi3",
        "--abi=none",
    ]
    command += [f"--platform=manylinux_2_{minor}_{machine}" for minor in GLIBC_MINORS]
    command += [f"--platform=manylinux2014_{machine}"]
    rootfs.run(command)
    site = target / SITE
    shutil.rmtree(site / "bin", ignore_errors=True)
    for information in site.glob("*.dist-info"):
        # Lists of installed files: for uninstalling, which nobody does in here.
        for name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
            (information / name).unlink(missing_ok=True)
    for pattern in without:
        for path in site.glob(pattern):
            path.unlink()


def _pip() -> list[str]:
    """Return the command of a pip: this Python's, or the development environment's."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    python = ROOT / ".venv/bin/python"
    if python.exists():
        return [str(python), "-m", "pip"]
    raise SystemExit("pip is needed: install python3-pip")


def _compile(target: Path) -> None:
    """
    Byte-compile everything in place, with the plugin's own Python.

    The files are marked as never to be checked against their sources, so that neither
    the times of a layer nor a writable root can make the daemon compile at its start.
    """
    # -B, because modules that the compiling imports would be written with their times.
    subprocess.run(
        [
            *(
                "chroot",
                str(target),
                "/usr/bin/python3",
                "-I",
                "-B",
                "-m",
                "compileall",
            ),
            *("-q", "-f", "--invalidation-mode=unchecked-hash", "/usr/lib"),
        ],
        check=True,
        timeout=300,
        env={"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
    )


def _check(target: Path, *, with_csi: bool) -> None:
    """
    Import every module of ours in the finished root; fail on one that cannot be.

    Those of the driver only where the packages are that it needs.
    """
    without = "" if with_csi else "plugin.api.csi."
    script = (
        "import importlib, pkgutil\n"
        "for package in ('plugin', 'backends'):\n"
        "    path = importlib.import_module(package).__path__\n"
        "    for module in pkgutil.walk_packages(path, package + '.'):\n"
        f"        if not ({without!r} and module.name.startswith({without!r})):\n"
        "            importlib.import_module(module.name)\n"
    )
    rootfs.run(["chroot", str(target), "/usr/bin/python3", "-I", "-c", script])


def _epoch() -> int:
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    last = subprocess.run(
        ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout.strip()
    return int(last) if last else FALLBACK_EPOCH


def _set_times(target: Path, epoch: int) -> None:
    """Give every file owner, group and time that do not depend on the build."""
    for folder, folders, files in os.walk(target, topdown=False):
        for name in [*folders, *files]:
            path = Path(folder, name)
            os.chown(path, 0, 0, follow_symlinks=False)
            os.utime(path, (epoch, epoch), follow_symlinks=False)
    os.utime(target, (epoch, epoch))


def _digest(target: Path) -> str:
    """Return the SHA-256 of a tar of *target*, its members in the order of names."""

    class Sink:
        def __init__(self) -> None:
            self.hash = hashlib.sha256()

        def write(self, data: bytes) -> int:
            self.hash.update(data)
            return len(data)

    sink = Sink()
    with tarfile.open(mode="w|", fileobj=sink, format=tarfile.GNU_FORMAT) as archive:
        archive.add(target, arcname=".", recursive=True, filter=_anonymous)
    return f"sha256:{sink.hash.hexdigest()}"


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uname = member.gname = ""
    return member


def _size(target: Path) -> tuple[int, int]:
    """Return the bytes in files and their number."""
    sizes = [
        path.lstat().st_size
        for path in target.rglob("*")
        if path.lstat().st_mode & 0o100000
    ]
    return sum(sizes), len(sizes)


if __name__ == "__main__":
    main()
