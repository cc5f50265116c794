"""Others use the same export: a user of a volume has our mount. And a server moves."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.lab import Lab
from tests.lab.nfs import COMMON, EXT4, XFS, NfsServer, mount, unmount_all
from tests.lab.nfs_cluster import NfsNode, empty, running
from tests.lab.nfs_faults import container_like
from tests.support.host import wait_until

SETTLED_S = 20
MOVED_S = 60
HOST = "/mnt/host"
NAME = "moving.example.net"
OTHER_ADDRESS = "10.77.0.201"


@pytest.fixture
def alpha(shared_lab: Lab, nfs_server: NfsServer) -> Iterator[NfsNode]:
    """Yield the daemon on a node; afterwards the server's shares are empty."""
    with running(shared_lab, nfs_server, "alpha") as (node,):
        yield node
    empty(nfs_server)


def directory(node: NfsNode, name: str, path: str, server: str = "") -> None:
    """Make *name* a volume that is the directory *path* of the server."""
    given = {"type": "nfs", "device": f"{server or node.server.ipv4}:{path}"}
    assert node.remora.call("Create", {"Name": name, "Opts": given}) == {}


def unmounted(node: NfsNode) -> None:
    """Return when nothing is mounted any more."""
    wait_until(
        lambda: not node.mounted(),
        timeout_s=SETTLED_S,
        what="nothing is mounted",
        evidence=node.mounted,
    )


def test_what_the_host_has_mounted_uses_no_volume(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    nfs_server.run(f"mkdir {nfs_server.local(XFS)}/rows")
    alpha.made("kept")
    for name, path in (("rows", f"{XFS}/rows"), ("kept", f"{XFS}/kept")):
        mount(alpha.node, f"{nfs_server.ipv4}:{path}", f"{HOST}/{name}")
    directory(alpha, "rows", f"{XFS}/rows")
    for name in ("rows", "kept"):
        # Its namespace has the host's mounts, too, as that of a service.
        with container_like(alpha, alpha.mount(name)):
            assert alpha.mounted()
        alpha.unmount(name)
        unmounted(alpha)
        alpha.remove(name)
        alpha.node.run(f"umount {HOST}/{name}")


def test_a_second_volume_of_an_export_is_not_used_with_the_first(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    nfs_server.run(f"mkdir {nfs_server.local(XFS)}/rows")
    for name in ("first", "second"):
        directory(alpha, name, f"{XFS}/rows")
    with container_like(alpha, alpha.mount("first")):
        alpha.mount("second")
        alpha.unmount("second")
        wait_until(
            lambda: len(alpha.mounted()) == 1,
            timeout_s=SETTLED_S,
            what="the second one is unmounted",
        )
        alpha.remove("second")
        assert alpha.refusal("Remove", "first").startswith("volume-busy: ")
    alpha.unmount("first")
    unmounted(alpha)
    alpha.remove("first")


def test_exports_below_the_export_are_unmounted_with_it(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    media = f"{XFS}/media"
    films = f"{nfs_server.local(media)}/films"
    nfs_server.run(f"mkdir -p {films}; mount -t tmpfs tmpfs {films}; touch {films}/a")
    try:
        nfs_server.export(media, f"{COMMON},no_root_squash,crossmnt,fsid=71")
        nfs_server.export(f"{media}/films", f"{COMMON},no_root_squash,fsid=72")
        directory(alpha, "media", media)
        target = alpha.mount("media")
        assert alpha.node.out(["ls", f"{target}/films"]) == "a"
        assert len(alpha.mounted()) == 2
        alpha.unmount("media")
        unmounted(alpha)
        alpha.remove("media")
    finally:
        nfs_server.restore()
        # The kernel forgets its exports a moment later.
        nfs_server.run(f"umount -l {films}")


def test_a_server_that_gets_another_address_is_found_there(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    """The kernel goes on to wait for the old one, by our mount of the share."""
    first = nfs_server.ipv4
    nfs_server.run(f"mkdir {nfs_server.local(XFS)}/rows")

    def move(old: str, new: str) -> None:
        alpha.node.run(
            f"sed -i '/{NAME}/d' /etc/hosts; echo {new} {NAME} >> /etc/hosts"
        )
        nfs_server.run(
            "at=$(ip -o -4 addr show to 10.77.0.0/24 | awk '{print $2; exit}'); "
            f"ip addr add {new}/24 dev $at; ip addr del {old}/24 dev $at; "
            f"ip addr show to {new} | grep -q {new} || ip addr add {new}/24 dev $at"
        )
        alpha.node.run(["ip", "neighbour", "flush", "all"])

    alpha.node.run(f"echo {first} {NAME} >> /etc/hosts")
    given = {"server": NAME, "share": XFS}
    # The one by its address keeps the kernel's connection to that.
    alpha.remora.stop()
    unmount_all(alpha.node)
    alpha.node.put("", "/etc/remora/remora.toml")
    alpha.remora.start()
    try:
        assert alpha.remora.call("Create", {"Name": "kept", "Opts": given}) == {}
        directory(alpha, "rows", f"{XFS}/rows", NAME)
        for name in ("kept", "rows"):
            alpha.node.run(f"echo {name} > {alpha.mount(name)}/file; sync")
            alpha.unmount(name)
        unmounted(alpha)
        move(first, OTHER_ADDRESS)
        wait_until(
            lambda: alpha.remora.call("Create", {"Name": "new", "Opts": given}) == {},
            timeout_s=MOVED_S,
            what="a volume is made on the server at its new address",
        )
        for name in ("kept", "rows"):
            assert alpha.node.out(["cat", f"{alpha.mount(name)}/file"]) == name
            alpha.unmount(name)
        unmounted(alpha)
        for name in alpha.names():
            alpha.remove(name)
    finally:
        move(OTHER_ADDRESS, first)
        alpha.node.run(f"sed -i '/{NAME}/d' /etc/hosts")


def test_a_server_with_another_name_is_the_same_if_it_is_said(
    shared_lab: Lab, nfs_server: NfsServer
) -> None:
    """Not by itself: what answers under another name may be a copy of last week."""
    names = "old.example.net", "new.example.net"
    old, new = (f"{name}:{XFS}" for name in names)
    with running(shared_lab, nfs_server, "alpha", "beta") as (alpha, beta):
        for node in (alpha, beta):
            node.node.run(
                f"for name in {' '.join(names)}; do echo {nfs_server.ipv4} $name; done"
                " >> /etc/hosts"
            )
        try:
            _move_share(alpha, beta, old, new)
        finally:
            for node in (alpha, beta):
                node.node.run("sed -i /example.net/d /etc/hosts")
    empty(nfs_server)


def _move_share(alpha: NfsNode, beta: NfsNode, old: str, new: str) -> None:
    server, _, share = old.partition(":")

    def move(share: str, to: str, node: NfsNode = alpha) -> tuple[int, str]:
        status, answer = node.remora.control(
            "POST", "/v1/shares/move", {"share": share, "to": to}
        )
        return status, str(answer)

    given = {"server": server, "share": share}
    for name in ("doomed", "kept", "other"):
        assert alpha.remora.call("Create", {"Name": name, "Opts": given}) == {}
    alpha.made("elsewhere", EXT4)
    target = alpha.mount("kept")
    alpha.node.run(f"echo row > {target}/file; sync")
    with container_like(alpha, target):  # a start lets go of what nobody uses
        # What is half removed when the server dies does not hold up the others.
        _begin_removal(alpha, "doomed")
        alpha.node.run(f"sed -i /{server}/d /etc/hosts")
        alpha.remora.start()
        # Another share, none, or one in use is refused, and nothing has changed.
        for to, why in (
            (f"{alpha.server.ipv4}:{EXT4}", "is another share than"),
            ("nowhere", "must be :/PATH or SERVER:/PATH"),
            (f"nfs://{server}{XFS}", "must be :/PATH or SERVER:/PATH"),
            (f"a b:{XFS}", "server"),
            (new, "'kept' is used by"),
        ):
            status, told = move(old, to)
            assert status >= 400
            assert why in told
    assert "is known here" in move(f"x.example.net:{XFS}", new)[1]
    assert "remora share move" in alpha.refusal("Mount", "other", ID="id")
    alpha.unmount("kept")
    # Another node has it by the name of its profile: its lease is of the same share.
    beta.mount("kept")
    assert "mounted on beta" in move(old, new)[1]
    beta.unmount("kept")
    for named in (old, f"{old}/"):  # it may be repeated
        status, told = move(named, new)
        assert status == 200, told
    # Nor was the dead server waited for, volume by volume.
    assert "the lease of 'other' ends" not in alpha.remora.log.read_text()
    assert alpha.node.out(["cat", f"{alpha.mount('kept')}/file"]) == "row"
    assert alpha.status("kept")["source"].startswith(new)
    alpha.unmount("kept")
    wait_until(lambda: not alpha.knows("doomed"), timeout_s=SETTLED_S, what="it goes")
    assert "must be a host name" in move(f"{'e' * 300}:{XFS}", new)[1]
    # Once more, and as a Compose file with the new name asks for it.
    assert move(old, new)[0] == 200
    given = {"server": new.partition(":")[0], "share": share}
    assert alpha.remora.call("Create", {"Name": "kept", "Opts": given}) == {}
    unmounted(alpha)
    for name in alpha.names():
        alpha.remove(name)


def _begin_removal(node: NfsNode, name: str) -> None:
    """Have the daemon die while the server is slow to remove the volume."""
    frozen = node.server.local(XFS)
    node.server.run(f"fsfreeze -f {frozen}")
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(node.remora.call, "Remove", {"Name": name})
            wait_until(
                lambda: node.status(name)["phase"] == "removing",
                timeout_s=SETTLED_S,
                what=f"the removal of {name} has begun",
            )
            node.remora.kill()
    finally:
        node.server.run(f"fsfreeze -u {frozen}")


def test_a_filesystem_for_each_volume_is_neither_exchanged_nor_thrown_away(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    """As who follows the advice to set quotas on the server has them."""
    dataset = nfs_server.local(f"{XFS}/rows")
    nfs_server.run(
        f"mkdir {dataset}; mount -t tmpfs tmpfs {dataset}; chmod 777 {dataset}"
    )
    try:
        nfs_server.export(XFS, f"{COMMON},no_root_squash,crossmnt,fsid=1")
        nfs_server.export(f"{XFS}/rows", f"{COMMON},no_root_squash,fsid=72")
        alpha.made("rows", existing="adopt", onDelete="delete")
        alpha.node.run(f"echo precious > {alpha.mount('rows')}/file")
        alpha.unmount("rows")
        path = "/v1/volumes/rows"
        made = alpha.remora.control("POST", f"{path}/snapshots", {"snapshot": "s"})
        assert made[0] == 200, made
        status, said = alpha.remora.control(
            "POST", f"{path}/restore", {"snapshot": "s"}
        )
        assert (status, said["error"]["code"]) != (200, ""), said
        assert said["error"]["code"] == "NFS-FILESYSTEM", said
        assert alpha.node.out(["cat", f"{alpha.mount('rows')}/file"]) == "precious"
        alpha.unmount("rows")
        assert alpha.remora.control("DELETE", f"{path}/snapshots/s", None)[0] == 200
        alpha.remove("rows")
        assert nfs_server.run(["cat", f"{dataset}/file"]) == "precious\n"
        alpha.made("rows")
        assert alpha.node.out(["cat", f"{alpha.mount('rows')}/file"]) == "precious"
        alpha.unmount("rows")
        alpha.remove("rows")
    finally:
        nfs_server.restore()
        nfs_server.run(f"umount -l {dataset}")
