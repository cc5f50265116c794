"""
Nodes that fail, are cut off, leave and come back: who has which volume then.

Copies do not travel yet: a volume is where its newest bytes are, and no other node may
begin it empty.
"""

from __future__ import annotations

import pytest

from tests.lab.cluster import NAMES, POOL, SHARED, Cluster, Member
from tests.support.host import wait_until

TOPOLOGY = SHARED

# The TTL of a lease, which etcd's own elections may make twice as long.
LEASE_ENDED_S = 60.0
RETURNED_S = 120.0
CONTENT = "what was written"


def write(member: Member, volume: str, content: str = CONTENT) -> None:
    """Put *content* into a mounted volume, as a container that flushes would."""
    point = member.call("Path", volume)["Mountpoint"]
    member.node.run(f"echo {content!r} >{point}/file; sync {point}/file")


def read(member: Member, volume: str) -> str:
    """Return what `write` has left in a mounted volume."""
    point = member.call("Path", volume)["Mountpoint"]
    return member.node.out(["cat", f"{point}/file"])


def await_state(member: Member, name: str, state: str) -> None:
    """Return when *member* knows that node *name* is in *state*."""
    wait_until(
        lambda: member.nodes().get(name) == state,
        timeout_s=RETURNED_S,
        what=f"{name} is {state}",
        evidence=member.nodes,
    )


def await_known(cluster: Cluster, volume: str) -> None:
    """Return when every node knows of *volume*."""
    wait_until(
        lambda: all(volume in cluster[name].names() for name in NAMES),
        timeout_s=LEASE_ENDED_S,
        what=f"every node knows {volume}",
    )


def await_mount(member: Member, volume: str) -> None:
    """Return when *member* has mounted *volume*."""
    answers = [{}]

    def mounted() -> bool:
        answers.append(member.call("Mount", volume, ID="id"))
        return "Mountpoint" in answers[-1]

    wait_until(
        mounted,
        timeout_s=RETURNED_S,
        what=f"{volume} is mounted",
        evidence=lambda: answers[-1],
    )


def locks(cluster: Cluster) -> list[str]:
    """Return etcd's keys of locks."""
    keys = cluster.etcd.ctl("get", "--prefix", "--keys-only", "/remora/")
    return [each for each in keys.split() if each.endswith("/lock")]


def owned(member: Member, volume: str) -> dict[str, object]:
    """Return the node's last event of beginning to own *volume*."""
    return [e for e in member.events(volume) if e["event"] == "owned"][-1]


def test_an_owner_whose_power_fails_begins_with_its_tail(cluster: Cluster) -> None:
    """Meanwhile nobody begins without what it has written; afterwards it is there."""
    alpha, beta = cluster["alpha"], cluster["beta"]
    for volume in ("power", "wanted"):
        alpha.made(volume, replicas="1")
        await_known(cluster, volume)
        alpha.mount(volume)
        write(alpha, volume)
    before = owned(alpha, "power")
    assert "in use on node 'alpha'" in beta.refusal("Mount", "power", ID="id")
    cluster.lab["alpha"].power_off()
    await_state(beta, "alpha", "down")
    assert locks(cluster) == []
    # Only one of them, for an attempt raises the epoch.
    error = beta.refusal("Mount", "wanted", ID="id")
    assert error.startswith("not-owner:")
    assert "'alpha'" in error
    cluster.boot("alpha")
    await_state(beta, "alpha", "ready")
    for volume in ("power", "wanted"):
        await_mount(alpha, volume)
        assert read(alpha, volume) == CONTENT
    after = owned(alpha, "power")
    assert after["epoch"] == before["epoch"] + 1
    assert after["base"] == f"{before['epoch']}.1"
    for volume in ("power", "wanted"):
        alpha.unmount(volume)
    assert locks(cluster) == []


def test_a_volume_is_removed_while_a_node_is_off(cluster: Cluster) -> None:
    """The node's copy goes when it comes back; what it had mounted stays refused."""
    alpha, beta = cluster["alpha"], cluster["beta"]
    beta.made("gone")
    beta.mount("gone")
    write(beta, "gone")
    beta.unmount("gone")
    await_known(cluster, "gone")
    volume_id = owned(beta, "gone")["id"]
    cluster.lab["beta"].power_off()
    await_state(alpha, "beta", "down")
    assert alpha.call("Remove", "gone") == {}
    assert "gone" not in alpha.names()
    cluster.boot("beta")
    beta.daemon.wait_ready()
    wait_until(
        lambda: volume_id not in beta.node.out(["ls", POOL]),
        timeout_s=RETURNED_S,
        what="the copy has gone",
    )
    assert "gone" not in beta.names()
    # The name is free for another volume, which does not have those bytes.
    beta.made("gone")
    beta.mount("gone")
    point = beta.call("Path", "gone")["Mountpoint"]
    assert beta.node.out(["ls", "-A", point]) == ""
    beta.unmount("gone")


@pytest.mark.long
def test_a_node_is_cut_from_etcd_alone(cluster: Cluster) -> None:
    alpha, beta = cluster["alpha"], cluster["beta"]
    for volume in ("lonely", "other"):
        alpha.made(volume, replicas="1")
        await_known(cluster, volume)
    alpha.mount("lonely")
    write(alpha, "lonely")
    cluster.cut_from_etcd("alpha")
    await_state(beta, "alpha", "down")
    assert alpha.refusal("Mount", "other", ID="id").startswith("store-unavailable:")
    assert {"lonely", "other"} <= {*alpha.names()}
    cluster.end_filters("alpha")
    await_state(beta, "alpha", "ready")
    # In the same epoch: nobody wanted it.
    epoch = owned(alpha, "lonely")["epoch"]
    wait_until(
        lambda: len(locks(cluster)) == 1,
        timeout_s=LEASE_ENDED_S,
        what="alpha has its lock again",
    )
    write(alpha, "lonely", "more")
    assert alpha.facts("lonely")["epoch"] == epoch
    await_mount(alpha, "other")
    alpha.unmount("other")
    alpha.unmount("lonely")
    await_mount(alpha, "lonely")
    assert read(alpha, "lonely") == "more"
    alpha.unmount("lonely")


@pytest.mark.long
def test_a_node_is_wanted_while_it_is_cut_from_etcd(cluster: Cluster) -> None:
    """Another node that wants its volume does not get it, and nothing is lost."""
    alpha, beta = cluster["alpha"], cluster["beta"]
    alpha.made("both")
    await_known(cluster, "both")
    alpha.mount("both")
    write(alpha, "both")
    cluster.cut_from_etcd("alpha")
    await_state(beta, "alpha", "down")
    error = beta.refusal("Mount", "both", ID="id")
    assert error.startswith("not-owner:")
    assert "'alpha'" in error
    cluster.end_filters("alpha")
    await_state(beta, "alpha", "ready")
    alpha.unmount("both")
    await_mount(alpha, "both")
    assert read(alpha, "both") == CONTENT
    alpha.unmount("both")


@pytest.mark.long
def test_a_node_is_cut_from_its_peers_alone(cluster: Cluster) -> None:
    """What needs no other node's copy works; etcd says who lives."""
    alpha, beta = cluster["alpha"], cluster["beta"]
    cluster.cut_from_peers("alpha")
    alpha.made("mine")
    await_known(cluster, "mine")
    alpha.mount("mine")
    write(alpha, "mine")
    assert "in use on node 'alpha'" in beta.refusal("Mount", "mine", ID="id")
    alpha.unmount("mine")
    error = beta.refusal("Mount", "mine", ID="id")
    assert error.startswith("not-owner:")
    assert "'alpha'" in error
    await_mount(alpha, "mine")
    assert read(alpha, "mine") == CONTENT
    alpha.unmount("mine")
    assert set(beta.nodes().values()) == {"ready"}
    assert alpha.call("Remove", "mine") == {}


@pytest.mark.long
def test_a_node_is_drained_and_removed(cluster: Cluster) -> None:
    alpha, gamma = cluster["alpha"], cluster["gamma"]
    gamma.made("kept")
    gamma.mount("kept")
    write(gamma, "kept")
    gamma.made("new")
    alpha.remora.cli("node", "drain", "gamma")
    await_state(gamma, "gamma", "drained")
    # What it has goes on, and what it has mounted can be mounted once more.
    gamma.mount("kept", "second")
    gamma.unmount("kept", "second")
    assert "drained" in gamma.refusal("Mount", "new", ID="id")
    alpha.remora.cli("node", "undrain", "gamma")
    await_state(gamma, "gamma", "ready")
    await_mount(gamma, "new")
    gamma.unmount("new")
    gamma.unmount("kept")
    assert "is alive" in refused(alpha, "gamma")
    cluster.lab["gamma"].power_off()
    await_state(alpha, "gamma", "down")
    assert "data that no other node has" in refused(alpha, "gamma")
    alpha.remora.cli("node", "rm", "--force", "gamma")
    assert "gamma" not in alpha.nodes()
    # It was not gone for good: it registers anew, and has what it had.
    cluster.boot("gamma")
    gamma.daemon.wait_ready()
    await_state(alpha, "gamma", "ready")
    await_mount(gamma, "kept")
    assert read(gamma, "kept") == CONTENT
    gamma.unmount("kept")


def refused(member: Member, name: str) -> str:
    """Return why the node *name* is not removed."""
    done = member.remora.cli("node", "rm", name, check=False)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.long
def test_etcd_is_restored_from_an_old_backup(cluster: Cluster) -> None:
    """A volume that was mounted since is refused with the reason; its bytes stay."""
    alpha, beta, etcd = cluster["alpha"], cluster["beta"], cluster.etcd
    for volume in ("old", "older", "untouched"):
        alpha.made(volume, replicas="1")
        await_known(cluster, volume)
    alpha.mount("untouched")
    write(alpha, "untouched")
    alpha.unmount("untouched")
    backup = etcd.back_up()
    for turn in range(3):
        for volume in ("old", "older"):
            alpha.mount(volume)
            write(alpha, volume, f"turn {turn}")
            alpha.unmount(volume)
    etcd.stop_all()
    etcd.load(backup)
    etcd.start_all()
    await_mount(alpha, "untouched")
    assert read(alpha, "untouched") == CONTENT
    alpha.unmount("untouched")
    # What the records say is that nobody has ever written to these. Each attempt raises
    # the epoch, beyond those that were promised.
    for member, volume in ((alpha, "old"), (beta, "older")):
        errors = [member.refusal("Mount", volume, ID="id") for _ in range(6)]
        print(*errors, sep="\n")
        assert "old backup" in errors[0]
        assert all(each.startswith("not-owner:") for each in errors)
        volume_id = owned(alpha, volume)["id"]
        assert alpha.node.out(["cat", f"{POOL}/{volume_id}/live/file"]) == "turn 2"
