"""What of creating and removing volumes waits for the disk, and how often."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.host import REPOSITORY

TIMES = 10
STORE = f"""
import os, sys
from pathlib import Path
from plugin.store.base import Delete, Put
from plugin.store.sqlite import SqliteStore

store = SqliteStore(Path(sys.argv[1]) / "store.db")
store.transact([], [Put("first", b"")])  # the log's beginning
for step, change in (
    ("put", [Put("a", b"")]),
    ("repeatable", [Delete("a", repeatable=True)]),
    ("put again", [Put("a", b"")]),
    ("final", [Delete("a")]),
    ("both", [Put("b", b""), Delete("b", repeatable=True)]),
):
    os.write(1, step.encode())
    for _ in range({TIMES}):
        store.transact([], change)
os._exit(0)
"""
POOL = """
import os, sys, uuid
from pathlib import Path
from backends.base import Volume
from backends.rsync.backend import RsyncBackend

backend = RsyncBackend(Path(sys.argv[1]) / "pool", pool_id=None)
backend.pool.initialise()
made = Volume(str(uuid.uuid4()), "db", backend.default_options(), "")
os.write(1, b"create")
backend.create(made, deadline_s=20)
os.write(1, b"end")
os._exit(0)
"""


def traced(script: str, calls: str, directory: Path) -> dict[str, list[str]]:
    """Return the system *calls* of *script*, by what it has written before them."""
    log = directory / "calls"
    trace = ["strace", "-y", "-e", f"trace=write,{calls}", "-e", "signal=none"]
    subprocess.run(
        [*trace, "-o", str(log), sys.executable, "-c", script, str(directory)],
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
    )
    step, found = "start", dict[str, list[str]]()
    for line in log.read_text().splitlines():
        if line.startswith("write(1<"):
            step = line.split('"')[1]
        elif not line.startswith("write("):
            found.setdefault(step, []).append(line)
    return found


def test_only_a_change_that_can_be_done_again_waits_for_no_disk(tmp_path: Path) -> None:
    found = traced(STORE, "fdatasync", tmp_path)
    assert "repeatable" not in found
    assert all(len(found[step]) >= TIMES for step in ("put", "put again", "both"))
    # A deletion of what is not there changes nothing, and has nothing to flush.
    assert len(found["final"]) == 1


def test_a_new_volume_is_flushed_when_all_of_it_is_there(tmp_path: Path) -> None:
    """Then one write of the filesystem's journal has all of it."""
    found = traced(POOL, "fsync,mkdir,rename,chown,chmod,unlink", tmp_path)["create"]
    names = [each.partition("(")[0] for each in found if " = 0" in each]
    assert names[-3:] == ["fsync"] * 3
    assert "fsync" not in names[:-3]
    flushed = [each.partition("<")[2].partition(">")[0] for each in found[-3:]]
    volumes = str(tmp_path / "pool/volumes")
    home = str(Path(flushed[0]).parent)
    assert flushed == [f"{home}/volume.json", home, volumes]
    assert str(Path(home).parent) == volumes
