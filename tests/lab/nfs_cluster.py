"""Two nodes with the daemon on the shares of one NFS server, for the tests of `nfs`."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator
from typing import Any

from tests.lab.lab import Lab, Topology
from tests.lab.nfs import SERVER, XFS, NfsServer, unmount_all
from tests.lab.services import Remora

# For modules whose daemons are gone, with their volumes, when they end.
SHARED = Topology.of(SERVER, "alpha", "beta", shared_as="nfs")
# The same for those with engines and Compose: apart, so that two workers share them.
WITH_COMPOSE = Topology.of(SERVER, "alpha", "beta", shared_as="nfs-compose")
MOUNTS = "/var/lib/remora/mounts"


class NfsNode:
    """The daemon on one node, spoken to as the engine does."""

    def __init__(self, remora: Remora, server: NfsServer) -> None:
        self.remora = remora
        self.node = remora.node
        self.server = server

    def create(self, name: str, share: str = XFS, **options: str) -> dict[str, Any]:
        """Return the answer to Create on *share*."""
        given = {"server": self.server.ipv4, "share": share, **options}
        return self.remora.call("Create", {"Name": name, "Opts": given})

    def made(self, name: str, share: str = XFS, **options: str) -> None:
        """Create, and see that it succeeds."""
        assert self.create(name, share, **options) == {}

    def mount(self, name: str, mount_id: str = "id") -> str:
        """Return the mount point of *name*."""
        answer = self.remora.call("Mount", {"Name": name, "ID": mount_id})
        assert "Mountpoint" in answer, answer
        return str(answer["Mountpoint"])

    def unmount(self, name: str, mount_id: str = "id") -> None:
        """Unmount, and see that it succeeds."""
        assert self.remora.call("Unmount", {"Name": name, "ID": mount_id}) == {}

    def inside(self, target: str, user: str, script: str) -> str:
        """
        Return what *script* prints in what is mounted at *target*, as *user*.

        As a container it has a mount of its own: the way to ours is root's alone.
        """
        as_user = f"setpriv --reuid={user} --regid={user} --clear-groups"
        enter = f"mkdir -p /run/inside; mount --bind {target} /run/inside"
        script = shlex.quote(f"cd /run/inside; {script}")
        script = f"{enter}; {as_user} sh -euc {script}"
        return self.node.out(["unshare", "--mount", "sh", "-euc", script])

    def refusal(self, method: str, name: str, **more: str) -> str:
        """Return the error that *method* answers."""
        answer = self.remora.call(method, {"Name": name, **more})
        assert "Err" in answer, answer
        return str(answer["Err"])

    def remove(self, name: str) -> None:
        """Remove, and see that it succeeds."""
        assert self.remora.call("Remove", {"Name": name}) == {}

    def status(self, name: str) -> dict[str, Any]:
        """Return the volume's Status."""
        answer = self.remora.call("Get", {"Name": name}, timeout_s=10)
        return dict(answer["Volume"]["Status"])

    def names(self) -> list[str]:
        """Return the volumes that List tells."""
        answer = self.remora.call("List", {}, timeout_s=10)
        return sorted(each["Name"] for each in answer["Volumes"])

    def knows(self, name: str) -> bool:
        """Return whether Get finds the volume."""
        return "Volume" in self.remora.call("Get", {"Name": name}, timeout_s=10)

    def mounted(self) -> list[str]:
        """Return the volumes' mount points that the kernel has."""
        return [each.mount_point for each in self.node.mounts(MOUNTS)]


@contextlib.contextmanager
def within(limit_s: float) -> Iterator[None]:
    """Fail if the block takes longer than *limit_s*."""
    began = time.monotonic()
    yield
    took_s = time.monotonic() - began
    assert took_s < limit_s, f"took {took_s:.1f} s, at most {limit_s} s are allowed"


@contextlib.contextmanager
def running(lab: Lab, server: NfsServer, *names: str) -> Iterator[list[NfsNode]]:
    """Yield the daemon on each node; afterwards nothing of it is left there."""
    nodes = []
    profile = f'[profiles.nas]\nserver = "{server.ipv4}"\nshare = "{XFS}"\n'
    for name in names:
        lab[name].put(profile, "/etc/remora/remora.toml")
        remora = lab[name].start_remora(disuse_grace_s="0")
        nodes.append(NfsNode(remora, server))
    try:
        yield nodes
    finally:
        for each in nodes:
            if not each.node.powered:
                continue
            if each.remora.running:
                each.remora.stop()
            unmount_all(each.node)
            each.node.run("rm -rf /var/lib/remora/*")


def empty(server: NfsServer) -> None:
    """Remove what tests have left on the server's shares, but for their identity."""
    for share in (*server.exports,):
        path = server.local(share)
        # The catalogue's directories stay, and those of nodes in it: its identity is
        # one of a whole catalogue, and clients would not see at once that they went.
        but = ("!", "-regex", rf"{path}/\.dvol\(/\(copies/\)?[^/]*\)?")
        find = ["find", path, "-mindepth", "1", "-xdev", *but, "-delete"]
        server.run(find, check=False)
