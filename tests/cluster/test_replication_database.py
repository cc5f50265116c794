"""
MariaDB moves orderly with its volume, through three real daemons on this machine.

`tests/lab/test_replication_database.py` does it on kernels of their own, where power
fails too; here a move takes seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.database import SCHEMA, transactions
from tests.support import images
from tests.support.mariadb import Server
from tests.support.owners import Owner

MOVES_FEW, MOVES = 3, int(os.environ.get("REMORA_DATABASE_MOVES", "50"))
LONG = (pytest.mark.long, pytest.mark.timeout(3600))
ROWS = 25
NAMES = ("alpha", "beta", "gamma")


@pytest.fixture
def nodes(
    make_owner: Callable[..., Owner], tmp_path: Path
) -> Iterator[list[tuple[Owner, Server]]]:
    """Yield three nodes of one cluster, and a server for each."""
    if missing := images.missing():
        pytest.skip(f"needs {missing}")
    owners = [make_owner(name) for name in NAMES]
    pairs = [(each, Server(tmp_path / each.name, each.inside)) for each in owners]
    yield pairs
    for _, server in pairs:
        server.end()


@pytest.mark.parametrize("moves", [MOVES_FEW, pytest.param(MOVES, marks=LONG)])
def test_orderly_moves_lose_no_committed_row(
    nodes: list[tuple[Owner, Server]], moves: int
) -> None:
    nodes[0][0].create("db", interval="1s", members=",".join(NAMES))
    for owner, _ in nodes:
        owner.wait_known("db")
    row = 0
    for number in range(moves + 1):
        began_s = time.monotonic()
        owner, server = nodes[number % len(nodes)]
        server.open(owner.mount_at_last("db"))
        if not number:
            assert server.told(SCHEMA).returncode == 0
        assert server.last_row() == row, f"after {number} moves"
        done = server.told(transactions(row + 1, ROWS))
        assert done.returncode == 0, done.stderr
        row += ROWS
        server.stop()
        owner.unmount("db")
        print(f"{number}: {row} rows, {time.monotonic() - began_s:.1f} s", flush=True)
