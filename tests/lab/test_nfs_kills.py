"""The daemon killed at any moment: no byte is lost, no mount is doubled."""

from __future__ import annotations

import json
import random
import shlex
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from tests.lab.lab import Lab
from tests.lab.nfs import XFS, NfsServer
from tests.lab.nfs_cluster import MOUNTS, NfsNode, empty, running
from tests.support.chance import seed
from tests.support.host import wait_until

KILLS = 14
# The server is stopped after this many, and served again after one more.
KILLS_BEFORE_STOP = 6
PAUSE_MAX_S = 2.0
WORKERS = 3
# The engine gives a mount to its container at once; the default's 60 s are too long.
GRACE_S = "5"
RETRY_S = 0.2
CALL_DEADLINE_S = 60.0
# Nothing gets far while every start of the daemon is followed by its end.
END_DEADLINE_S = 240.0
# What a container does: it holds the directory, then works there; whatever has become
# of the mount, nothing is written beside it.
WRITE = """
cd "$1"
[ "$(stat -f -c %T .)" = nfs ]
echo "$2" > file
sync -f file
"""


@dataclass
class Ledger:
    """What was acknowledged about one volume, and what was begun."""

    created: bool = False
    written: bool = False
    removal_begun: bool = False
    removed: bool = False


@dataclass
class Worker:
    """Makes volumes, writes, removes some, and repeats what was not answered."""

    node: NfsNode
    name: str
    chance: random.Random
    stopping: threading.Event
    volumes: dict[str, Ledger] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Work until it is told to stop; then leave nothing half-way."""
        try:
            # One that is removed and one that stays, on however slow a machine.
            while not self.stopping.is_set() or len(self.volumes) < 2:
                self._live(f"{self.name}-{len(self.volumes):03}")
        except BaseException as error:
            self.errors.append(repr(error))
            raise

    def _live(self, name: str) -> None:
        ledger = self.volumes.setdefault(name, Ledger())
        options = {
            "server": self.node.server.ipv4,
            "share": XFS,
            "onDelete": self.chance.choice(["delete", "retain"]),
        }
        self._insist("Create", {"Name": name, "Opts": options})
        ledger.created = True
        for turn in range(self.chance.randint(1, 2)):
            held = {"Name": name, "ID": f"id{turn}"}
            self._until(partial(self._written, held), f"{name} is written")
            ledger.written = True
            self._insist("Unmount", held)
        if len(self.volumes) % 2:
            ledger.removal_begun = True
            self._insist("Remove", {"Name": name})
            ledger.removed = True

    def _written(self, held: dict[str, str]) -> bool:
        """Mount and write; what was lost between the two is mounted anew."""
        at = self._insist("Mount", held)["Mountpoint"]
        write = ["sh", "-euc", WRITE, "write", at, held["Name"]]
        return self.node.node.run(write, check=False).returncode == 0

    def _insist(self, method: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a call that is repeated until it succeeds."""
        answers: list[dict[str, Any]] = []

        def succeeds() -> bool:
            try:
                given = self.node.remora.call(method, body, timeout_s=CALL_DEADLINE_S)
            except (OSError, ValueError) as error:
                given = {"Err": repr(error)}  # no daemon, or half an answer
            answers.append(given)
            return not given.get("Err")

        self._until(succeeds, f"{method} {body['Name']}")
        return answers[-1]

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(condition, timeout_s=END_DEADLINE_S, what=what, interval_s=RETRY_S)


@pytest.fixture
def alpha(shared_lab: Lab, nfs_server: NfsServer) -> Iterator[NfsNode]:
    """Yield the daemon on a node; afterwards the server's shares are empty."""
    with running(shared_lab, nfs_server, "alpha") as (alpha,):
        alpha.remora.settings["disuse_grace_s"] = GRACE_S
        alpha.remora.restart()
        yield alpha
    empty(nfs_server)


def test_kills_at_random_moments_lose_nothing_and_double_nothing(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    chance = random.Random(seed())
    stopping = threading.Event()
    workers = [
        Worker(alpha, f"w{number}", random.Random(chance.random()), stopping)
        for number in range(WORKERS)
    ]
    threads = [threading.Thread(target=each.run) for each in workers]
    for thread in threads:
        thread.start()
    try:
        _kill_and_start(alpha, nfs_server, chance)
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert [error for each in workers for error in each.errors] == []
    volumes = {name: it for each in workers for name, it in each.volumes.items()}
    assert {each.removed for each in volumes.values()} == {True, False}, volumes
    _assert_all_there(alpha, nfs_server, volumes)
    _assert_clean_after_removal(alpha, nfs_server)


def test_a_mounted_volume_is_held_on_by_a_daemon_that_was_killed(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    alpha.made("v")
    target = alpha.mount("v")
    # As a container has it: at a path of its own.
    hold = f"mount --bind {target} /mnt; echo held; exec sleep 600"
    holder = alpha.node.popen(["unshare", "-m", "sh", "-euc", hold])
    wait_until(holder.output, timeout_s=20, what="it is bound")
    try:
        lease = nfs_server.local(f"{XFS}/.dvol/leases/*/alpha.*")
        # Only a renewal makes it young again; others may remove what is not renewed.
        nfs_server.run(f"touch -d '1 hour ago' {lease}")
        alpha.remora.crash()
        assert alpha.mounted() == [target]
        wait_until(
            lambda: nfs_server.run(f"find {lease} -mmin -5") != "",
            timeout_s=30,
            interval_s=0.5,
            what="the lease is renewed",
        )
        assert alpha.mounted() == [target]
    finally:
        holder.kill()
    alpha.unmount("v")
    assert alpha.mounted() == []


def _kill_and_start(
    alpha: NfsNode, nfs_server: NfsServer, chance: random.Random
) -> None:
    for number in range(KILLS):
        time.sleep(chance.uniform(0, PAUSE_MAX_S))
        if number == KILLS_BEFORE_STOP:
            nfs_server.stop_nfs()  # whatever is half-way there stays so
            time.sleep(chance.uniform(0, PAUSE_MAX_S))
        alpha.remora.kill()
        if number == KILLS_BEFORE_STOP + 1:
            nfs_server.start_nfs()
        alpha.remora.start()
        _assert_nothing_doubled(alpha)


def _assert_nothing_doubled(alpha: NfsNode) -> None:
    points = Counter(each.mount_point for each in alpha.node.mounts("/var/lib/remora"))
    assert max(points.values(), default=0) <= 1, points


def _assert_all_there(
    alpha: NfsNode, nfs_server: NfsServer, volumes: dict[str, Ledger]
) -> None:
    """See that what was acknowledged is so, in the daemon, the catalogue, the bytes."""
    here = {name for name, it in volumes.items() if it.created and not it.removed}
    assert all(volumes[name].written for name in here)
    # Whatever the engine unmounted is unmounted, now or by a repair that is under way.
    _await_nothing_mounted(alpha)
    assert set(alpha.names()) == here
    _assert_nothing_doubled(alpha)
    states = {each["name"]: each["state"] for each in _markers(nfs_server)}
    assert states == dict.fromkeys(here, "ready")
    for name in here:
        path = nfs_server.local(f"{XFS}/{name}/file")
        assert nfs_server.run(["cat", path]) == f"{name}\n"
        target = alpha.mount(name, "last")
        assert alpha.node.out(["cat", f"{target}/file"]) == name
        alpha.unmount(name, "last")


def _assert_clean_after_removal(alpha: NfsNode, nfs_server: NfsServer) -> None:
    for name in alpha.names():
        alpha.remove(name)
    assert alpha.names() == []
    assert alpha.mounted() == []
    assert alpha.node.out(["ls", "-A", MOUNTS]) == ""
    wait_until(
        lambda: not _remains(nfs_server),
        timeout_s=40,
        interval_s=0.5,
        what="the catalogue is empty",
        evidence=lambda: _remains(nfs_server),
    )


def _await_nothing_mounted(alpha: NfsNode) -> None:
    wait_until(
        lambda: not alpha.mounted() and not alpha.node.out(["ls", "-A", MOUNTS]),
        timeout_s=40,
        interval_s=0.5,
        what="nothing is mounted",
        evidence=alpha.mounted,
    )


def _markers(server: NfsServer) -> list[dict[str, str]]:
    path = shlex.quote(server.local(f"{XFS}/.dvol/volumes"))
    lines = server.run(f"cd {path}; for f in *; do [ ! -e $f ] || cat $f; echo; done")
    return [json.loads(line) for line in lines.splitlines() if line]


def _remains(server: NfsServer) -> str:
    """Return what the catalogue holds of volumes."""
    path = shlex.quote(server.local(f"{XFS}/.dvol"))
    return server.run(f"cd {path}; find volumes claims leases -mindepth 1")
