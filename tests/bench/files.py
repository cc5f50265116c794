"""
File operations inside a container, in volumes of both drivers on one filesystem.

One process does them all, in turns. A second volume of the `local` driver is measured
against the first as well: what differs there is noise.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from .report import BASELINE, CONTROL, OURS, Row, Target, row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.engine import Engine

    from .sizes import Sizes

AGAINST_LOCAL = Target(ratio_min=0.97)
SECTION = "File operations in a container (ratios of speeds)"
IMAGE = "remora-bench-usr:1"
WORKER = Path(__file__).with_name("io_worker.py")
# Directory in the container: whose figures it gives, driver of the volume there.
VOLUMES = {
    "local": (BASELINE, "local"),
    "control": (CONTROL, "local"),
    "remora": (OURS, "remora"),
}
WORK_DEADLINE_S = 900.0


def measure(engine: Engine, sizes: Sizes) -> Iterator[Row]:
    """Yield the rows; the engine runs, with our plugin."""
    engine.docker("import", "-", IMAGE, stdin=_usr_image())
    for name, (_, driver) in VOLUMES.items():
        engine.docker("volume", "create", "-d", driver, f"bench-io-{name}")
    try:
        times = json.loads(_work(engine, sizes))
    finally:
        for name in VOLUMES:
            engine.docker("volume", "rm", f"bench-io-{name}", check=False)
    small = f"{sizes.io_small_files} files of 4 KiB"
    words = {
        "write": f"write {sizes.io_file_bytes >> 20} MiB, fsync",
        "read-cold": f"read {sizes.io_file_bytes >> 20} MiB, not cached",
        "read-cached": f"read {sizes.io_file_bytes >> 20} MiB, cached",
        "create": f"create {small}",
        "stat": f"stat {small}",
        "unlink": f"unlink {small}",
        "synced-write": f"{sizes.io_synced_writes} x 4 KiB with fsync",
    }
    for key, what in words.items():
        taken = {VOLUMES[name][0]: each for name, each in times[key].items()}
        yield row(
            SECTION, f"io-{key}", what, taken, target=AGAINST_LOCAL, of_speeds=True
        )


def _work(engine: Engine, sizes: Sizes) -> str:
    numbers = (
        sizes.io_rounds,
        sizes.io_file_bytes,
        sizes.io_small_files,
        sizes.io_synced_writes,
    )
    mounts = [f"--volume=bench-io-{name}:/{name}" for name in VOLUMES]
    return engine.run(
        *("-v", "/usr:/usr:ro", "-v", f"{WORKER}:/worker.py:ro", *mounts, IMAGE),
        *("/usr/bin/python3", "-I", "-S", "/worker.py"),
        *map(str, numbers),
        *(f"/{name}" for name in VOLUMES),
        timeout_s=WORK_DEADLINE_S,
    )


def _usr_image() -> bytes:
    """Return a root that becomes a Debian when the machine's /usr is put into it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("bin", "sbin", "lib", "lib64"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
        for name in ("usr", "tmp", "dev", "proc", "sys", "etc"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(directory)
    return buffer.getvalue()
