"""NFS volumes on real kernels: what is made, seen, refused and removed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from tests.lab.lab import Lab
from tests.lab.nfs import EXT4, SPACED, SQUASH, SQUASH_OWNER, TOP, XFS, NfsServer
from tests.lab.nfs_cluster import NfsNode, empty, running, within
from tests.support.host import wait_until


@pytest.fixture(scope="module")
def pair(
    shared_lab: Lab, shared_nfs_server: NfsServer
) -> Iterator[tuple[NfsNode, NfsNode]]:
    """Yield the daemons on two nodes, started once for the module."""
    with running(shared_lab, shared_nfs_server, "alpha", "beta") as (alpha, beta):
        yield alpha, beta


@pytest.fixture
def nodes(
    pair: tuple[NfsNode, NfsNode], nfs_server: NfsServer
) -> Iterator[tuple[NfsNode, NfsNode]]:
    """Yield the daemons; afterwards no volume is left."""
    yield pair
    for each in pair:
        for name in each.names():
            each.remora.call("Remove", {"Name": name})
    empty(nfs_server)


Pair = tuple[NfsNode, NfsNode]


def test_01_a_volume_is_made_on_an_empty_export_and_keeps_its_bytes(
    nodes: Pair, nfs_server: NfsServer
) -> None:
    alpha, _ = nodes
    alpha.made("v")
    target = alpha.mount("v")
    alpha.node.run(f"echo precious > {target}/file; sync -f {target}")
    assert nfs_server.run(["cat", nfs_server.local(f"{XFS}/v/file")]) == "precious\n"
    alpha.unmount("v")
    assert alpha.mounted() == []
    target = alpha.mount("v", "again")
    assert alpha.node.out(["cat", f"{target}/file"]) == "precious"
    assert "vers=4.2" in alpha.status("v")["effective_options"]
    assert alpha.status("v")["health"] == "ok"
    alpha.unmount("v", "again")


def test_02_what_one_node_writes_the_other_reads(nodes: Pair) -> None:
    alpha, beta = nodes
    alpha.made("v")
    target = alpha.mount("v")
    alpha.node.run(f"echo from-alpha > {target}/file")
    alpha.unmount("v")
    # Never created there: the share's catalogue tells.
    assert beta.knows("v")
    target = beta.mount("v")
    assert beta.node.out(["cat", f"{target}/file"]) == "from-alpha"
    beta.unmount("v")


def test_03_nested_directories_leave_their_siblings_alone(
    nodes: Pair, nfs_server: NfsServer
) -> None:
    alpha, _ = nodes
    below = nfs_server.local(f"{XFS}/a")
    nfs_server.run(f"mkdir -p {below}; echo keep > {below}/sibling")
    alpha.made("v", subDir="a/${volume.name}/data", onDelete="delete")
    assert nfs_server.run(["ls", below]).split() == ["sibling", "v"]
    alpha.remove("v")
    assert nfs_server.run(["ls", below]).split() == ["sibling"]


def test_04_a_way_out_of_the_share_is_refused(nodes: Pair) -> None:
    alpha, _ = nodes
    assert "option 'subDir'" in alpha.create("v", subDir="../x")["Err"]
    assert alpha.names() == []


def test_05_a_directory_that_is_nobodys_is_taken_on_request_only(
    nodes: Pair, nfs_server: NfsServer
) -> None:
    alpha, _ = nodes
    path = nfs_server.local(f"{XFS}/v")
    nfs_server.run(f"mkdir {path}; echo old > {path}/file")
    assert alpha.create("v")["Err"].startswith("NFS-EXISTS: ")
    assert not alpha.knows("v")
    alpha.made("v", existing="adopt")
    assert alpha.node.out(["cat", f"{alpha.mount('v')}/file"]) == "old"
    alpha.unmount("v")


def test_05_what_its_own_removal_left_is_taken(
    nodes: Pair, nfs_server: NfsServer
) -> None:
    """`docker compose down --volumes` and `up`, on two nodes in turn."""
    alpha, beta = nodes
    for number, node in enumerate((alpha, beta, alpha)):
        made = partial(node.create, "v")
        wait_until(lambda made=made: made() == {}, timeout_s=60, what="it is made")
        target = node.mount("v")
        node.node.run(f"echo {number} >> {target}/file")
        node.unmount("v")
        node.remove("v")
    file = f"{nfs_server.local(XFS)}/v/file"
    assert nfs_server.run(["cat", file]).split() == ["0", "1", "2"]
    error = alpha.create("w", subDir="v")["Err"]
    assert "was left by volume 'v', removed at 20" in error


def test_06_one_directory_has_one_winner_one_volume_two(nodes: Pair) -> None:
    alpha, beta = nodes
    answers: dict[str, dict[str, object]] = {}

    def create(who: str, node: NfsNode, name: str, subdir: str) -> None:
        answers[who] = node.create(name, subDir=subdir)

    for number in range(3):
        pairs = (("one", alpha, f"a{number}"), ("two", beta, f"b{number}"))
        threads = [
            threading.Thread(target=create, args=(who, node, name, f"same{number}"))
            for who, node, name in pairs
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [each["Err"] for each in answers.values() if each]
        assert len(errors) == 1, answers
        assert str(errors[0]).startswith("NFS-EXISTS: ")
    threads = [
        threading.Thread(target=create, args=(node.node.name, node, "both", "both"))
        for node in (alpha, beta)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers["alpha"] == answers["beta"] == {}
    assert alpha.status("both")["id"] == beta.status("both")["id"]


def test_07_mode_and_owner_are_those_asked_for(nodes: Pair) -> None:
    alpha, _ = nodes
    alpha.made("v", mode="2770", uid="1000", gid="1000")
    target = alpha.mount("v")
    assert alpha.node.out(["stat", "-c", "%a %u %g", target]) == "2770 1000 1000"
    alpha.inside(target, "1000", "touch x")
    alpha.unmount("v")


def test_08_under_root_squash_the_owner_works_and_root_is_told(nodes: Pair) -> None:
    alpha, beta = nodes
    error = alpha.create("v", SQUASH)["Err"]
    assert error.startswith("NFS-SQUASH: "), error
    owner = str(SQUASH_OWNER)
    alpha.made("v", SQUASH, uid=owner, gid=owner, onDelete="delete")
    target = alpha.mount("v")
    alpha.inside(target, owner, "touch x")
    alpha.unmount("v")
    beta.made("v", SQUASH, uid=owner, gid=owner, onDelete="delete")
    beta.remove("v")


@pytest.mark.parametrize("on_delete", ["retain", "archive", "delete"])
def test_09_removal_does_what_it_is_asked_to(
    nodes: Pair, nfs_server: NfsServer, on_delete: str
) -> None:
    alpha, beta = nodes
    path = nfs_server.local(XFS)
    for turn in range(2):
        existing = "adopt" if turn and on_delete == "retain" else "error"
        alpha.made("v", onDelete=on_delete, existing=existing)
        alpha.node.run(f"echo bytes > {alpha.mount('v')}/file")
        alpha.unmount("v")
        alpha.remove("v")
        assert "v" not in alpha.names()
    wait_until(lambda: not beta.knows("v"), timeout_s=40, what="beta notices")
    kept = nfs_server.run(f"cat {path}/v/file || true").strip()
    assert kept == ("bytes" if on_delete == "retain" else "")
    archived = nfs_server.run(["ls", f"{path}/.dvol/archived"]).split()
    assert len(archived) == (2 if on_delete == "archive" else 0)


def test_10_what_was_replaced_is_not_removed(
    nodes: Pair, nfs_server: NfsServer
) -> None:
    alpha, _ = nodes
    alpha.made("v", onDelete="delete")
    path = nfs_server.local(f"{XFS}/v")
    nfs_server.run(f"rmdir {path}; mkdir {path}; echo other > {path}/file")
    assert alpha.refusal("Remove", "v").startswith("NFS-REPLACED: ")
    assert nfs_server.run(["cat", f"{path}/file"]) == "other\n"
    assert alpha.knows("v")
    nfs_server.run(f"rm -r {path}")
    alpha.remove("v")


@pytest.mark.parametrize("version", ["4", "3"])
def test_11_a_missing_export_is_told_quickly(nodes: Pair, version: str) -> None:
    alpha, _ = nodes
    with within(5):
        error = alpha.create("v", "/export/nothing", nfsvers=version)["Err"]
    assert error.startswith("NFS-NOEXPORT: "), error
    assert alpha.names() == []


def test_a_path_of_version_3_is_told(nodes: Pair, nfs_server: NfsServer) -> None:
    """Where the root is an export, as in old Compose files of the built-in driver."""
    alpha, _ = nodes
    address, inner = nfs_server.ipv4, f"{TOP}/quota/inner"

    def made(**options: str) -> None:
        given = {"type": "nfs", "device": f"{address}:{inner}", **options}
        assert alpha.remora.call("Create", {"Name": "v", "Opts": given}) == {}

    nfs_server.run(f"mkdir -p {nfs_server.local(inner)}")
    nfs_server.run(f"exportfs -i -o ro,no_subtree_check,fsid=0 '*:{TOP}/quota'")
    try:
        made()
        error = alpha.refusal("Mount", "v", ID="a")
        assert error.startswith("NFS-NOEXPORT: "), error
        assert "set nfsvers=3" in error, error
        assert f"if {TOP}/quota is exported with fsid=0, the path is /inner" in error
        alpha.remove("v")
        for right in ({"o": "nfsvers=3,nolock"}, {"device": f"{address}:/inner"}):
            made(**right)
            alpha.mount("v")
            alpha.unmount("v")
            alpha.remove("v")
    finally:
        nfs_server.run("exportfs -ra")


def test_a_removal_waits_for_other_nodes(nodes: Pair) -> None:
    alpha, beta = nodes
    alpha.made("v")
    beta.mount("v")
    error = alpha.refusal("Remove", "v")
    assert error.startswith("NFS-INUSE: "), error
    assert "mounted on beta" in error
    assert alpha.knows("v")
    beta.unmount("v")
    alpha.remove("v")
    wait_until(lambda: not beta.knows("v"), timeout_s=40, what="beta notices")


def test_the_same_create_on_both_nodes_is_one_volume_another_is_not(
    nodes: Pair,
) -> None:
    alpha, beta = nodes
    alpha.made("v", mode="0700")
    beta.made("v", mode="0700")
    assert "mode is 0700, asked for 0750" in beta.create("v", mode="0750")["Err"]


@pytest.mark.parametrize("share", [EXT4, SPACED])
def test_other_exports_serve_as_well(nodes: Pair, share: str) -> None:
    alpha, _ = nodes
    alpha.made("v", share, onDelete="delete")
    target = alpha.mount("v")
    alpha.node.run(f"echo x > '{target}/file'")
    assert alpha.status("v")["source"].endswith(f":{share}/v")
    alpha.unmount("v")
    alpha.remove("v")


def test_a_server_has_an_ipv6_address(nodes: Pair, nfs_server: NfsServer) -> None:
    alpha, _ = nodes
    alpha.made("v", server=nfs_server.ipv6)
    target = alpha.mount("v")
    alpha.node.run(f"echo x > {target}/file")
    alpha.unmount("v")
    alpha.remove("v")


@pytest.mark.parametrize("version", ["3", "4.1", "4.2"])
def test_the_version_asked_for_is_the_one_used(nodes: Pair, version: str) -> None:
    alpha, _ = nodes
    alpha.made("v", nfsvers=version, mountOptions="nolock" if version == "3" else "")
    alpha.mount("v")
    assert f"vers={version}" in alpha.status("v")["effective_options"]
    alpha.unmount("v")
    alpha.remove("v")


def test_the_built_in_drivers_form_mounts_what_it_says(
    nodes: Pair, nfs_server: NfsServer
) -> None:
    alpha, _ = nodes
    nfs_server.run(f"echo there > {nfs_server.local(XFS)}/file")
    options = {"type": "nfs", "o": f"addr={nfs_server.ipv4},rw", "device": f":{XFS}"}
    assert alpha.remora.call("Create", {"Name": "v", "Opts": options}) == {}
    target = alpha.mount("v")
    assert alpha.node.out(["cat", f"{target}/file"]) == "there"
    alpha.unmount("v")
    alpha.remove("v")
    assert nfs_server.run(["cat", f"{nfs_server.local(XFS)}/file"]) == "there\n"


def test_read_only_is_read_only(nodes: Pair) -> None:
    alpha, _ = nodes
    alpha.made("v", readOnly="true")
    target = alpha.mount("v")
    assert alpha.node.run(["touch", f"{target}/x"], check=False).returncode != 0
    alpha.unmount("v")


def test_a_subdirectory_of_the_mounted_share_can_be_used(
    nodes: Pair, nfs_server: NfsServer
) -> None:
    """For servers that refuse to have a subdirectory mounted."""
    alpha, beta = nodes
    for name in ("v", "w"):
        alpha.made(name, mountMode="share", subDir="deep/${volume.name}")
    target = alpha.mount("v")
    other = alpha.mount("w")
    alpha.node.run(f"echo mine > {target}/file; test ! -e {other}/file; sync")
    path = nfs_server.local(f"{XFS}/deep/v/file")
    assert nfs_server.run(["cat", path]) == "mine\n"
    assert len(alpha.mounted()) == 2
    volume_id = alpha.status("v")["id"]
    assert alpha.status("v")["source"].endswith(f"{XFS}/deep/v")
    assert beta.knows("v")
    assert beta.refusal("Remove", "v").startswith("NFS-INUSE: ")
    alpha.unmount("v")
    # What another volume of the share has mounted is no use of this one.
    alpha.remove("v")
    alpha.unmount("w")
    assert alpha.mounted() == []
    # The share was mounted on the way, and is not any more.
    controls = alpha.node.mounts("/var/lib/remora/nfs")
    assert not {volume_id} & {each.mount_point.split("/")[-1] for each in controls}


def test_a_readonly_copy_is_the_share_to_be_read(nodes: Pair) -> None:
    """It is what others write at this moment, and ends no use of the volume itself."""
    alpha, beta = nodes
    alpha.made("v")
    for each in nodes:
        answer = each.remora.call(
            "Create", {"Name": "v-read", "Opts": {"readonly_copy": "v"}}
        )
        assert answer == {}
    target = alpha.mount("v")
    alpha.node.run(f"echo one > {target}/file; sync -f {target}")
    for each in nodes:
        shown = each.mount("v-read", "r")
        assert each.node.out(["cat", f"{shown}/file"]) == "one"
        refused = each.node.run(f"echo two > {shown}/file", check=False)
        assert "Read-only file system" in refused.stderr
        assert each.knows("v")  # beta has only mounted what the share told it of
        status = each.status("v-read")
        assert (status["backend"], status["health"]) == ("readonly", "ok")
        assert status["effective_options"]
    # The lease is the volume's: what ends first leaves it to the other.
    alpha.unmount("v-read", "r")
    assert "NFS-INUSE" in beta.refusal("Remove", "v")
    beta.unmount("v-read", "r")
    assert beta.mounted() == []
    alpha.unmount("v")
    for each in nodes:
        each.remove("v-read")
    beta.remove("v")
