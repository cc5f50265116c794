"""
NFS volumes against the mounts that anybody can make: `python -m tests.bench.nfs`.

In the lab (kernels of their own; see tests/lab/README.md), on one node, in turns: our
volume, `mount.nfs` with the same options, and mount(2) with the options that Docker's
`local` driver hands to the kernel for `type=nfs,o=addr=...`. All measuring is done
inside the node, by nfs_worker.py; what counts are the ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import lab as lab_module
from tests.lab.lab import Lab, Topology
from tests.lab.nfs import SERVER, XFS, NfsServer
from tests.lab.nfs_cluster import NfsNode, running
from tests.support.daemon import PROGRAM

from . import machine
from .figures import ratio
from .nfs_worker import BARE, BARE_AGAIN, LOCAL, OURS, SUBJECTS
from .report import Spread, Target

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WORKER = Path(__file__).with_name("nfs_worker.py")
WORK_DEADLINE_S = 1500.0
MIB = 1 << 20
# What is made of the share for each of the others: the directory below it.
DIRECTORIES = {BARE: "bare", BARE_AGAIN: "bare-again", LOCAL: "local"}
TO_MOUNT = Target(ratio_max=1.2)
AS_FAST = Target(ratio_max=1.03)


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is measured."""

    mounts: int
    rounds: int
    file_bytes: int
    small_files: int


FULL = Amount(mounts=40, rounds=7, file_bytes=64 * MIB, small_files=1000)
QUICK = Amount(mounts=2, rounds=1, file_bytes=MIB, small_files=10)


def main() -> int:
    """Return the exit code: 0, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.nfs")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples")
    arguments = parser.parse_args()
    if missing := lab_module.missing():
        parser.error(f"needs {missing}")
    amount = QUICK if arguments.quick else FULL
    began = time.monotonic()
    load = machine.load()
    samples = _measured(amount)
    for line in table(samples, amount):
        print(line)
    print(
        "\np50 / p99 in ms; ratios of medians with the interval of 95 % of resamplings"
    )
    print(
        f"Load {load} before, {machine.load()} after; "
        f"{time.monotonic() - began:.0f} s in all."
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(samples, indent=1) + "\n")
    return 0


def table(
    samples: Mapping[str, Mapping[str, Sequence[float]]], amount: Amount
) -> list[str]:
    """Return the lines of a Markdown table of *samples*, by what and by subject."""
    words = {
        "mount": ("mount", TO_MOUNT),
        "write": (f"write {amount.file_bytes // MIB} MiB, fsync", AS_FAST),
        "read": (f"read {amount.file_bytes // MIB} MiB, not cached", AS_FAST),
        "small": (f"create {amount.small_files} x 4 KiB, fsync each", AS_FAST),
    }
    heads = ("", *SUBJECTS, f"{BARE_AGAIN} : {BARE}", f"{OURS} : {BARE}")
    lines = [
        "| " + " | ".join((*heads, f"{OURS} : {LOCAL}", "to reach", "")) + " |",
        "|---" * (len(heads) + 3) + "|",
    ]
    for key, (what, target) in words.items():
        taken = samples[key]
        spreads = {name: Spread.of(each) for name, each in taken.items()}
        cells = [what]
        for name in SUBJECTS:
            spread = spreads[name]
            cells.append(f"{spread.p50:.0f} / {spread.p99:.0f}")
        for one, other in ((BARE_AGAIN, BARE), (OURS, BARE), (OURS, LOCAL)):
            found = ratio(taken[one], taken[other])
            cells.append(f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})")
        verdict = target.verdict(spreads[OURS], ratio(taken[OURS], taken[BARE]))
        lines.append("| " + " | ".join((*cells, target.text(), verdict)) + " |")
    return lines


def _measured(amount: Amount) -> dict[str, dict[str, list[float]]]:
    """Return the ms by what was measured and by subject."""
    with Lab(Topology.of(SERVER, "alpha")) as lab:
        lab.boot()
        server = NfsServer(lab["server"])
        server.prepare()
        server.start_nfs()
        with running(lab, server, "alpha") as (alpha,):
            _as_users_run_it(alpha)
            alpha.made("ours")
            for directory in DIRECTORIES.values():
                server.run(["mkdir", server.local(f"{XFS}/{directory}")])
            return _work(alpha, amount)


def _as_users_run_it(alpha: NfsNode) -> None:
    """Start the daemon with the pause between its passes that users have."""
    alpha.remora._program = PROGRAM
    alpha.remora.restart()


def _work(alpha: NfsNode, amount: Amount) -> dict[str, dict[str, list[float]]]:
    asked = {
        "server": alpha.server.ipv4,
        "share": XFS,
        "volume": "ours",
        "directories": DIRECTORIES,
        "mounts": amount.mounts,
        "rounds": amount.rounds,
        "file_bytes": amount.file_bytes,
        "small_files": amount.small_files,
    }
    done = alpha.node.run(
        [sys.executable, "-IS", str(WORKER)],
        stdin=json.dumps(asked).encode(),
        timeout_s=WORK_DEADLINE_S,
    )
    measured: dict[str, dict[str, list[float]]] = json.loads(done.stdout)
    return measured


if __name__ == "__main__":
    sys.exit(main())
