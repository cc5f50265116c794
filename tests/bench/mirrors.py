"""
What keeps a second copy of a tree: Remora, rsync over ssh run by hand, and lsyncd.

All of them go through ssh on loopback to another directory of the same disk, and say
how long it takes until a change is there.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Protocol

from tests.support import etcd
from tests.support.namespaces import enter_private_mounts, loop_filesystem
from tests.support.owners import Owner
from tests.support.ssh_server import SshServer, ssh_server

NAME = "bench"
DEADLINE_S = 7200.0
LOOK_AGAIN_S = 0.02
# How long nothing may happen before a copy counts as settled.
QUIET_S = 4.0
# As much as a million files need, five times; only what is used is there.
DISK_SIZE = "100G"
# The product's own, where tests have shorter ones.
DEFAULTS = {"lease_ttl_s": 15, "mount_wait_s": 20}
# By itself rsync compares whole seconds: it passes by what changed twice within one.
BY_NANOSECONDS = "--modify-window=-1"
RSYNC = ("rsync", "-aHAXS", "--numeric-ids", "--delete", BY_NANOSECONDS)
LSYNCD = """\
settings {{ nodaemon = true, logfile = "{directory}/lsyncd.log" }}
sync {{
    default.rsync,
    source = "{source}",
    target = "root@{address}:{target}",
    delay = 1,
    rsync = {{
        rsh = "{ssh}",
        archive = true, hard_links = true, acls = true, xattrs = true, sparse = true,
        _extra = {{ "--numeric-ids", "{by_nanoseconds}" }},
    }},
}}
"""


class Mirror(Protocol):
    """A copy that follows: ``copy`` is where, ``began`` what starts it."""

    name: str
    copy: Path

    def follow(self) -> None:
        """Begin to bring what has changed; what runs by itself does nothing."""
        ...


class Remora:
    """Two daemons and an etcd; the volume is mounted, with a sync each second."""

    name = "remora"

    def __init__(
        self, directory: Path, stack: ExitStack, *, interval: str = "1s"
    ) -> None:
        memory = etcd.memory_directory(directory / "memory")
        stack.callback(subprocess.run, ["umount", memory], check=True, timeout=30)
        server = stack.enter_context(etcd.single(memory))
        self.alpha, self.beta = (
            stack.enter_context(closing(Owner(name, server, "/bench/", **DEFAULTS)))
            for name in ("alpha", "beta")
        )
        for owner in (self.alpha, self.beta):
            owner.start()
            owner.wait_member()
        volume_id = self.alpha.create(NAME, interval=interval, members="alpha,beta")
        self.source = self.alpha.copy(volume_id) / "live"
        self.copy = self.beta.copy(volume_id) / "live"

    def seed(self) -> float:
        """Return how long the first copy took, in seconds."""
        began_s = time.monotonic()
        self.alpha.mount(NAME)
        end_s = began_s + DEADLINE_S
        while not self.syncs_ms():
            assert time.monotonic() < end_s, self.alpha.log_tail()
            time.sleep(0.1)
        return time.monotonic() - began_s

    def follow(self) -> None:
        """Do nothing: the daemon's next round is at most a second away."""

    def syncs_ms(self) -> list[float]:
        """Return the durations of all syncs so far that reached the member."""
        return [
            float(each["duration_ms"])
            for each in self.alpha.log_lines()
            if each.get("event") == "synced" and each.get("copies")
        ]

    def settle(self) -> None:
        """Return when nothing is sent any more."""
        before, quiet_s = -1, 0.0
        while quiet_s < QUIET_S:
            time.sleep(1)
            now = len(self.syncs_ms())
            quiet_s = quiet_s + 1 if now == before else 0.0
            before = now

    def move(self) -> float:
        """Return how long our part of an orderly move takes: Unmount and Mount."""
        self.settle()
        began_s = time.monotonic()
        self.alpha.unmount(NAME)
        self.beta.mount(NAME)
        took_s = time.monotonic() - began_s
        self.beta.unmount(NAME)
        return took_s

    def take_over(self, owner: Owner, other: Owner) -> float:
        """Return how long *other*'s Mount takes once *owner*, which has it, is dead."""
        owner.kill()
        began_s = time.monotonic()
        other.mount_at_last(NAME)
        took_s = time.monotonic() - began_s
        owner.start()
        owner.wait_member()
        owner.unmount(NAME)
        return took_s


class PlainRsync:
    """rsync over ssh from *source*, run with *options* when something has changed."""

    def __init__(
        self, source: Path, directory: Path, server: SshServer, *options: str
    ) -> None:
        self.name = " ".join(("rsync", *options))
        self.copy = directory / self.name.replace(" ", "")
        self._command = (
            *RSYNC,
            *options,
            *("-e", ssh_command(server, directory)),
            f"{source}/",
            f"root@{server.address}:{self.copy}/",
        )

    def seed(self) -> float:
        """Return how long the first copy took, with all of it on the disk."""
        began_s = time.monotonic()
        self.follow()
        # Remora's copies are durable when they count.
        subprocess.run(["sync", "-f", self.copy], check=True, timeout=DEADLINE_S)
        return time.monotonic() - began_s

    def follow(self) -> None:
        """Run it once."""
        subprocess.run(self._command, check=True, timeout=DEADLINE_S)


class Lsyncd:
    """lsyncd with a delay of a second."""

    name = "lsyncd"

    def __init__(self, source: Path, directory: Path, server: SshServer) -> None:
        self.copy = directory / "lsyncd"
        self._configuration = directory / "lsyncd.conf"
        self._configuration.write_text(
            LSYNCD.format(
                directory=directory,
                source=source,
                target=self.copy,
                address=server.address,
                ssh=ssh_command(server, directory),
                by_nanoseconds=BY_NANOSECONDS,
            )
        )

    @staticmethod
    def missing() -> str:
        """Return what is not installed, "" if it is there."""
        return "" if shutil.which("lsyncd") else "lsyncd"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let it run; its first copy of everything is for the caller to wait for."""
        process = subprocess.Popen(
            ["lsyncd", str(self._configuration)], stdout=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)

    def follow(self) -> None:
        """Do nothing: it was told by inotify."""


def ssh_command(server: SshServer, directory: Path) -> str:
    """Return how rsync is to reach *server*."""
    known = directory / "known_hosts"
    known.write_text(f"{server.known_as()} {server.host_key()}\n")
    return (
        f"ssh -p {server.port} -i {server.identity} -o UserKnownHostsFile={known}"
        " -o BatchMode=yes"
    )


def wait_there(source: Path, copy: Path, names: Sequence[str]) -> None:
    """Return when each of the files *names* is in *copy* what it is in *source*."""
    end_s = time.monotonic() + DEADLINE_S
    # The last one changed is rarely the first one there.
    for name in reversed(names):
        wanted = (source / name).read_bytes()
        while not _is(copy / name, wanted):
            assert time.monotonic() < end_s, f"{name} did not come to {copy}"
            time.sleep(LOOK_AGAIN_S)


def _is(path: Path, wanted: bytes) -> bool:
    try:
        return path.stat().st_size == len(wanted) and path.read_bytes() == wanted
    except FileNotFoundError:
        return False


@contextmanager
def new_disk() -> Iterator[Path]:
    """Yield where a new filesystem is mounted, seen by this process alone."""
    enter_private_mounts()
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as images,
        loop_filesystem(Path(images), "ext4", size=DISK_SIZE) as disk,
    ):
        yield disk


@contextmanager
def place() -> Iterator[tuple[Path, ExitStack, SshServer]]:
    """
    Yield a directory on a new filesystem, what is undone at the end, and an sshd.

    It is mounted at /tmp, where the nodes are, and seen by this process alone. One that
    is in use is slow in other ways each time: without a journal, ext4 looks long for an
    inode that was not freed within the last minutes.
    """
    with ExitStack() as stack:
        disk = stack.enter_context(new_disk())
        subprocess.run(["mount", "--bind", disk, "/tmp"], check=True, timeout=30)
        stack.callback(subprocess.run, ["umount", "-l", "/tmp"], check=True, timeout=60)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        yield directory, stack, stack.enter_context(ssh_server(directory / "sshd"))
