"""
Kubernetes' own programs, compiled from Debian 12's source package.

No Debian has a kubelet as a binary, and Debian 12 is the last with all of the source.
The programs are compiled once per machine (eight minutes of two processors, 2 GB
meanwhile) in a Debian of their own, which goes afterwards, and kept below `CACHE`
(250 MB) under a name that changes with the package's version and the recipe.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.support.archive import debian_archive
from tests.support.debian_root import OPTIONS
from tests.support.images import CACHE

SUITE: Final = "bookworm"
VERSION: Final = "1.20.2"
PROGRAMS: Final = (
    *("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"),
    "kubectl",
)
# Of two processors it takes eight minutes; others may want them as well.
BUILD_DEADLINE_S: Final = 3600.0
SHORT_DEADLINE_S: Final = 60.0
ENVIRONMENT: Final = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
BUILD_PACKAGES: Final = ("golang-go", "dpkg-dev", "rsync", "jq", "make")
# Drivers of clouds and of Docker are left out: half a minute and 40 MB.
BUILD: Final = f"""
set -eu
mkdir /build
cd /build
apt-get -qq source kubernetes
cd kubernetes-*/
printf 'KUBE_GIT_%s\\n' COMMIT=debian TREE_STATE=clean VERSION=v{VERSION} \\
    MAJOR=1 MINOR=20 > /build/version
export KUBE_GIT_VERSION_FILE=/build/version KUBE_BUILD_PLATFORMS=linux/amd64
export FORCE_HOST_GO=y CGO_ENABLED=0 GO111MODULE=off HOME=/build
export GOFLAGS=-tags=providerless,dockerless
make WHAT='{" ".join(f"cmd/{name}" for name in PROGRAMS)}' GOLDFLAGS='-s -w'
mkdir /build/programs
for name in {" ".join(PROGRAMS)}; do
    cp _output/local/bin/linux/amd64/"$name" /build/programs/
done
"""


@functools.cache
def _package_version() -> str:
    """Return the version of Debian's source package."""
    shown = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", "kubernetes-client"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=SHORT_DEADLINE_S,
        check=False,
    ).stdout
    found = re.search(rf"^Version: (\S*{re.escape(VERSION)}\S*)$", shown, re.MULTILINE)
    # A binary rebuilt for another Go (+b7) is of the same source.
    return re.sub(r"\+b\d+$", "", found[1]) if found else VERSION


def programs_path() -> Path:
    """Return where the programs are or will be."""
    recipe = repr((_package_version(), SUITE, BUILD_PACKAGES, BUILD))
    return CACHE / f"kubernetes-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"


def programs() -> Path:
    """
    Return the directory with the programs; the first call compiles them.

    Raises:
        RuntimeError: they could not be compiled; it says why.
    """
    path = programs_path()
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "kubernetes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=CACHE, prefix="build-") as build:
                _compile(Path(build))
                (Path(build) / "root/build/programs").rename(path)
    return path


def _compile(work: Path) -> None:
    """Leave the programs in build/programs below *work*/root, a Debian made for it."""
    archive = debian_archive()
    script = work / "build.sh"
    script.write_text(BUILD)
    done = subprocess.run(
        [
            # With mounts and processes of its own: nothing of it is left behind.
            *("unshare", "--mount", "--propagation=private"),
            *("--pid", "--fork", "--kill-child", "--mount-proc", "--"),
            *("nice", "-n19", "mmdebstrap", "--quiet", "--mode=root"),
            *("--variant=apt", *OPTIONS, f"--include={','.join(BUILD_PACKAGES)}"),
            # While a hook runs, apt in there knows its lists and finds its archive.
            *("--customize-hook", f"upload '{script}' /build.sh"),
            *("--customize-hook", 'chroot "$1" sh /build.sh >&2'),
            *(SUITE, str(work / "root")),
            *(f"deb {archive} {SUITE} main", f"deb-src {archive} {SUITE} main"),
        ],
        env=ENVIRONMENT,
        capture_output=True,
        timeout=BUILD_DEADLINE_S,
        check=False,
    )
    if done.returncode != 0:
        output = (done.stdout + done.stderr)[-3000:].decode(errors="replace")
        raise RuntimeError(f"no Kubernetes {VERSION}: {output}")


if __name__ == "__main__":
    print(programs())
