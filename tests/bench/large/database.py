"""
MariaDB on a volume, and clients that keep to a rate.

The work is a procedure in the server: clients cost next to nothing. A transaction
changes a row anywhere in the table, and writes down that it did; a client that comes
late does its next ones at once.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from tests.bench.figures import percentile
from tests.support import images
from tests.support.mariadb import Server

from .following import MIB

CLIENTS: Final = 8
# Four rows fill a page.
ROW_BYTES: Final = 4 << 10
ROWS_AT_ONCE: Final = 20_000
# Not all of it is in memory, as with databases that are worth a volume.
MEMORY_SHARE: Final = 4
MEMORY_MIB_MIN: Final = 32
# What a client may take longer than it is to work.
MORE_S: Final = 300.0
FILL_DEADLINE_S: Final = 3600.0
_IN_TESTS: Final = "--innodb-buffer-pool-size=16M --innodb-log-file-size=8M"
_HERE: Final = "--innodb-buffer-pool-size={0}M --innodb-buffer-pool-size-max={0}M"
SCHEMA: Final = """
CREATE DATABASE bench;
USE bench;
CREATE TABLE pages
    (id INT PRIMARY KEY, hits INT NOT NULL, content VARCHAR(3800)) CHARSET latin1;
CREATE TABLE ledger
    (run INT, client INT, number INT, took_us INT, note CHAR(200),
    PRIMARY KEY (run, client, number)) CHARSET latin1;
DELIMITER //
CREATE PROCEDURE work
    (run INT, client INT, seconds DOUBLE, each_s DOUBLE, last_id INT)
BEGIN
    DECLARE began, now, due DOUBLE;
    DECLARE number, took_us, any_id INT DEFAULT 0;
    SET began = UNIX_TIMESTAMP(SYSDATE(6)), now = began;
    WHILE now < began + seconds DO
        SET due = now, any_id = FLOOR(1 + RAND() * last_id);
        START TRANSACTION;
        UPDATE pages SET hits = hits + 1 WHERE id = any_id;
        INSERT INTO ledger VALUES (run, client, number, took_us, MD5(number));
        COMMIT;
        SET now = UNIX_TIMESTAMP(SYSDATE(6));
        SET took_us = (now - due) * 1000000, number = number + 1;
        SET due = began + number * each_s;
        IF due > now THEN
            DO SLEEP(due - now);
            SET now = UNIX_TIMESTAMP(SYSDATE(6));
        END IF;
    END WHILE;
    SELECT number;
END //
DELIMITER ;
"""
FILL: Final = """
USE bench;
SET GLOBAL innodb_flush_log_at_trx_commit = 0;
SET unique_checks = 0;
{0}
SET GLOBAL innodb_flush_log_at_trx_commit = 1;
"""
FILL_SOME: Final = """
INSERT INTO pages
    SELECT seq, 0, REPEAT(MD5(seq), 118) FROM seq_{0}_to_{1};
"""
TOOK: Final = "SELECT took_us FROM bench.ledger WHERE run = {0} AND number > 0;"


@dataclass(frozen=True, slots=True)
class Load:
    """Some work: when it began and ended, transactions in a second, their times."""

    began_at_s: float
    ended_at_s: float
    rate: float
    p50_ms: float
    p99_ms: float

    def cells(self) -> tuple[str, str, str]:
        """Return transactions in a second, p50 and p99."""
        return f"{self.rate:.0f}", f"{self.p50_ms:.1f} ms", f"{self.p99_ms:.1f} ms"


class Database:
    """A server whose data is *size_bytes* long; one at a time, where it is started."""

    def __init__(self, work: Path, size_bytes: int) -> None:
        self._work = work
        self._rows = max(ROWS_AT_ONCE, size_bytes // ROW_BYTES)
        memory_mib = max(MEMORY_MIB_MIN, size_bytes // MEMORY_SHARE // MIB)
        self._start = images.DATABASE_START.replace(_IN_TESTS, _HERE.format(memory_mib))
        assert self._start != images.DATABASE_START
        self._server: Server | None = None
        self._servers = 0
        self._runs = 0
        self.transactions = 0

    @property
    def pid(self) -> int:
        """The server's process, in whose mounts the volume is shown."""
        process = self._running().process
        assert process is not None
        return process.pid

    def start(self, data: Path, inside: Callable[..., list[str]]) -> float:
        """Start it on *data*, in the mounts of a node; return the seconds it took."""
        self._servers += 1
        self._server = Server(self._work / str(self._servers), inside)
        program = self._server.work / "upper/start-database"
        program.write_text(self._start)
        program.chmod(0o755)
        began_s = time.monotonic()
        self._server.open(data)
        return time.monotonic() - began_s

    def stop(self) -> float:
        """Stop it orderly; return the seconds it took."""
        began_s = time.monotonic()
        self._running().stop()
        self._server = None
        return time.monotonic() - began_s

    def end(self) -> None:
        """Kill it, if it runs."""
        if self._server is not None:
            self._server.end()

    def fill(self) -> None:
        """Make its tables."""
        self._ask(SCHEMA)
        parts = (
            FILL_SOME.format(first, min(self._rows, first + ROWS_AT_ONCE - 1))
            for first in range(1, self._rows + 1, ROWS_AT_ONCE)
        )
        self._ask(FILL.format("".join(parts)))

    def work(self, seconds: float, rate: float) -> Load:
        """Have it do *rate* transactions in a second, 0: as many as it can."""
        self._runs += 1
        each_s = CLIENTS / rate if rate else 0.0
        began_at_s = time.time()
        clients = [
            self._begun(f"{self._runs}, {each}, {seconds}, {each_s}, {self._rows}")
            for each in range(CLIENTS)
        ]
        count = 0
        for each in clients:
            output, _ = each.communicate(timeout=seconds + MORE_S)
            assert each.returncode == 0, self._running().log.read_text()[-2000:]
            count += int(output)
        ended_at_s = time.time()
        self.transactions += count
        took_us = [*map(int, self._ask(TOOK.format(self._runs)).split())]
        return Load(
            *(began_at_s, ended_at_s, count / (ended_at_s - began_at_s)),
            *(percentile(took_us, share) / 1000 for share in (0.5, 0.99)),
        )

    def check(self) -> None:
        """Fail if a transaction that was done is not there."""
        there = int(self._ask("SELECT COUNT(*) FROM bench.ledger;"))
        assert there == self.transactions, f"{there} of {self.transactions}"

    def _begun(self, arguments: str) -> subprocess.Popen[bytes]:
        command = [*self._running().client(), "-e", f"CALL bench.work({arguments})"]
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    def _ask(self, script: str) -> str:
        done = subprocess.run(
            self._running().client(),
            input=script,
            capture_output=True,
            text=True,
            timeout=FILL_DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _running(self) -> Server:
        assert self._server is not None
        return self._server


def within(times_s: Sequence[float], load: Load) -> list[float]:
    """Return the seconds between those of *times_s* that fall into *load*."""
    inside = [each for each in times_s if load.began_at_s < each < load.ended_at_s]
    marks = [load.began_at_s, *inside, load.ended_at_s]
    return [later - earlier for earlier, later in pairwise(marks)]
