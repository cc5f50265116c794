"""
What a server delegates to its clients must not decide anything.

Linux 7 delegates to who has a file open on NFS 4.2 its contents and its times as well,
once the server's grace period is over. Older kernels delegate less: there these tests
look at nothing new.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab
from tests.lab.nfs import GRACE_S, XFS, NfsServer, mount
from tests.lab.nfs_cluster import NfsNode, empty, running
from tests.lab.nfs_faults import measured, remove_all
from tests.support.host import wait_until

HOUR_S = 3600
# More than a lease that nobody renews is worth.
OLD_S = 100
PROBE = "/mnt/probe"
# Such a kernel delegates times; it is no accident if one does not.
DELEGATES_TIMES = 7


class Delegations:
    """What the server has delegated."""

    def __init__(self, server: NfsServer) -> None:
        self.server = server

    def of_files(self, below: str) -> list[str]:
        """Return the files below *below*, as clients name it, that are delegated."""
        states = self.server.run("cat /proc/fs/nfsd/clients/*/states 2>/dev/null || :")
        lines = [line for line in states.splitlines() if "type: deleg" in line]
        inodes = {line.split('superblock: "')[1].split('"')[0] for line in lines}
        found = self.server.run(
            f"find {self.server.local(below)} -type f -printf '%i %P\\n'"
        )
        files = dict(line.split(" ", 1) for line in found.splitlines())
        return [files[each] for each in self._numbers(inodes) if each in files]

    @staticmethod
    def _numbers(inodes: set[str]) -> list[str]:
        return sorted(each.rsplit(":", 1)[1] for each in inodes)


@pytest.fixture(scope="module")
def pair(
    shared_lab: Lab, shared_nfs_server: NfsServer
) -> Iterator[tuple[NfsNode, NfsNode]]:
    """Yield the daemons on two nodes, and a server that delegates what it can."""
    with running(shared_lab, shared_nfs_server, "alpha", "beta") as (alpha, beta):
        mount(alpha.node, f"server:{XFS}", PROBE, "vers=4.2,hard,retry=0")
        if int(shared_lab.kernel.version.split(".")[0]) >= DELEGATES_TIMES:
            wait_until(
                lambda: is_delegated(alpha, shared_nfs_server),
                timeout_s=3 * GRACE_S,
                what="the server delegates",
                interval_s=0.5,
            )
        # It would keep the filesystem when the last volume of the share is unmounted.
        alpha.node.run(["umount", PROBE])
        yield alpha, beta


def is_delegated(node: NfsNode, server: NfsServer) -> bool:
    """Return whether a new file that *node* has written is delegated to it."""
    name = f"probe-{time.monotonic_ns()}"
    node.node.run(f"echo x > {PROBE}/{name}")
    return name in Delegations(server).of_files(XFS)


@pytest.fixture
def nodes(
    pair: tuple[NfsNode, NfsNode], nfs_server: NfsServer
) -> Iterator[tuple[NfsNode, NfsNode]]:
    """Yield the daemons; afterwards their clocks are right and no volume is left."""
    yield pair
    for each in pair:
        set_clock(each, 0)
        remove_all(each)
    empty(nfs_server)


def set_clock(node: NfsNode, offset_s: float) -> None:
    now_s = time.clock_gettime(time.CLOCK_REALTIME) + offset_s
    node.node.run(["date", "-s", f"@{now_s:.3f}"])


def times(server: NfsServer, directory: str) -> str:
    """Return the times of what is in *directory*, as the server itself has them."""
    script = f"cd {directory}; find . -mindepth 1 -printf '%P %T@\\n' | sort"
    return server.run(script)


OLD = (
    "mkdir sub; echo x > sub/file; truncate -s 8M sparse; echo x > script; "
    "chmod 755 script; chown 12:34 sub/file; ln -s nowhere link; "
    "touch -h -d 2001-02-03T04:05:06 sub/file sparse script link sub"
)


def test_a_clone_has_the_times_of_its_source(
    nodes: tuple[NfsNode, NfsNode], nfs_server: NfsServer
) -> None:
    alpha, _ = nodes
    alpha.made("v")
    source = nfs_server.local(f"{XFS}/v")
    # On the server: a client's touch is one of the things that are lost.
    nfs_server.run(f"cd {source}; {OLD}")
    before = times(nfs_server, source)
    assert before.count(" 981173106.") == 5
    assert alpha.create("w", **{"from": "v"}) == {}
    assert times(nfs_server, nfs_server.local(f"{XFS}/w")) == before
    assert Delegations(nfs_server).of_files(f"{XFS}/w") == []


def test_an_import_has_the_times_of_its_source(
    nodes: tuple[NfsNode, NfsNode], nfs_server: NfsServer
) -> None:
    alpha, _ = nodes
    alpha.node.run(f"rm -rf /data/old; mkdir /data/old; cd /data/old; {OLD}")
    options = {"server": alpha.server.ipv4, "share": XFS}
    body = {"name": "v", "source": "/data/old", "options": options}
    status, answer = alpha.remora.control("POST", "/v1/import", body, timeout_s=60)
    assert status == 200, answer
    assert times(nfs_server, nfs_server.local(f"{XFS}/v")) == (
        alpha.node.run(
            "cd /data/old; find . -mindepth 1 -printf '%P %T@\\n' | sort"
        ).stdout
    )


def test_no_file_of_the_catalogue_is_delegated(
    nodes: tuple[NfsNode, NfsNode], nfs_server: NfsServer
) -> None:
    """Whoever wants such a file would wait for a node that has died."""
    alpha, beta = nodes
    alpha.made("v")
    alpha.mount("v")
    status, answer = alpha.remora.control(
        "POST", "/v1/volumes/v/snapshots", {"snapshot": "s"}, timeout_s=60
    )
    assert status == 200, answer
    assert beta.create("v") == {}
    beta.mount("v")
    assert alpha.remora.control("GET", "/v1/volumes/v/snapshots")[0] == 200
    assert Delegations(nfs_server).of_files(f"{XFS}/.dvol") == []
    assert alpha.remora.control("DELETE", "/v1/volumes/v/snapshots/s")[0] == 200
    for each in nodes:
        each.unmount("v")


@pytest.mark.parametrize("offset_s", [HOUR_S, -HOUR_S])
def test_the_servers_clock_alone_says_how_old_a_lease_is(
    nodes: tuple[NfsNode, NfsNode], nfs_server: NfsServer, offset_s: int
) -> None:
    alpha, beta = nodes
    alpha.made("v")
    assert beta.create("v") == {}
    set_clock(beta, offset_s)
    alpha.mount("v")
    assert beta.refusal("Remove", "v").startswith("NFS-INUSE: ")
    # And the other way round: the lease that the wrong clock's node takes.
    alpha.unmount("v")
    beta.mount("v")
    assert alpha.refusal("Remove", "v").startswith("NFS-INUSE: ")
    beta.unmount("v")
    forge_lease(nfs_server, age_s=OLD_S)
    beta.remove("v")


def forge_lease(server: NfsServer, *, age_s: int) -> None:
    """Leave the lease of a node that is gone on the server's only volume."""
    leases = server.local(f"{XFS}/.dvol/leases")
    server.run(
        f'cd {server.local(XFS)}/.dvol; id=$(sed \'s/.*"id": "\\([^"]*\\)".*/\\1/\' '
        f"volumes/*.json); mkdir -p {leases}/$id; "
        f"touch -d '-{age_s} seconds' {leases}/$id/gone"
    )


def test_an_idle_volume_with_a_delegated_file_is_unmounted_from_a_dead_server(
    nodes: tuple[NfsNode, NfsNode], nfs_server: NfsServer
) -> None:
    """The kernel gives the file back, to nobody: it and we wait at the same time."""
    alpha, _ = nodes
    alpha.made("v")
    target = alpha.mount("v")
    alpha.node.run(f"echo kept > {target}/file; sync -f {target}")
    nfs_server.cut()
    with measured("Unmount", 5):
        alpha.unmount("v")
    assert alpha.mounted() == []
    nfs_server.heal()
    wait_until(
        lambda: alpha.status("v")["health"] == "ok", timeout_s=90, what="it is back"
    )
    assert alpha.node.out(["cat", f"{alpha.mount('v')}/file"]) == "kept"
    alpha.unmount("v")
