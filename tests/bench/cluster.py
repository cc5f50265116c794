"""
Mount and Unmount in a cluster of one: `python -m tests.bench.cluster`.

The same daemon, in turns: alone on its embedded store, with an etcd on this machine
whose data are in memory (what our part takes), and with one whose data are on this
machine's disk. The volume is there and warm. Every Mount acquires it and every Unmount
releases it; the rows `second` are those of another container on the node that has it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from tests.protocol import client, node
from tests.protocol.node import Node
from tests.support import etcd
from tests.support.owners import Owner

from . import machine
from .figures import ratio, turns
from .report import Spread, Target
from .subjects import timed_call_ms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ALONE, IN_MEMORY, ON_DISK = "alone", "etcd in memory", "etcd on disk"
SUBJECTS = (ALONE, IN_MEMORY, ON_DISK)
WARM = Target(p50_max=25.0)
NAME = "bench"
ROUNDS, ROUNDS_QUICK, ROUNDS_WARM_UP = 200, 3, 3
Samples = dict[str, dict[str, list[float]]]


def main() -> int:
    """Return the exit code: 0, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cluster")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples")
    arguments = parser.parse_args()
    if missing := node.missing():
        parser.error(f"needs {missing}")
    began, load = time.monotonic(), machine.load()
    samples = measured(ROUNDS_QUICK if arguments.quick else ROUNDS)
    print("\n".join(table(samples)))
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


def measured(rounds: int) -> Samples:
    """Return the times of each call in ms, by call and by subject."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        nodes: dict[str, Node] = {ALONE: stack.enter_context(closing(Node()))}
        memory = etcd.memory_directory(directory / "memory")
        # The directory can only go without it.
        stack.callback(subprocess.run, ["umount", memory], check=True, timeout=30)
        disk = directory / "disk"
        disk.mkdir()
        for subject, data in ((IN_MEMORY, memory), (ON_DISK, disk)):
            server = stack.enter_context(etcd.single(data))
            owner = Owner("bench", server, "/bench/", lease_ttl_s=15)
            nodes[subject] = stack.enter_context(closing(owner))
        for each in nodes.values():
            each.start()
            if isinstance(each, Owner):
                each.wait_member()
            each.create(NAME)
        _rounds(nodes, ROUNDS_WARM_UP)
        return _rounds(nodes, rounds)


def _rounds(nodes: Mapping[str, Node], rounds: int) -> Samples:
    calls = {
        "mount": ("Mount", "one"),
        "second mount": ("Mount", "two"),
        "second unmount": ("Unmount", "two"),
        "unmount": ("Unmount", "one"),
    }
    samples: Samples = {what: {name: [] for name in nodes} for what in calls}
    for order in turns(SUBJECTS, rounds):
        for name in order:
            for what, (operation, mount_id) in calls.items():
                content = client.go_json({"Name": NAME, "ID": mount_id})
                sent = client.engine_request(f"VolumeDriver.{operation}", content)
                taken_ms = timed_call_ms(nodes[name].plugin_socket, sent)
                samples[what][name].append(taken_ms)
    return samples


def table(samples: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Return the lines of a Markdown table of *samples*."""
    heads = ("", *SUBJECTS, f"{IN_MEMORY} : {ALONE}", "to reach, in memory", "")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for what, taken in samples.items():
        spreads = [Spread.of(taken[name]) for name in SUBJECTS]
        cells = [what, *(f"{each.p50:.1f} / {each.p99:.1f}" for each in spreads)]
        found = ratio(taken[IN_MEMORY], taken[ALONE])
        cells.append(f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})")
        verdict = WARM.verdict(Spread.of(taken[IN_MEMORY]), None)
        lines.append("| " + " | ".join((*cells, WARM.text(), verdict)) + " |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
