"""A pod's volume over CSI, and what the driver takes: `python -m tests.bench.csi`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

from tests.protocol.node import memory_bytes, running
from tests.support.csi import Driver

from .report import Row, Target, row, tables

SECTION = "CSI: a volume at a pod's path, and gone"
PAIR = Target(p50_max=60.0)
MEMORY = Target(p50_max=60.0)
ROUNDS = 200
QUICK_ROUNDS = 3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.csi")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    rounds = QUICK_ROUNDS if parser.parse_args().quick else ROUNDS
    print(tables(list(measure(rounds))))


def measure(rounds: int) -> Iterator[Row]:
    """Yield the rows: a pair of calls in ms, memory in MiB."""
    with running() as node:
        before = memory_bytes(node.process.pid)
        driver = Driver(node)
        driver.start()
        node.create("warm")
        target = driver.target("bench", "warm")
        times: dict[str, list[float]] = {"pair": [], "publish": [], "unpublish": []}
        for _ in range(rounds):
            began_s = time.perf_counter()
            driver.publish("warm", target)
            between_s = time.perf_counter()
            driver.unpublish("warm", target)
            ended_s = time.perf_counter()
            times["publish"].append((between_s - began_s) * 1000)
            times["unpublish"].append((ended_s - between_s) * 1000)
            times["pair"].append((ended_s - began_s) * 1000)
        names = {
            "pair": "NodePublish + NodeUnpublish, warm",
            "publish": "NodePublish",
            "unpublish": "NodeUnpublish",
        }
        for key, what in names.items():
            target_of = PAIR if key == "pair" else None
            yield row(
                SECTION, f"csi-{key}", what, {"remora": times[key]}, target=target_of
            )
        memory = memory_bytes(driver.pid) / 2**20
        yield row(
            SECTION,
            "csi-memory",
            "the driver, MiB",
            {"remora": [memory]},
            target=MEMORY,
        )
        yield row(
            SECTION,
            "csi-daemon",
            "the daemon before it, MiB",
            {"remora": [before / 2**20]},
        )
        driver.stop()


if __name__ == "__main__":
    main()
