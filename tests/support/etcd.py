"""
Real etcd servers for tests.

Each member has a loopback address of its own, so that no two ever want one port, and
its data on a tmpfs of this test process. A member ends with the process that started
it, however that ends.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from tests.support.namespaces import enter_private_mounts

START_DEADLINE_S = 60.0
COMMAND_DEADLINE_S = 30.0
PROGRAMS = ("etcd", "etcdctl", "setpriv")
_numbers = itertools.count()


def new_address() -> str:
    """Return a loopback address that no other test uses."""
    pid, number = os.getpid(), next(_numbers)
    return f"127.{64 + number % 128}.{(pid >> 8) & 255}.{pid % 254 + 1}"


def memory_directory(directory: Path) -> Path:
    """Return *directory*, made, on a tmpfs that goes with this process."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    enter_private_mounts()
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2G", "tmpfs", directory],
        check=True,
        timeout=10,
    )
    return directory


@dataclass
class Member:
    """One etcd server."""

    name: str
    directory: Path
    address: str
    scheme: str = "http"
    extra: Sequence[str] = ()
    peers: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://{self.address}:2379"

    @property
    def peer(self) -> str:
        return f"{self.name}=http://{self.address}:2380"

    def start(self) -> None:
        """Start the server, with the data that it had when it was killed."""
        assert self.process is None
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "--", "etcd"),
                    *("--name", self.name),
                    *("--data-dir", str(self.directory / f"{self.name}.data")),
                    *("--listen-client-urls", self.endpoint),
                    *("--advertise-client-urls", self.endpoint),
                    *("--listen-peer-urls", f"http://{self.address}:2380"),
                    *("--initial-advertise-peer-urls", f"http://{self.address}:2380"),
                    *("--initial-cluster", ",".join(self.peers or [self.peer])),
                    *self.extra,
                ],
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"]},
            )

    def kill(self) -> None:
        """End the server as a power failure does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=10)
            self.process = None

    def freeze(self) -> None:
        """Stop the server; its connections stay."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server run on."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)


@dataclass
class Cluster:
    """Some members that are one cluster."""

    members: list[Member]
    ctl_options: Sequence[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        try:
            for member in self.members:
                member.start()
            self.await_health()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(each.endpoint for each in self.members)

    def ctl(self, *arguments: str, member: Member | None = None) -> str:
        """Return what etcdctl prints; it must succeed."""
        done = self._ctl(*arguments, member=member)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def leader(self) -> Member:
        """Return the leader, which must be running."""

        def found() -> Member | None:
            for member in self.members:
                done = self._ctl("endpoint", "status", "-w", "json", member=member)
                if done.returncode == 0:
                    status = json.loads(done.stdout)[0]["Status"]
                    if status.get("leader") == status["header"]["member_id"]:
                        return member
            return None

        wait_until(lambda: found() is not None, "a leader")
        leader = found()
        assert leader is not None
        return leader

    def heal(self) -> None:
        """Start and thaw every member, and return when all of them work."""
        for member in self.members:
            member.thaw()
            if member.process is None:
                member.start()
        self.await_health()

    def await_health(self) -> None:
        """Return when every member answers reads."""
        for member in self.members:
            wait_until(lambda each=member: self._answers(each), member.name)

    def close(self) -> None:
        for member in self.members:
            member.kill()

    def _answers(self, member: Member) -> bool:
        return self._ctl("get", "health", member=member).returncode == 0

    def _ctl(
        self, *arguments: str, member: Member | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        endpoint = (member or self.members[0]).endpoint
        options = ["--endpoints", endpoint, "--command-timeout=5s", *self.ctl_options]
        return subprocess.run(
            ["etcdctl", *options, *arguments],
            capture_output=True,
            timeout=COMMAND_DEADLINE_S,
            env={"PATH": os.environ["PATH"], "ETCDCTL_API": "3"},
            check=False,
        )


def single(directory: Path, *extra: str) -> Cluster:
    """Return a cluster of one, not yet started."""
    return Cluster([Member("one", directory, new_address(), extra=extra)])


def three(directory: Path) -> Cluster:
    """Return a cluster of three, not yet started."""
    members = [Member(name, directory, new_address()) for name in ("a", "b", "c")]
    peers = [each.peer for each in members]
    for member in members:
        member.peers = peers
    return Cluster(members)


def wait_until(
    condition: Callable[[], bool], what: str, within_s: float = START_DEADLINE_S
) -> None:
    """Return when *condition* holds; fail after *within_s*."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} was not there in {within_s} s"
        time.sleep(0.1)
