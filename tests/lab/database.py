"""
MariaDB on a directory of a node, and clients that know what was committed.

It is Debian's, with its defaults of durability, run from the root that
`images.database_root` makes: in mounts of its own, as in a container, but without an
engine, which would take the most time in a node. Its mounts end with it.
"""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass
from typing import Final

from tests.support import images
from tests.support.host import wait_until

from .commands import NodeProcess, text_of
from .node import Node
from .services import Service

# It installs itself at the first start, or recovers.
START_DEADLINE_S: Final = 180.0
STOP_DEADLINE_S: Final = 90.0
CLIENT_DEADLINE_S: Final = 300.0
READY: Final = "ready for connections"
# Filesystems on which a commit of a running database is of one moment.
ATOMIC: Final = frozenset({"btrfs", "xfs"})
# As a container's: the plugin can have all that is in it stand still.
JOIN: Final = r"""
mkdir -p /sys/fs/cgroup/unified/database
echo $$ > /sys/fs/cgroup/unified/database/cgroup.procs
exec "$@"
"""
ENTER: Final = r"""
root=$1 data=$2
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount --bind /dev "$root/dev"
# It wants to know its host before it installs itself.
cat /etc/hosts > "$root/etc/hosts"
# By default it reserves more addresses than a process of a node has; and what is
# temporary would be copied to every node.
cat > "$root/etc/my.cnf" <<END
[mariadbd]
innodb_buffer_pool_size_max = 16M
innodb_temp_data_file_path = ../../../tmp/ibtmp1:12M:autoextend
END
mount --bind "$data" "$root/var/lib/mysql"
exec chroot "$root" /start-database
"""

# Each transaction writes to two tables, whose files a copy could have of two moments;
# the second one's key scatters over all its pages. A row's content follows from its
# number, so that a torn one shows.
SCHEMA: Final = """
CREATE DATABASE IF NOT EXISTS shop;
CREATE TABLE IF NOT EXISTS shop.entries
    (number INT PRIMARY KEY, content TEXT NOT NULL) ENGINE = InnoDB;
CREATE TABLE IF NOT EXISTS shop.ledger
    (hash BINARY(16) NOT NULL, number INT, PRIMARY KEY (hash, number)) ENGINE = InnoDB;
"""
ROW: Final = """
INSERT INTO shop.entries VALUES ({0}, REPEAT(LPAD({0}, 8, '0'), 300));
INSERT INTO shop.ledger VALUES (UNHEX(MD5({0})), {0});
"""
# What is printed is known outside the node at once. The pause keeps the volume small.
TRANSACTION: Final = """
BEGIN;
{rows}
COMMIT;
SELECT {last}, UNIX_TIMESTAMP(NOW(6));
DO SLEEP({pause_s});
"""
CHECK: Final = """
CHECK TABLE shop.entries EXTENDED;
CHECK TABLE shop.ledger EXTENDED;
SELECT 'rows', COUNT(*), COALESCE(MAX(number), 0) FROM shop.entries;
SELECT 'rows', COUNT(*), COALESCE(MAX(number), 0) FROM shop.ledger;
SELECT 'torn', number FROM shop.entries
    WHERE content <> REPEAT(LPAD(number, 8, '0'), 300);
SELECT 'unmatched', number FROM shop.ledger LEFT JOIN shop.entries USING (number)
    WHERE content IS NULL OR hash <> UNHEX(MD5(number));
"""


class DamagedError(Exception):
    """The database does not start, or what it holds is not whole."""


class Database(Service):
    """The server on *node*; one at a time, on the directory that `open` is given."""

    def __init__(self, node: Node) -> None:
        super().__init__(node, "mariadbd")
        self._root = images.database_root()
        self._data = ""
        self._log_seen = 0

    def open(self, data: str) -> None:
        """
        Start the server on the directory *data*; return when it takes clients.

        Raises:
            DamagedError: it has ended.

        """
        self._data = data
        self._log_seen = len(text_of(self.log))
        self.launch()
        wait_until(
            lambda: self._ready() or not self.running,
            timeout_s=START_DEADLINE_S,
            what=f"{self.name} has started or ended",
            evidence=self._tail,
        )
        if not self.running:
            raise DamagedError(f"the server does not start:\n{self._tail()}")
        self._query(SCHEMA)

    def close(self) -> None:
        """Stop the server orderly, and see that it says so."""
        code = self.stop(STOP_DEADLINE_S)
        assert code == 0, self._tail()

    def replace(self) -> None:
        """Start with an empty database in the place of one that cannot be used."""
        if self.running:
            self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(STOP_DEADLINE_S)
        self.node.run(["find", self._data, "-mindepth", "1", "-delete"])
        self.open(self._data)

    def last_row(self) -> int:
        """
        Return the number of the last row; all before it are there, and whole.

        Raises:
            DamagedError: they are not, or the server ended over it.

        """
        done = self.node.run(
            self._client(),
            stdin=CHECK.encode(),
            timeout_s=CLIENT_DEADLINE_S,
            check=False,
        )
        return last_row_of(done, self._tail())

    def insert(
        self, first: int, count: int, *, rows_each: int = 1, pause_s: float = 0.0
    ) -> Client:
        """Return a client that inserts *count* rows, *rows_each* in a transaction."""
        script = transactions(first, count, rows_each=rows_each, pause_s=pause_s)
        return Client(self.node.popen(self._client(), stdin=script.encode()))

    def _query(self, script: str) -> str:
        done = self.node.run(
            self._client(), stdin=script.encode(), timeout_s=CLIENT_DEADLINE_S
        )
        return done.stdout

    def _client(self) -> list[str]:
        return [
            *("sh", "-euc", JOIN, "join"),
            *("nsenter", f"--mount=/proc/{self.pid}/ns/mnt", "--"),
            *("chroot", str(self._root), "mariadb", "-N", "-B", "--unbuffered"),
        ]

    def _argv(self) -> list[str]:
        return [
            *("sh", "-euc", JOIN, "join"),
            *("unshare", "--mount", "--propagation", "private", "--"),
            *("sh", "-euc", ENTER, "enter", str(self._root), self._data),
        ]

    def _ready(self) -> bool:
        return READY in text_of(self.log)[self._log_seen :]


def transactions(
    first: int, count: int, *, rows_each: int = 1, pause_s: float = 0.0
) -> str:
    """Return what inserts *count* rows, *rows_each* in a transaction."""
    return "".join(
        TRANSACTION.format(
            rows="".join(map(ROW.format, range(at, at + rows_each))),
            last=at + rows_each - 1,
            pause_s=pause_s,
        )
        for at in range(first, first + count, rows_each)
    )


def last_row_of(done: subprocess.CompletedProcess[str], log: str) -> int:
    """
    Return the last row that the client *done*, which was given `CHECK`, has seen.

    Raises:
        DamagedError: not all before it are there, and whole; with the server's *log*.

    """
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    checks = [line[2:] for line in lines if line[0].startswith("shop.")]
    rows = [line[1:] for line in lines if line[0] == "rows"]
    sound = (
        done.returncode == 0
        and checks == [["status", "OK"]] * 2
        and len({tuple(row) for row in rows}) == 1
        and rows[0][0] == rows[0][1]
        and len(lines) == len(checks) + len(rows)
    )
    if not sound:
        code = f"the client ended with {done.returncode}"
        raise DamagedError(f"{code}\n{done.stdout}{done.stderr}{log}")
    return int(rows[0][0])


@dataclass(frozen=True, slots=True)
class Committed:
    """The last row of a COMMIT that has returned, and when: the node's wall clock."""

    number: int
    at_s: float


class Client:
    """Inserts rows until it has done so, or its node's power fails."""

    def __init__(self, process: NodeProcess) -> None:
        self._process = process

    def wait(self, timeout_s: float = CLIENT_DEADLINE_S) -> list[Committed]:
        """Return the rows, all of them committed."""
        code = self._process.wait(timeout_s)
        assert code == 0, self._process.error_output()
        return self.committed()

    def stop(self) -> list[Committed]:
        """End it wherever it is; return the rows whose commit it has seen."""
        self._process.kill()
        self._process.wait()
        return self.committed()

    def committed(self) -> list[Committed]:
        """Return the rows whose commit was acknowledged up to now, in their order."""
        # The last line may be half-way here.
        lines = self._process.output().rpartition("\n")[0].splitlines()
        return [
            Committed(int(number), float(at_s))
            for number, at_s in (line.split("\t") for line in lines)
        ]

    def failure(self) -> str:
        """Return why it has ended by itself, or ''."""
        if self._process.poll() is None:
            return ""
        return self._process.error_output() or "it has inserted all rows"
