"""The lab's NFS server, as the tests of the `nfs` backend rely on it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.lab.lab import Lab
from tests.lab.nfs import (
    EXT4,
    QUOTA,
    QUOTA_BYTES,
    SPACED,
    SQUASH,
    SQUASH_OWNER,
    XFS,
    NfsServer,
    mount,
    unmount_all,
)
from tests.support.host import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.lab.node import Node

# As the backend mounts: for ever patient with I/O, not with the mount itself.
OPTIONS = "hard,retry=0"


@pytest.fixture
def alpha(lab: Lab, nfs_server: NfsServer) -> Iterator[Node]:
    """Return a client; afterwards it has nothing mounted."""
    yield lab["alpha"]
    lab.restore()
    unmount_all(lab["alpha"])


@pytest.fixture
def beta(lab: Lab, nfs_server: NfsServer) -> Iterator[Node]:
    """Return another client; afterwards it has nothing mounted."""
    yield lab["beta"]
    lab.restore()
    unmount_all(lab["beta"])


@pytest.mark.parametrize("version", ["3", "4.2"])
@pytest.mark.parametrize("host", ["server", "[fd77::1]"])
def test_a_client_reads_what_another_wrote(
    alpha: Node, beta: Node, version: str, host: str
) -> None:
    options = f"vers={version},{OPTIONS}"
    mount(alpha, f"{host}:{XFS}", "/mnt/a", options)
    mount(beta, f"server:{XFS}", "/mnt/a", options)
    alpha.run("echo written > /mnt/a/file")
    assert beta.out("cat /mnt/a/file; rm /mnt/a/file") == "written"
    (entry,) = alpha.mounts("/mnt")
    assert (entry.source, entry.fs_type[:3]) == (f"{host}:{XFS}", "nfs")
    assert f"vers={version}," in alpha.out("grep /mnt/a /proc/mounts")


def test_version_4_2_clones_on_xfs(alpha: Node) -> None:
    mount(alpha, f"server:{XFS}", "/mnt/a", f"vers=4.2,{OPTIONS}")
    alpha.run("cd /mnt/a; dd if=/dev/zero of=big bs=1M count=16 status=none; sync -f .")
    alpha.run("cp --reflink=always /mnt/a/big /mnt/a/clone")


def test_the_quota_is_seen_and_enforced(alpha: Node) -> None:
    mount(alpha, f"server:{QUOTA}", "/mnt/a", f"vers=4.2,{OPTIONS}")
    assert (
        alpha.out("df -B1 --output=size /mnt/a | tail -1").strip() == f"{QUOTA_BYTES}"
    )
    done = alpha.run(
        "dd if=/dev/zero of=/mnt/a/big bs=1M count=64 conv=fsync", check=False
    )
    assert "No space left" in done.stderr
    alpha.run("rm /mnt/a/big")


def test_root_is_squashed(alpha: Node) -> None:
    mount(alpha, f"server:{SQUASH}", "/mnt/a", f"vers=4.2,{OPTIONS}")
    assert alpha.out("stat -c %u /mnt/a") == str(SQUASH_OWNER)
    assert "denied" in alpha.run("mkdir /mnt/a/mine", check=False).stderr
    as_owner = ["setpriv", f"--reuid={SQUASH_OWNER}", "--clear-groups"]
    alpha.run([*as_owner, "mkdir", "/mnt/a/owners"])
    alpha.run([*as_owner, "rmdir", "/mnt/a/owners"])


def test_an_export_may_have_blanks_in_its_path(alpha: Node) -> None:
    for version in ("3", "4.2"):
        mount(alpha, f"server:{SPACED}", "/mnt/a b", f"vers={version},{OPTIONS}")
        assert [each.source for each in alpha.mounts("/mnt")] == [f"server:{SPACED}"]
        alpha.run("touch '/mnt/a b/file'")
        unmount_all(alpha)


@pytest.mark.parametrize("version", ["4.2", "3"])
def test_a_lock_holds_against_another_client(
    alpha: Node, beta: Node, version: str
) -> None:
    for node in (alpha, beta):
        mount(node, f"server:{EXT4}", "/mnt/a", f"vers={version},{OPTIONS}")
    # A server that has just started grants version 3 locks only after `GRACE_S`.
    holder = alpha.popen("flock /mnt/a/lock sh -c 'echo held; sleep 1234'")
    wait_until(holder.output, timeout_s=30, what="the lock is taken")
    attempt = ["flock", "--nonblock", "/mnt/a/lock", "true"]
    assert beta.run(attempt, check=False).returncode == 1
    holder.kill()
    assert holder.wait() == -9
    beta.run(["flock", "--timeout", "20", "/mnt/a/lock", "true"])


def test_unexported_is_stale_and_exported_again_it_heals(
    alpha: Node, nfs_server: NfsServer
) -> None:
    mount(alpha, f"server:{XFS}", "/mnt/a", f"vers=4.2,{OPTIONS}")
    nfs_server.unexport(XFS)
    assert "Stale" in alpha.run("ls /mnt/a", check=False).stderr
    with pytest.raises(AssertionError, match="No such file or directory"):
        mount(alpha, f"server:{XFS}", "/mnt/b", f"vers=4.2,{OPTIONS}")
    nfs_server.export(XFS)
    alpha.run("ls /mnt/a")


def test_a_new_export_can_be_made(alpha: Node, nfs_server: NfsServer) -> None:
    path = nfs_server.export_new(f"{EXT4}/more", options="no_root_squash")
    mount(alpha, f"server:{path}", "/mnt/a", f"vers=4.2,{OPTIONS}")
    alpha.run("touch /mnt/a/file")
    nfs_server.run(["test", "-e", nfs_server.local(f"{path}/file")])


@pytest.mark.parametrize("version", ["3", "4.2"])
def test_stopped_it_refuses_and_started_it_serves(
    alpha: Node, nfs_server: NfsServer, version: str
) -> None:
    nfs_server.stop_nfs()
    with pytest.raises(AssertionError, match=r"refused|not supported"):
        mount(alpha, f"server:{EXT4}", "/mnt/a", f"vers={version},{OPTIONS}")
    nfs_server.start_nfs()
    mount(alpha, f"server:{EXT4}", "/mnt/a", f"vers={version},{OPTIONS}")


def test_cut_it_is_silent_and_healed_it_answers(
    alpha: Node, nfs_server: NfsServer
) -> None:
    mount(alpha, f"server:{EXT4}", "/mnt/a", f"vers=4.2,{OPTIONS}")
    nfs_server.cut()
    with pytest.raises(subprocess.TimeoutExpired):
        alpha.run("ls /mnt/a", timeout_s=2)
    writer = alpha.popen("echo late > /mnt/a/late; sync /mnt/a/late")
    nfs_server.heal()
    assert writer.wait(60) == 0
    assert alpha.out("cat /mnt/a/late", timeout_s=60) == "late"


def test_writes_go_on_after_the_servers_power_failed(
    alpha: Node, beta: Node, nfs_server: NfsServer
) -> None:
    mount(alpha, f"server:{EXT4}", "/mnt/a", f"vers=4.2,{OPTIONS}")
    writer = alpha.popen(
        "exec >/mnt/a/log; i=0\n"
        "while [ ! -e /tmp/end ]; do echo $i; i=$((i + 1)); sleep 0.05; done"
    )
    local = nfs_server.local(f"{EXT4}/log")
    wait_until(
        lambda: nfs_server.run(f"cat {local} || true"), timeout_s=30, what="it writes"
    )
    nfs_server.power_off()
    nfs_server.boot()
    size = int(nfs_server.run(f"stat -c %s {local}"))
    wait_until(
        lambda: int(nfs_server.run(f"stat -c %s {local}")) > size,
        timeout_s=60,
        what="writes go on",
    )
    alpha.run(["touch", "/tmp/end"])
    assert writer.wait(30) == 0
    mount(beta, f"server:{EXT4}", "/mnt/a", f"vers=4.2,{OPTIONS}")
    lines = beta.out("cat /mnt/a/log", timeout_s=60).split("\n")
    assert lines == [str(number) for number in range(len(lines))]
