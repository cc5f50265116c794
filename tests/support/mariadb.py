"""MariaDB as a process of this machine, or of one of the nodes in `owners.py`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lab.database import CHECK, ENTER, READY, DamagedError, last_row_of
from tests.support import images
from tests.support.host import wait_until

DEADLINE_S = 120.0
OVERLAY = """
mount -t overlay overlay -o "lowerdir=$1,upperdir=$3/upper,workdir=$3/work" "$3/root"
set -- "$3/root" "$2"
"""


class Server:
    """MariaDB in mounts and a network of its own; its root stays as it was."""

    def __init__(
        self, work: Path, inside: Callable[..., list[str]] | None = None
    ) -> None:
        """*inside* returns a command for the mounts of the node that has its data."""
        self.work = work
        self._inside = inside or (lambda *argv: [*argv])
        for name in ("root", "upper", "work"):
            (work / name).mkdir(parents=True)
        self.log = work / "log"
        self.process: subprocess.Popen[Any] | None = None

    def open(self, data: Path) -> None:
        """Start it on *data*; a `DamagedError` says that it has ended."""
        with self.log.open("wb") as log:
            self.process = process = subprocess.Popen(
                self._inside(
                    *("unshare", "--mount", "--net", "--propagation", "private"),
                    *("sh", "-euc", OVERLAY + ENTER, "enter"),
                    *map(str, (images.database_root(), data, self.work)),
                ),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until(
            lambda: READY in self.log.read_text() or process.poll() is not None,
            timeout_s=DEADLINE_S,
            what="the server has started or ended",
        )
        if process.poll() is not None:
            raise DamagedError(self.log.read_text())

    def client(self) -> list[str]:
        """Return the command of a client."""
        assert self.process is not None
        return [
            *("nsenter", f"--mount=/proc/{self.process.pid}/ns/mnt", "--"),
            *("chroot", f"{self.work}/root", "mariadb", "-N", "-B", "--unbuffered"),
        ]

    def told(self, script: str) -> subprocess.CompletedProcess[str]:
        """Return what a client with *script* did."""
        return subprocess.run(
            self.client(),
            input=script,
            text=True,
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def last_row(self) -> int:
        """Return the last row; a `DamagedError` says that not all of it is whole."""
        return last_row_of(self.told(CHECK), self.log.read_text())

    def stop(self) -> None:
        """Stop it orderly."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(DEADLINE_S) == 0, self.log.read_text()

    def end(self) -> None:
        """Kill it, if it runs."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
