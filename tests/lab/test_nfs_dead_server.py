"""An NFS server that is dead, every packet to it silently dropped (scenarios 13-17)."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.lab import Lab
from tests.lab.labs import Labs
from tests.lab.nfs import EXT4, XFS, NfsServer, started_server
from tests.lab.nfs_cluster import NfsNode, empty, running
from tests.lab.nfs_faults import (
    HEALED_S,
    TWO_SERVERS,
    container_like,
    measured,
    processes,
    reach,
    remove_all,
)
from tests.support.host import wait_until

TOPOLOGY = TWO_SERVERS


@pytest.fixture(scope="module")
def other(labs: Labs, shared_lab: Lab) -> NfsServer:
    """Return a second server, which nobody harms."""
    return labs.part("other", lambda: started_server(shared_lab["other"]))


@pytest.fixture(scope="module")
def daemon(shared_lab: Lab, shared_nfs_server: NfsServer) -> Iterator[NfsNode]:
    """Yield the daemon on alpha, started once for the module."""
    with running(shared_lab, shared_nfs_server, "alpha") as (alpha,):
        yield alpha


@pytest.fixture
def alpha(
    daemon: NfsNode, nfs_server: NfsServer, other: NfsServer
) -> Iterator[NfsNode]:
    """Yield the daemon; afterwards the server is alive and no volume is left."""
    yield daemon
    nfs_server.heal()
    if not daemon.remora.running:
        daemon.remora.start()
    remove_all(daemon)
    empty(nfs_server)
    empty(other)


def test_13_a_mount_is_refused_and_succeeds_when_the_server_is_back(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    alpha.made("v")
    nfs_server.cut()
    for number in range(2):
        with measured(f"13: Mount number {number}", 10):
            error = alpha.refusal("Mount", "v", ID="id")
        assert error.startswith("NFS-UNREACHABLE: no answer; "), error
    assert alpha.mounted() == []
    assert processes(alpha, "mount.nfs") == []
    assert alpha.node.out(["ls", "-A", "/var/lib/remora/mounts"]) == ""
    nfs_server.heal()
    with measured("13: Mount after the server is back", HEALED_S):
        target = alpha.mount("v")
    alpha.node.run(f"echo usable > {target}/file")
    assert nfs_server.run(["cat", nfs_server.local(f"{XFS}/v/file")]) == "usable\n"
    alpha.unmount("v")


def test_14_the_volumes_of_another_server_do_not_wait(
    alpha: NfsNode, nfs_server: NfsServer, other: NfsServer
) -> None:
    alpha.made("dead")
    alpha.made("alive", server=other.ipv4)
    alpha.mount("dead")
    nfs_server.cut()
    body = {"Name": "dead", "ID": "a"}
    waiting = threading.Thread(target=alpha.remora.call, args=("Mount", body))
    waiting.start()
    with measured("14: Mount of the other server's volume", 5):
        target = alpha.mount("alive")
    alpha.node.run(f"echo x > {target}/file")
    with measured("14: Create on the other server", 5):
        alpha.made("new", server=other.ipv4)
    with measured("14: Unmount of the other server's volume", 5):
        alpha.unmount("alive")
    waiting.join()


def test_15_what_is_only_asked_is_answered_at_once(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    alpha.made("v")
    target = alpha.mount("v")

    def ask(when: str) -> None:
        for name in ("v", "nobody"):
            with measured(f"15: Get of '{name}' {when}", 1.5 if name != "v" else 1):
                assert alpha.knows(name) is (name == "v")
        with measured(f"15: List {when}", 1):
            assert alpha.names() == ["v"]
        with measured(f"15: Path {when}", 1):
            answer = alpha.remora.call("Path", {"Name": "v"})
        assert answer["Mountpoint"] == target

    nfs_server.cut()
    ask("just after")
    with measured("15: until Status says so", 40):
        reach(alpha, "v", "unreachable")
    assert "NFS-UNREACHABLE: " in alpha.status("v")["error"]
    ask("later")
    nfs_server.heal()
    with measured("15: until Status says that it is back", 40):
        reach(alpha, "v", "ok")


def test_16_an_idle_volume_is_unmounted(alpha: NfsNode, nfs_server: NfsServer) -> None:
    alpha.made("v")
    target = alpha.mount("v")
    alpha.node.run(f"echo kept > {target}/file; sync -f {target}")
    nfs_server.cut()
    with measured("16: Unmount", 5):
        alpha.unmount("v")
    assert alpha.mounted() == []
    assert alpha.node.run(["ls", "-d", target], check=False).returncode != 0
    nfs_server.heal()
    with measured("16: Mount after the server is back", HEALED_S):
        target = alpha.mount("v")
    assert alpha.node.out(["cat", f"{target}/file"]) == "kept"


def test_17_a_blocked_writer_is_killed_and_its_volume_unmounted(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    alpha.made("v")
    target = alpha.mount("v")
    writer = alpha.node.popen(
        f"while :; do dd if=/dev/zero of={target}/big bs=64k count=64 2>/dev/null;"
        f" sync {target}/big; echo turn; done"
    )
    wait_until(writer.output, timeout_s=30, what="something is written")
    nfs_server.cut()
    turns = -1
    while turns != (turns := len(writer.output())):  # until it is blocked
        time.sleep(2)
    assert writer.poll() is None
    with measured("17: kill and Unmount", 30):
        writer.kill()
        assert writer.wait(20) == -9
        alpha.unmount("v")
    assert alpha.mounted() == []


def test_force_spares_the_other_volumes_of_the_share(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    """Volumes of one share are one filesystem to the kernel, and force ends its I/O."""
    alpha.made("busy")
    alpha.made("precious")
    busy, precious = alpha.mount("busy"), alpha.mount("precious")
    sitting = alpha.node.popen(f"cd {busy}; echo there; sleep 600")
    writer = alpha.node.popen(
        f"for i in $(seq 40); do echo $i; sleep 0.1; done > {precious}/file;"
        f" sync {precious}/file; echo done"
    )
    wait_until(sitting.output, timeout_s=30, what="somebody is in the volume")
    nfs_server.cut()
    time.sleep(2)
    with measured("Unmount of a volume in which somebody sits", 30):
        alpha.unmount("busy")
    assert alpha.mounted() == [precious]
    assert writer.poll() is None
    nfs_server.heal()
    assert writer.wait(HEALED_S) == 0, writer.error_output()
    assert writer.output() == "done\n"
    path = nfs_server.local(f"{XFS}/precious/file")
    assert nfs_server.run(["cat", path]).split() == [str(i) for i in range(1, 41)]
    sitting.kill()


def test_create_and_remove_are_refused_and_change_nothing(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    alpha.made("v", onDelete="delete")
    alpha.node.run(f"echo kept > {alpha.mount('v')}/file")
    alpha.unmount("v")
    nfs_server.cut()

    def refused(what: str, call: Callable[[], dict[str, Any]]) -> str:
        with measured(what, 10):
            return str(call()["Err"])

    with concurrent.futures.ThreadPoolExecutor() as pool:
        calls = (
            ("Create", lambda: alpha.create("w")),
            ("Create on a share never seen", lambda: alpha.create("x", EXT4)),
            ("Remove", lambda: alpha.remora.call("Remove", {"Name": "v"})),
        )
        for error in pool.map(refused, *zip(*calls, strict=True)):
            assert error.startswith("NFS-UNREACHABLE: "), error
    assert alpha.names() == ["v"]
    nfs_server.heal()
    with measured("Mount after a refused Remove", HEALED_S):
        target = alpha.mount("v")
    assert alpha.node.out(["cat", f"{target}/file"]) == "kept"
    alpha.unmount("v")
    # At once, though the share's last known state may still be that it is away.
    with measured("Remove after the server is back", 10):
        alpha.remove("v")
    assert "w" not in nfs_server.run(["ls", nfs_server.local(XFS)]).split()


def test_a_server_that_dies_half_way_leaves_nothing_mounted(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    """
    With its mountd stopped, the server answers calls but no mounts.

    That keeps the agent in one volume's Mount, and mount.nfs in the other's.
    """
    alpha.made("v")
    options = {"type": "nfs", "o": f"addr={nfs_server.ipv4}", "device": f":{EXT4}"}
    assert alpha.remora.call("Create", {"Name": "direct", "Opts": options}) == {}

    def mount(name: str) -> str:
        with measured(f"Mount of '{name}' that the server dies under", 40):
            return alpha.refusal("Mount", name, ID="id")

    pool = concurrent.futures.ThreadPoolExecutor()
    nfs_server.run("kill -STOP $(pidof rpc.mountd); exportfs -f")
    try:
        calls = [pool.submit(mount, name) for name in ("v", "direct")]
        wait_until(
            lambda: processes(alpha, "mount.nfs"), timeout_s=10, what="mount.nfs runs"
        )
        time.sleep(0.5)
        nfs_server.cut()
        assert not any(call.done() for call in calls)
        answers = [call.result() for call in calls]
    finally:
        nfs_server.run("kill -CONT $(pidof rpc.mountd)")
    assert [each[:4] for each in answers] == ["NFS-", "NFS-"], answers
    assert alpha.mounted() == []
    assert processes(alpha, "mount.nfs") == []
    assert alpha.names() == ["direct", "v"]
    nfs_server.heal()
    for name in ("v", "direct"):
        with measured(f"Mount of '{name}' after the server is back", HEALED_S):
            alpha.mount(name)
        alpha.unmount(name)


def test_a_daemon_killed_meanwhile_starts_and_heals(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    alpha.made("v")
    target = alpha.mount("v")
    with container_like(alpha, target):
        alpha.remora.kill()
        with measured("start beside a living server", 90):
            began_s = time.monotonic()
            alpha.remora.start()
            before_s = time.monotonic() - began_s
        reach(alpha, "v", "ok")
        nfs_server.cut()
        alpha.remora.kill()
        with measured("start beside a dead server", 2 + 1.5 * before_s):
            alpha.remora.start()
        with measured("Get after that", 1):
            assert alpha.knows("v")
        with measured("until what the killed one left is gone", 30):
            wait_until(
                lambda: not control_mounts(alpha) and not agents(alpha),
                timeout_s=30,
                what="the killed daemon's control mounts and agents are gone",
                evidence=lambda: (control_mounts(alpha), agents(alpha)),
            )
        assert alpha.mounted() == [target]
        nfs_server.heal()
        with measured("Mount after the server is back", HEALED_S):
            assert alpha.mount("v", "a") == target
        alpha.node.run(f"echo x > {target}/file")
        reach(alpha, "v", "ok")
        assert alpha.mounted() == [target]
        assert len(control_mounts(alpha)) == len(agents(alpha)) == 1


def test_a_daemon_is_stopped_and_leaves_what_is_in_use(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    alpha.made("v")
    target = alpha.mount("v")
    with container_like(alpha, target):
        nfs_server.cut()
        with measured("stop beside a dead server", 15):
            assert alpha.remora.stop() == 0
        assert alpha.mounted() == [target]
        assert control_mounts(alpha) == agents(alpha) == []
        alpha.remora.start()
        nfs_server.heal()
        assert alpha.mounted() == [target]
    alpha.unmount("v")


def control_mounts(node: NfsNode) -> list[str]:
    """Return the control mounts that the kernel has."""
    return [each.mount_point for each in node.node.mounts("/var/lib/remora/nfs")]


def agents(node: NfsNode) -> list[str]:
    """Return the agents that run; the child of each, in its jail, is not counted."""
    pgrep = ["pgrep", "-f", "backends.nfs.agent.main"]
    found = node.node.run(pgrep, check=False).stdout.split()
    children = node.node.run([*pgrep, "-P", ",".join(found or "0")], check=False)
    return sorted({*found} - {*children.stdout.split()})
