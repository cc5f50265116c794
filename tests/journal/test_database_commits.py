"""
Whether MariaDB starts from the commits that are made while it writes.

The engine and both programs are real, but it is one machine and no daemon: a commit
takes a second here, and `tests/lab/test_replication_database.py` does the rest.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from backends.rsync.journal.journal import Journal
from tests.lab.database import ATOMIC, SCHEMA, DamagedError
from tests.support import images
from tests.support.journal_trees import VOLUME, replicate
from tests.support.mariadb import DEADLINE_S, Server
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.pausing import control_group, joining, paused_owner
from tests.support.processes import stopped
from tests.support.watching import make_root

COMMITS_FEW, COMMITS = 3, int(os.environ.get("REMORA_DATABASE_COMMITS", "20"))
LONG = (pytest.mark.long, pytest.mark.timeout(3600))
# With containers that stand still for each commit.
OF_ONE_MOMENT = {*ATOMIC, "xfs"}
SEED = int(os.environ.get("REMORA_SEED", "1"))
# So many rows in a transaction that the server writes its pages and its log's head all
# the time, also where a commit of its own takes long.
ROWS_EACH, TRANSACTIONS = 40, 20_000
TRANSACTION = """
BEGIN;
INSERT INTO shop.entries
    SELECT seq, REPEAT(LPAD(seq, 8, '0'), 300) FROM shop.seq_{0}_to_{1};
INSERT INTO shop.ledger SELECT UNHEX(MD5(seq)), seq FROM shop.seq_{0}_to_{1};
COMMIT;
SELECT {1};
"""


@pytest.fixture(params=["ext4", "btrfs", "xfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    enter_private_mounts()
    with loop_filesystem(tmp_path, request.param, size="4G") as disk:
        yield disk


@pytest.fixture
def group() -> Iterator[Path]:
    with control_group() as group:
        yield group


@pytest.fixture
def servers(tmp_path: Path, group: Path) -> Iterator[tuple[Server, Server]]:
    """Return one that writes, in *group*, and one to try what has become of that."""
    if missing := images.missing():
        pytest.skip(f"needs {missing}")
    pair = (
        Server(tmp_path / "one", lambda *argv: joining(group, *argv)),
        Server(tmp_path / "other"),
    )
    yield pair
    for each in pair:
        each.end()


@contextmanager
def copying(disk: Path, member: Path) -> Iterator[tuple[Path, Callable[[], object]]]:
    """Yield where a server is to write on *disk*, and what commits that to *member*."""
    if disk.name == "xfs":
        # By itself a busy machine's long pauses would turn it off.
        with paused_owner(disk, "pause") as owner:
            yield owner.mounted, partial(owner.replicate, member)
            print(owner.facts)
        return
    home = disk / "owner"
    home.mkdir()
    live = make_root(home / "live")
    one, other = Journal(home, VOLUME), Journal(member, VOLUME)
    yield live, partial(replicate, one, other)
    one.close()
    other.close()


def acknowledged(rows: Path) -> int:
    """Return the last row that a client has printed to *rows*."""
    lines = rows.read_text().rpartition("\n")[0].splitlines()
    return int(lines[-1]) if lines else 0


@pytest.mark.parametrize("commits", [COMMITS_FEW, pytest.param(COMMITS, marks=LONG)])
def test_a_database_starts_from_what_the_member_has(
    disk: Path,
    servers: tuple[Server, Server],
    group: Path,
    tmp_path: Path,
    commits: int,
) -> None:
    other = tmp_path / "member"
    (other / "live").mkdir(parents=True)
    writing, trying = servers
    script, rows = tmp_path / "script", tmp_path / "rows"
    ends = range(ROWS_EACH, ROWS_EACH * TRANSACTIONS, ROWS_EACH)
    script.write_text(
        "".join(TRANSACTION.format(end - ROWS_EACH + 1, end) for end in ends)
    )
    chance = random.Random(SEED)
    damages = []
    with copying(disk, other) as (live, commit), ExitStack() as stack:
        writing.open(live)
        stack.callback(writing.end)
        assert writing.told(SCHEMA).returncode == 0
        with script.open() as given, rows.open("wb") as printed:
            command = joining(group, *writing.client())
            client = subprocess.Popen(command, stdin=given, stdout=printed)
        stack.callback(client.wait)
        stack.callback(client.kill)
        commit()  # the first one takes long, and is of no one moment
        for number in range(commits):
            time.sleep(chance.uniform(0.3, 3))
            before = acknowledged(rows)
            assert commit() in (None, "snapshot")
            assert client.poll() is None
            try:
                # A trial takes longer than all the rest.
                with stopped([client.pid]):
                    last = started(trying, other / "live", tmp_path / "trial")
            except DamagedError as error:
                damages.append(f"commit {number}: {error}")
            else:
                assert before <= last <= acknowledged(rows) + ROWS_EACH
    print(f"{disk.name}: started from {commits - len(damages)} of {commits} commits")
    if disk.name in OF_ONE_MOMENT:
        assert not damages, damages[0]


def started(server: Server, copy: Path, trial: Path) -> int:
    """Return the last row that *server* finds in a copy of the directory *copy*."""
    shutil.rmtree(trial, ignore_errors=True)
    subprocess.run(["cp", "-a", copy, trial], check=True, timeout=DEADLINE_S)
    try:
        server.open(trial)
        return server.last_row()
    finally:
        server.end()
