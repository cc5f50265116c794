"""
docs/guides/nfs.md done as it says, on a server and two nodes with kernels of their own.

Replaced are addresses, the server's disk (a file), where its exports begin (a directory
of the server), and what the nodes lack: systemd, and a network for containers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

import pytest

from tests.lab.lab import Lab
from tests.lab.nfs import ROOT, NfsServer, unmount_all
from tests.lab.nfs_cluster import SHARED, NfsNode, running
from tests.lab.services import Engine
from tests.support import guides
from tests.support.daemon import PROGRAM
from tests.support.guides import Printed, changed
from tests.support.host import PYTHON_ENVIRONMENT, wait_until
from tests.support.images import BUSYBOX_IMAGE

TOPOLOGY = SHARED
EXPORT: Final = "/export/volumes"
DISK: Final = "/data/volumes.img"
COMMAND: Final = "/usr/local/bin/remora"
# A container has the network that nobody gives it here.
ON_NODES: Final = {
    "docker run ": "docker run --network none ",
    "systemctl restart remora": "true",
    "old.example.net": "nas.example.net",
}
ON_SERVER: Final = {
    "/dev/sdb1": DISK,
    f"-p {EXPORT}": f"-p {ROOT}{EXPORT}",
    f"UUID=…  {EXPORT}": f"{DISK}  {ROOT}{EXPORT}",
    f"mount {EXPORT}": f"mount {ROOT}{EXPORT}",
    "192.0.2.0/24": "10.77.0.0/24",
    f"1000:1000 {EXPORT}": f"1000:1000 {ROOT}{EXPORT}",
}


class Guided:
    """The nodes of the guide."""

    def __init__(self, server: NfsServer, nodes: list[NfsNode]) -> None:
        self.server = server
        self.alpha, self.beta = nodes
        self.engines: list[Engine] = []

    def on_server(self, command: guides.Command) -> str:
        return self.server.run(changed(command.text, ON_SERVER), timeout_s=60)

    def on(self, node: NfsNode, command: guides.Command, answer: bytes = b"") -> str:
        """Return what *command*, which may ask, prints on *node*."""
        done = node.node.run(
            changed(command.text, ON_NODES), timeout_s=120, stdin=answer
        )
        if "systemctl restart remora" in command.text:
            node.remora.restart()
        return done.stdout


@pytest.fixture(scope="module")
def guided(shared_lab: Lab, shared_nfs_server: NfsServer) -> Iterator[Guided]:
    """Yield the nodes, with the server's disk and the command where they belong."""
    server = shared_nfs_server
    server.run(f"truncate -s 400M {DISK}")
    with running(shared_lab, server, "alpha", "beta") as nodes:
        made = Guided(server, nodes)
        environment = " ".join(f"{k}={v}" for k, v in PYTHON_ENVIRONMENT.items())
        program = f'exec env {environment} {sys.executable} -c "{PROGRAM}" "$@"\n'
        for each in nodes:
            each.node.put(f"#!/bin/sh\n{program}", COMMAND, mode=0o755)
            names = f"{server.ipv4} nas.example.net new.example.net\n"
            each.node.run(f"printf '{names}' >> /etc/hosts")
            engine = each.node.start_docker()
            engine.docker("tag", BUSYBOX_IMAGE, "busybox")
            made.engines.append(engine)
        yield made
        for engine in made.engines:
            engine.stop()
        for each in nodes:
            each.remora.stop()
            unmount_all(each.node)
            each.node.run(f"rm -rf {COMMAND} /etc/remora/remora.toml")
        server.run(
            f"sed -i /volumes/d /etc/exports /etc/fstab; exportfs -ra;"
            f"umount {ROOT}{EXPORT}; rm -r {DISK} {ROOT}{EXPORT}"
        )


@pytest.fixture
def rows(guided: Guided, nfs_server: NfsServer) -> Guided:
    """Return the nodes with the share in use, and a volume `rows`."""
    del nfs_server
    sections = ("1. The server", "2. The nodes")
    if "rows" not in guided.alpha.names():
        set_up(guided, Printed([guides.Claim("", "nfs.md", each) for each in sections]))
    return guided


def set_up(guided: Guided, printed: Printed) -> None:
    """Make the server and two nodes what the guide says."""
    for _ in range(6):
        guided.on_server(printed.take())
    (profile,) = [
        each.text
        for each in guides.blocks("nfs.md")
        if (each.language, each.section) == ("toml", "2. The nodes")
    ]
    for each in (guided.alpha, guided.beta):
        each.node.put(profile, "/etc/remora/remora.toml")
    guided.beta.remora.restart()
    guided.on(guided.alpha, printed.take("remora config check"))
    shown = guided.on(guided.alpha, printed.take("remora doctor"))
    assert "nas.example.net:/export/volumes: " in shown
    for _ in range(2):
        guided.on(guided.alpha, printed.take())
    last = printed.take()
    wait_until(
        lambda: guided.beta.knows("rows"), timeout_s=60, what="beta knows the volume"
    )
    assert guided.on(guided.beta, last).splitlines() == [*last.shown]


@pytest.mark.printed("nfs.md", "1. The server")
@pytest.mark.printed("nfs.md", "2. The nodes")
def test_ten_minutes(guided: Guided, nfs_server: NfsServer, printed: Printed) -> None:
    del nfs_server
    set_up(guided, printed)


@pytest.mark.printed("nfs.md", "Snapshots and clones")
def test_snapshots(rows: Guided, printed: Printed) -> None:
    for each in printed.rest():
        told = rows.on(rows.alpha, each)
        assert all(line in told for line in each.shown)
    assert {"rows", "test-rows", "more-rows"} <= set(rows.alpha.names())


@pytest.mark.printed("nfs.md", "Linux 7 on the nodes")
def test_directories_are_not_delegated(rows: Guided, printed: Printed) -> None:
    for each in printed.rest():
        path = each.text.split()[-1]
        older = rows.alpha.node.run(["test", "-e", path], check=False).returncode
        if path.startswith("/sys") and older:
            continue  # a kernel that knows of no such thing
        rows.on(rows.alpha, each)
        assert "N" in rows.alpha.node.out(["cat", path])


@pytest.mark.printed("nfs.md", "When the server gets another name")
def test_the_server_gets_another_name(rows: Guided, printed: Printed) -> None:
    rows.on(rows.alpha, printed.take())
    assert rows.alpha.status("rows")["options"]["server"] == "new.example.net"
    back = "remora share move new.example.net:/export/volumes "
    rows.alpha.node.run(f"{back} nas.example.net:/export/volumes", timeout_s=120)


@pytest.mark.printed("nfs.md", "root_squash")
@pytest.mark.printed("nfs.md", "When another share answers")
def test_another_share_is_accepted(rows: Guided, printed: Printed) -> None:
    """New, empty storage, which belongs to a user."""
    rows.server.run(f"rm -rf {ROOT}{EXPORT}/.dvol {ROOT}{EXPORT}/*; sync")
    owner, create = printed.take("chown"), printed.take("docker volume create")
    rows.on(rows.alpha, printed.take("remora share accept"), b"y\n")
    wait_until(
        lambda: not rows.alpha.names(), timeout_s=60, what="the volumes are forgotten"
    )
    rows.on_server(owner)
    rows.on(rows.alpha, create)
    found = rows.server.run(f"stat -c %u:%g {ROOT}{EXPORT}/rows")
    assert found == "1000:1000\n"
