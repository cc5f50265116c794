"""
What a replicated volume costs its container: `python -m tests.bench.watched`.

The same file operations in turns: in a volume that is mounted, watched and sent to
another node every ten seconds, and in a directory of a filesystem that nothing watches.
A second such directory against the first is the noise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tests.protocol import node

from . import machine
from .figures import ratio
from .mirrors import Remora, new_disk, place

WORKER = Path(__file__).with_name("io_worker.py")
ROUNDS, ROUNDS_QUICK = 40, 2
FILE_BYTES = 64 << 20
SMALL_FILES, SYNCED_WRITES = 300, 100
DEADLINE_S = 1800.0


def main() -> int:
    """Return the exit code: 0, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.watched")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    arguments = parser.parse_args()
    if missing := node.missing():
        parser.error(f"needs {missing}")
    print(f"load {machine.load()} before")
    with place() as (directory, stack, _), new_disk() as disk:
        remora = Remora(directory, stack, interval="10s")
        (remora.source / "first").write_text("first")
        remora.seed()
        plain = [disk / "plain", disk / "control"]
        for each in plain:
            each.mkdir()
        numbers = (
            ROUNDS_QUICK if arguments.quick else ROUNDS,
            *(FILE_BYTES, SMALL_FILES, SYNCED_WRITES),
        )
        done = subprocess.run(
            [sys.executable, WORKER, *map(str, numbers), remora.source, *plain],
            capture_output=True,
            check=True,
            timeout=DEADLINE_S,
        )
        print(f"{len(remora.syncs_ms())} syncs meanwhile")
    print("speed against a plain directory; in brackets that of another plain one")
    for key, times in json.loads(done.stdout).items():
        ours = ratio(times["plain"], times[remora.source.name])
        noise = ratio(times["plain"], times["control"])
        print(f"{key:>12} {ours.value:.2f} ({ours.low:.2f} to {ours.high:.2f})", end="")
        print(f" ({noise.value:.2f}, {noise.low:.2f} to {noise.high:.2f})")
    print(f"load {machine.load()} after")
    return 0


if __name__ == "__main__":
    sys.exit(main())
