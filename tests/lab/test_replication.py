"""
The data follows the container through power failures and cuts, on three real kernels.

Nodes lose what was not durable, whatever their daemon believed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.lab.cluster import POOL, SHARED, Cluster, Member
from tests.support.host import wait_until

TOPOLOGY = SHARED

WAIT_S = 120.0
Made = Callable[[str], str]


@pytest.fixture
def made(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """Return the name of a volume that alpha keeps with beta, and all know."""
    name = f"v{abs(hash(request.node.name)) % 10**8}"
    cluster["alpha"].made(name, members="alpha,beta", interval="1s")
    for member in cluster.members.values():
        wait_until(lambda m=member: name in m.names(), timeout_s=WAIT_S, what="known")
    return name


def mount(member: Member, name: str) -> str:
    """Mount the volume as soon as it may be; return the directory of its bytes."""
    answers = []

    def mounted() -> bool:
        answers.append(member.call("Mount", name, ID="id"))
        return "Mountpoint" in answers[-1]

    wait_until(mounted, timeout_s=WAIT_S, what=f"{member.node.name} mounts {name}")
    return f"{POOL}/{member.facts(name)['id']}/live"


def write(member: Member, path: str, text: str) -> None:
    member.node.run(f"echo {text} > {path} && sync {path}")


def wait_copied(cluster: Cluster, name: str, file: str, text: str) -> None:
    """Return when *file* holds *text* on alpha and beta, and both are the holders."""
    pair = [cluster[each] for each in ("alpha", "beta")]

    def copied() -> bool:
        if sorted(pair[0].facts(name)["holders"]) != ["alpha", "beta"]:
            return False
        shown = [each.node.out(f"cat {file} 2>/dev/null || true") for each in pair]
        return all(each.strip() == text for each in shown)

    wait_until(copied, timeout_s=WAIT_S, what=f"{name}: {file} is '{text}' on both")


def set_apart(member: Member, live: str) -> str:
    """Return the contents of all files `file` that *member* has set apart."""
    home = live.removesuffix("/live")
    return member.node.out(f"cat {home}/quarantine/*/file 2>/dev/null || true")


def test_the_owner_s_power_fails(cluster: Cluster, made: str) -> None:
    """[replication 3, 7] Its tail is found again when it is back."""
    alpha, beta = cluster["alpha"], cluster["beta"]
    live = mount(alpha, made)
    write(alpha, f"{live}/file", "kept")
    wait_copied(cluster, made, f"{live}/file", "kept")
    # Written after the last sync began, and durable on this node alone.
    cluster.cut_from_peers("alpha")
    write(alpha, f"{live}/file", "tail")
    time.sleep(2)
    alpha.node.power_off()
    mount(beta, made)
    assert beta.node.out(f"cat {live}/file").strip() == "kept"
    write(beta, f"{live}/file", "after")
    cluster.restore()
    wait_copied(cluster, made, f"{live}/file", "after")
    assert set_apart(alpha, live).strip() == "tail"
    beta.unmount(made)
    mount(alpha, made)
    assert alpha.node.out(f"cat {live}/file").strip() == "after"
    alpha.unmount(made)


def test_the_member_s_power_fails_while_it_takes_a_commit_in(
    cluster: Cluster, made: str
) -> None:
    alpha, beta = cluster["alpha"], cluster["beta"]
    live = mount(alpha, made)
    write(alpha, f"{live}/file", "first")
    wait_copied(cluster, made, f"{live}/file", "first")
    for number in range(3):
        alpha.node.run(
            f"for i in $(seq 300); do echo {number}-$i > {live}/f$i; done; sync {live}"
        )
        time.sleep(0.8 + 0.5 * number)
        beta.node.power_off()
        cluster.restore()
    wait_copied(cluster, made, f"{live}/f300", "2-300")
    alpha.unmount(made)
    script = f"cd {live} && find . -type f | sort | xargs cat | sha256sum"
    there = beta.node.out(script)
    assert there == alpha.node.out(script)
    mount(beta, made)
    assert beta.node.out(f"cat {live}/f300").strip() == "2-300"
    beta.unmount(made)


def test_a_node_that_is_cut_off_from_all_others(cluster: Cluster, made: str) -> None:
    """[replication 7] Both sides have written: one lineage, and the rest set apart."""
    alpha, beta = cluster["alpha"], cluster["beta"]
    live = mount(alpha, made)
    write(alpha, f"{live}/file", "kept")
    wait_copied(cluster, made, f"{live}/file", "kept")
    alpha.node.cut()
    write(alpha, f"{live}/file", "alone")
    mount(beta, made)
    assert beta.node.out(f"cat {live}/file").strip() == "kept"
    write(beta, f"{live}/file", "together")
    cluster.restore()
    # Its engine finds the container ended.
    wait_until(
        lambda: alpha.call("Unmount", made, ID="id") == {},
        timeout_s=WAIT_S,
        what="alpha lets go",
    )
    wait_copied(cluster, made, f"{live}/file", "together")
    assert set_apart(alpha, live).strip() == "alone"
    assert len(alpha.facts(made)["set_apart"]) == 1
    assert alpha.node.out(f"cat {live}/file").strip() == "together"
    beta.unmount(made)
    assert beta.facts(made)["ownership"] == "idle"
