"""A database on an NFS volume while the server's power fails: no commit is lost."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.lab.commands import NodeProcess
from tests.lab.lab import Lab
from tests.lab.nfs import EXPORTS, XFS, NfsServer
from tests.lab.nfs_cluster import NfsNode, empty, running
from tests.support.host import wait_until

# So many commits before the power fails, and after the server serves again.
COMMITS = 40
COMMITS_DEADLINE_S = 60.0
# It boots, its clients wait out the grace period, what hung goes on.
RECOVERY_DEADLINE_S = 200.0
# A client that has sent in vain tries again after 16 or 32 s, and must come in time: on
# a busy machine 45 s were too short once. Servers outside the lab give it 90 s.
GRACE_S = 60
# The kernel's lock manager, too, has a grace period, of 50 s: until both are over the
# server gives nobody a new lock. A writer to whom Linux 7 had delegated the file locks
# it without asking and is ready long before, so it is the reader who waits; a client
# tries again every 15 s.
READ_DEADLINE_S = GRACE_S + 15.0 + 30.0

# A row's content follows from its number, so that a torn one shows. The number is
# printed once COMMIT has returned, to a file that is not the node's.
WRITER = """
import os, sqlite3, sys
path, stop = sys.argv[1:]
database = sqlite3.connect(path, isolation_level=None, timeout=30)
print("journal", *database.execute("PRAGMA journal_mode = DELETE").fetchone())
database.execute("PRAGMA synchronous = FULL")
database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, content TEXT)")
number = 0
while not os.path.exists(stop):
    number += 1
    database.execute("BEGIN IMMEDIATE")
    content = f"{number:08}" * 300
    database.execute("INSERT INTO rows VALUES (?, ?)", (number, content))
    database.execute("COMMIT")
    print(number, flush=True)
database.close()
"""
READER = """
import json, sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=30)
check = database.execute("PRAGMA integrity_check").fetchall()
rows = database.execute("SELECT number, content FROM rows ORDER BY number").fetchall()
torn = [number for number, content in rows if content != f"{number:08}" * 300]
print(json.dumps({"check": check, "numbers": [row[0] for row in rows], "torn": torn}))
"""


@pytest.fixture
def nodes(shared_lab: Lab, nfs_server: NfsServer) -> Iterator[tuple[NfsNode, NfsNode]]:
    """Yield the daemons on two nodes; afterwards the server's shares are empty."""
    with running(shared_lab, nfs_server, "alpha", "beta") as (alpha, beta):
        yield alpha, beta
    empty(nfs_server)


def test_every_acknowledged_commit_survives_the_servers_power_failure(
    nodes: tuple[NfsNode, NfsNode], nfs_server: NfsServer
) -> None:
    alpha, beta = nodes
    assert "sync" in EXPORTS[XFS].split(",")
    alpha.made("db")
    target = alpha.mount("db")
    assert ",hard," in alpha.status("db")["effective_options"]
    stop = "/data/stop-writing"
    writer = alpha.node.popen(
        [sys.executable, "-ISc", WRITER, f"{target}/rows.db", stop]
    )
    try:
        _await_commits(writer, COMMITS, COMMITS_DEADLINE_S)
        nfs_server.grace_s = GRACE_S
        nfs_server.power_off()
        before = _committed(writer)
        assert writer.poll() is None
        nfs_server.boot()
        _await_commits(writer, before + COMMITS, RECOVERY_DEADLINE_S)
        alpha.node.run(["touch", stop])
        assert writer.wait(30) == 0, writer.error_output()
    finally:
        writer.kill()
        alpha.node.run(["rm", "-f", stop])
    acknowledged = _committed(writer)
    assert writer.output().startswith("journal delete\n")
    alpha.unmount("db")

    target = beta.mount("db")
    reader = [sys.executable, "-ISc", READER, f"{target}/rows.db"]
    read = beta.node.run(reader, timeout_s=READ_DEADLINE_S)
    found = json.loads(read.stdout)
    assert found["check"] == [["ok"]]
    assert found["numbers"] == list(range(1, acknowledged + 1))
    assert found["torn"] == []
    beta.unmount("db")


def _committed(writer: NodeProcess) -> int:
    """Return the last row whose commit was acknowledged."""
    # The last line may be half-way here.
    lines = writer.output().rpartition("\n")[0].splitlines()
    return int(lines[-1]) if len(lines) > 1 else 0


def _await_commits(writer: NodeProcess, count: int, timeout_s: float) -> None:
    def done() -> bool:
        assert writer.poll() is None, writer.error_output()
        return _committed(writer) >= count

    wait_until(
        done,
        timeout_s=timeout_s,
        what=f"row {count} is committed",
        evidence=lambda: f"the last one is {_committed(writer)}",
    )
