"""NFS servers and daemons that stop, change and come back (scenarios 12, 18 to 23)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.lab.lab import Lab
from tests.lab.nfs import EXT4, SQUASH, SQUASH_OWNER, XFS, NfsServer
from tests.lab.nfs_cluster import MOUNTS, NfsNode, empty, running
from tests.lab.nfs_faults import (
    HEALED_S,
    container_like,
    measured,
    reach,
    remove_all,
)
from tests.support.host import wait_until

# The monitor renews leases when it looks: at once, then every 15 s.
RENEWED_S = 40.0
BLOCKS = 160
WRITER = f"""
import hashlib, os, sys, time
seen = hashlib.sha256()
with open(sys.argv[1], "wb") as file:
    for number in range({BLOCKS}):
        block = os.urandom(65536)
        seen.update(block)
        file.write(block)
        file.flush()
        os.fsync(file.fileno())
        time.sleep(0.02)
print(seen.hexdigest())
"""


@pytest.fixture(scope="module")
def daemon(shared_lab: Lab, shared_nfs_server: NfsServer) -> Iterator[NfsNode]:
    """Yield the daemon on alpha, started once for the module."""
    with running(shared_lab, shared_nfs_server, "alpha") as (alpha,):
        yield alpha


@pytest.fixture
def alpha(daemon: NfsNode, nfs_server: NfsServer) -> Iterator[NfsNode]:
    """Yield the daemon; afterwards the server serves and no volume is left."""
    yield daemon
    nfs_server.restore()
    if not daemon.remora.running:
        daemon.remora.start()
    remove_all(daemon)
    empty(nfs_server)


def test_12_a_server_without_nfs_refuses(alpha: NfsNode, nfs_server: NfsServer) -> None:
    alpha.made("v")
    nfs_server.stop_nfs()
    with measured("12: Mount", 10):
        error = alpha.refusal("Mount", "v", ID="id")
    assert error.startswith("NFS-REFUSED: "), error
    with measured("12: Create on a share never seen", 10):
        assert alpha.create("w", EXT4)["Err"].startswith("NFS-REFUSED: ")
    assert alpha.mounted() == []
    nfs_server.start_nfs()
    with measured("12: Mount when it serves again", HEALED_S):
        alpha.mount("v")
    alpha.unmount("v")


def test_18_a_directory_made_anew_is_mounted_anew(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    """The bytes are those that the server has; to remove them is still refused."""
    alpha.made("v", onDelete="delete")
    target = alpha.mount("v", "a")
    path = nfs_server.local(f"{XFS}/v")
    nfs_server.run(f"rmdir {path}; mkdir {path}; echo new > {path}/file")
    assert "Stale file handle" in _failure(alpha, f"cat {target}/file; ls {target}")
    with measured("18: Mount of what was replaced", 10):
        assert alpha.mount("v", "b") == target
    assert alpha.mounted() == [target]
    assert alpha.node.out(["cat", f"{target}/file"]) == "new"
    alpha.node.run(f"echo more > {target}/more; sync -f {target}")
    assert nfs_server.run(["cat", f"{path}/more"]) == "more\n"
    alpha.unmount("v", "a")
    alpha.unmount("v", "b")
    assert alpha.refusal("Remove", "v").startswith("NFS-REPLACED: ")
    assert nfs_server.run(["cat", f"{path}/file"]) == "new\n"
    nfs_server.run(f"rm -r {path}")


def test_a_directory_that_is_gone_is_never_mounted_empty(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    alpha.made("v")
    alpha.mount("v", "a")
    path = nfs_server.local(f"{XFS}/v")
    nfs_server.run(f"rmdir {path}")
    for _ in range(2):
        error = alpha.refusal("Mount", "v", ID="b")
        assert error.startswith("NFS-STALE: directory 'v' is gone; "), error
    assert nfs_server.run(f"ls -d {path} || true").strip() == ""
    alpha.unmount("v", "a")
    assert alpha.mounted() == []
    alpha.remove("v")


def test_19_exported_again_it_recovers_without_a_new_mount(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    alpha.made("v")
    target = alpha.mount("v", "a")
    alpha.node.run(f"echo kept > {target}/file; sync -f {target}")
    (before,) = alpha.node.mounts(MOUNTS)
    nfs_server.unexport(XFS)
    wait_until(
        lambda: alpha.node.run(["stat", "-f", target], check=False).returncode,
        timeout_s=20,
        what="it is not to be had",
    )
    for call in range(2):
        with measured(f"19: Mount number {call} while it is not exported", 10):
            error = alpha.refusal("Mount", "v", ID="b")
        assert error.startswith("NFS-NOEXPORT: "), error
    nfs_server.export(XFS)
    wait_until(
        lambda: alpha.node.run(["cat", f"{target}/file"], check=False).stdout,
        timeout_s=20,
        what="it is read again",
    )
    assert alpha.node.mounts(MOUNTS) == [before]
    with measured("19: Mount when it is exported again", 20):
        assert alpha.mount("v", "b") == target
    assert alpha.node.mounts(MOUNTS) == [before]
    reach(alpha, "v", "ok")
    alpha.unmount("v", "a")
    alpha.unmount("v", "b")


def test_20_a_server_restarted_under_load_loses_nothing(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    alpha.made("v")
    target = alpha.mount("v")
    path = nfs_server.local(f"{XFS}/v/file")
    writer = alpha.node.popen(["/usr/bin/python3", "-c", WRITER, f"{target}/file"])

    def written() -> int:
        return int(nfs_server.run(f"stat -c %s {path} 2>/dev/null || echo 0"))

    wait_until(lambda: written() > 65536, timeout_s=30, what="it is being written")
    nfs_server.stop_nfs()
    between = written()
    nfs_server.start_nfs()
    assert writer.poll() is None
    assert between < BLOCKS * 65536
    with measured("20: until everything is written", 90):
        assert writer.wait(90) == 0, writer.error_output()
    shown = nfs_server.run(["sha256sum", path], timeout_s=60)
    assert shown.split()[0] == writer.output().strip()
    with measured("20: Unmount", 10):
        alpha.unmount("v")


def test_21_the_last_of_three_containers_unmounts(alpha: NfsNode) -> None:
    alpha.made("v")
    targets = {alpha.mount("v", mount_id) for mount_id in ("a", "b", "c")}
    (target,) = targets
    alpha.node.run(f"echo x > {target}/file")
    for mount_id in ("b", "a"):
        alpha.unmount("v", mount_id)
        assert alpha.mounted() == [target]
        assert alpha.node.out(["cat", f"{target}/file"]) == "x"
    alpha.unmount("v", "c")
    assert alpha.mounted() == []


def test_23_a_killed_daemon_finds_its_mounts_again(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    alpha.made("v")
    target = alpha.mount("v", "a")
    alpha.mount("v", "b")
    alpha.node.run(f"echo kept > {target}/file; sync -f {target}")
    with container_like(alpha, target):
        before = alpha.node.mounts(MOUNTS)
        alpha.remora.kill()
        # As if it had been down for a while: who holds a lease keeps others off.
        lease = f"{XFS}/.dvol/leases/{_id_at(target)}"
        nfs_server.run(f"touch -d '80 seconds ago' {nfs_server.local(lease)}/*")
        alpha.remora.start()
        assert alpha.status("v")["references"] == {"live": 0, "inherited": 2}
        with measured("23: until the lease is renewed", RENEWED_S):
            wait_until(
                lambda: _youngest(nfs_server, lease) < 60,
                timeout_s=RENEWED_S,
                what="the lease is renewed",
            )
        assert alpha.mount("v", "c") == target
        assert alpha.status("v")["references"] == {"live": 1, "inherited": 2}
        alpha.unmount("v", "c")
        after = alpha.node.mounts(MOUNTS)
        assert after == [each for each in before if each.mount_point == target]
        assert alpha.mounted() == [target]
        assert alpha.node.out(["cat", f"{target}/file"]) == "kept"
        assert alpha.status("v")["references"] == {"live": 0, "inherited": 2}
    alpha.unmount("v", "a")
    alpha.unmount("v", "b")
    assert alpha.mounted() == []


def test_23_a_power_failure_ends_every_mount(
    alpha: NfsNode, nfs_server: NfsServer
) -> None:
    alpha.made("v")
    target = alpha.mount("v", "a")
    alpha.node.run(f"echo kept > {target}/file; sync")
    alpha.node.power_off()
    alpha.node.boot()
    alpha.remora.start()
    assert alpha.status("v")["references"] == {"live": 0, "inherited": 0}
    assert alpha.mounted() == []
    wait_until(
        lambda: alpha.node.out(["ls", "-A", "/var/lib/remora/mounts"]) == "",
        timeout_s=20,
        what="the mount point is gone",
    )
    with measured("23: Mount after a power failure", HEALED_S):
        target = alpha.mount("v", "b")
    assert alpha.node.out(["cat", f"{target}/file"]) == "kept"
    alpha.unmount("v", "b")
    assert alpha.mounted() == []


def test_what_root_may_not_look_into_is_mounted(alpha: NfsNode) -> None:
    owner = str(SQUASH_OWNER)
    alpha.made("v", SQUASH, uid=owner, gid=owner, mode="0700", onDelete="delete")
    for mount_id in ("a", "b"):
        target = alpha.mount("v", mount_id)
    alpha.inside(target, owner, "touch file")
    alpha.unmount("v", "a")
    alpha.unmount("v", "b")


def test_a_silent_name_server_is_told_in_time(alpha: NfsNode) -> None:
    resolv = alpha.node.get("/etc/resolv.conf")
    alpha.node.put("nameserver 10.77.0.99\n", "/etc/resolv.conf")
    try:
        with measured("Create with a silent name server", 10):
            error = alpha.create("v", server="nas.example")["Err"]
        assert error.startswith("NFS-DNS: "), error
        with measured("Create on another server meanwhile", 10):
            alpha.made("w")
    finally:
        alpha.node.put(resolv, "/etc/resolv.conf")


def _id_at(target: str) -> str:
    """Return the id of the volume whose mount point is *target*."""
    return target.rpartition("/")[2]


def _failure(node: NfsNode, script: str) -> str:
    """Return what *script*, which may fail, says."""
    return node.node.run(f"({script}) 2>&1 || true").stdout


def _youngest(server: NfsServer, lease: str) -> float:
    """Return the age of the lease, in the server's time."""
    shown = server.run(f"date +%s; stat -c %Y {server.local(lease)}/*")
    now_s, *written_s = map(int, re.findall(r"\d+", shown))
    return now_s - max(written_s)
