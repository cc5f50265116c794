"""A machine's disk, on which `remora pool make` runs; block devices from files."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from backends.errors import RemoraError
from plugin.cli.main import remora
from tests.protocol.node import wait_until

SIZE = "512M"
DEADLINE_S = 60
# What `remora` starts with, and the step after which it is killed.
KILLED_AFTER = """
import os, signal, sys
from pathlib import Path
from plugin.cli import cmd_pool
from plugin.cli.main import main

moment = sys.argv.pop(1)
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
cmd_pool._report = lambda step, done, quiet: die() if step == moment else None
if moment == "rename":
    Path.rename = die
main()
"""


@dataclass(frozen=True)
class Machine:
    """A disk, with the state of a node and the configuration that says so."""

    disk: Path
    sockets: Path

    @property
    def config(self) -> Path:
        return self.disk / "remora.toml"

    @property
    def state_dir(self) -> Path:
        return self.disk / "state"

    @property
    def pool(self) -> Path:
        return self.state_dir / "pool"

    @property
    def image(self) -> Path:
        return self.disk / "pool.img"

    def configure(self) -> None:
        self.config.write_text(
            f'[daemon]\nstate_dir = "{self.state_dir}"\n'
            f'control_socket = "{self.sockets}/control.sock"\n'
            f'plugin_socket = "{self.sockets}/plugin.sock"\n'
        )

    def remora(self, *arguments: object) -> list[str]:
        """Return the command line of `remora` with *arguments*."""
        given = map(str, ("--config", self.config, *arguments))
        return [sys.executable, "-m", "plugin.cli.main", *given]

    def command(self, *arguments: object) -> list[str]:
        """Return the command line of `remora pool make` with *arguments*."""
        return self.remora("pool", "make", *arguments)

    def make(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run it."""
        return ran(self.command(*arguments))

    def made(self, *arguments: object) -> str:
        """Return what it says when it succeeds."""
        done = self.make(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def refused(self, *arguments: object, verb: str = "make") -> str:
        """Return the one line of an error; nothing on the disk is other than before."""
        before = self.content()
        given = ("--config", self.config, "pool", verb, *arguments)
        # To start an interpreter for each takes longer than all they do.
        done = CliRunner().invoke(remora, [*map(str, given)])
        assert isinstance(done.exception, RemoraError), done.output
        assert self.content() == before
        return str(done.exception)

    def killed(self, moment: str, *arguments: object) -> None:
        """Run it, and kill it when it has done the step *moment*."""
        command = self.command(*arguments)[3:]
        done = ran([sys.executable, "-c", KILLED_AFTER, moment, *command])
        assert done.returncode == -9, done.stderr

    def content(self) -> dict[str, tuple[int, str]]:
        """Return mode and contents of everything on the disk."""
        found = {}
        for path in sorted(self.disk.rglob("*")):
            if path.name in {"node.db-shm", "node.db-wal"}:
                continue  # whoever reads the file may leave them
            is_small = path.is_file() and path.stat().st_size < 2**20
            told = path.read_bytes().hex() if is_small else str(path.lstat().st_size)
            found[str(path)] = path.lstat().st_mode, told
        return found

    def filesystem(self, what: str = "FSTYPE") -> str:
        """Return what is mounted as the pool, "" if nothing is."""
        done = ran(["findmnt", "-n", "-o", what, str(self.pool)])
        return done.stdout.strip()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Run the daemon meanwhile."""
        log = self.sockets / "log"
        with (
            log.open("wb") as said,
            subprocess.Popen(self.remora("serve"), stdout=said, stderr=said) as daemon,
        ):
            try:
                wait_until(self._answers, "the daemon answers", timeout_s=DEADLINE_S)
                yield
            finally:
                daemon.terminate()
                daemon.wait(timeout=DEADLINE_S)
        assert daemon.returncode == 0, log.read_text()

    def _answers(self) -> bool:
        """Return whether both sockets are listened on."""
        for name in ("control.sock", "plugin.sock"):
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self.sockets / name)):
                    return False
        return True

    def unmount(self) -> None:
        ran(["umount", str(self.pool)], check=True)


def ran(command: list[str], *, check: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=check,
    )


@contextmanager
def looped(image: Path, *options: str) -> Iterator[Path]:
    """Yield a block device that is the file *image*."""
    command = ["losetup", "--find", "--show", *options, str(image)]
    device = Path(ran(command, check=True).stdout.strip())
    try:
        yield device
    finally:
        ran(["losetup", "--detach", str(device)])


def digest(path: Path) -> str:
    """Return a digest of the first MiB of *path*, where filesystems begin."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return hashlib.sha256(os.read(descriptor, 2**20)).hexdigest()
    finally:
        os.close(descriptor)
