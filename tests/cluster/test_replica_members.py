"""
Members come and go: three daemons, real sshd, rsync, etcd.

Who is to come and who to go is in `tests/unit/test_placement.py`, and that nothing is
lost in whatever order it happens in `tests/model`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

import pytest

from plugin.ownership.state import Head
from tests.protocol.command import Done, caller
from tests.protocol.node import wait_until
from tests.support.copies import live, wait_same
from tests.support.journal_trees import shape
from tests.support.owners import WAIT_S, Owner, Records, Writer

Make = Callable[..., Owner]
Three = tuple[Owner, Owner, Owner]
NAME = "data"
FILES = {f"file-{number}": f"{number}" * 1000 for number in range(20)}


@pytest.fixture
def three(make_owner: Make) -> Three:
    """Return the nodes of a cluster that replaces a dead one almost at once."""
    return (
        make_owner("alpha", replace_after="2s"),
        make_owner("beta", replace_after="2s"),
        make_owner("gamma", replace_after="2s"),
    )


def create(owner: Owner, *others: Owner, **options: str) -> str:
    """Return the id of a new volume that all nodes know, mounted with files in it."""
    volume_id = owner.create(NAME, interval="1s", **options)
    for other in others:
        other.wait_known(NAME)
    owner.mount_at_last(NAME)
    for name, content in FILES.items():
        (live(owner, volume_id) / name).write_text(content)
    return volume_id


def wait_members(records: Records, volume_id: str, *owners: Owner) -> Head:
    """Return the head when exactly *owners* are members, and have the newest commit."""
    wanted = {each.id for each in owners}

    def settled() -> bool:
        head = records.head(volume_id)
        return {*head.members} == {*head.holders} == wanted

    names = [each.name for each in owners]
    wait_until(settled, f"kept by {names}", timeout_s=2 * WAIT_S)
    return records.head(volume_id)


def wait_gone(owner: Owner, volume_id: str) -> None:
    """Return when the node's copy is in the trash, or deleted already."""
    wait_until(
        lambda: not owner.copy(volume_id).exists(),
        f"{owner.name} lets its copy go",
        timeout_s=WAIT_S,
    )


def with_copy(three: Three, records: Records, volume_id: str) -> tuple[Owner, Owner]:
    """Return who of the others keeps the copy of what alpha owns, and who does not."""
    alpha, beta, gamma = three
    wait_until(
        lambda: len(records.head(volume_id).holders) > 1, "a copy", timeout_s=WAIT_S
    )
    has = beta.id in records.head(volume_id).members
    member, other = (beta, gamma) if has else (gamma, beta)
    wait_members(records, volume_id, alpha, member)
    return member, other


def test_a_dead_member_is_replaced_and_its_copy_goes_when_it_is_back(
    three: Three, records: Records
) -> None:
    alpha = three[0]
    volume_id = create(*three)
    member, other = with_copy(three, records, volume_id)
    member.kill()
    wait_members(records, volume_id, alpha, other)
    wait_same(alpha, other, volume_id)
    member.start()
    wait_gone(member, volume_id)
    wait_members(records, volume_id, alpha, other)
    alpha.unmount(NAME)
    left = shape(live(alpha, volume_id))
    # Without a copy it is a node like any other, which fetches what it needs.
    member.mount_at_last(NAME)
    assert shape(live(member, volume_id)) == left


def test_of_an_idle_volume_copies_are_replaced_though_its_last_owner_is_dead(
    three: Three, records: Records
) -> None:
    alpha = three[0]
    volume_id = create(*three)
    member, other = with_copy(three, records, volume_id)
    alpha.unmount(NAME)
    epoch = wait_members(records, volume_id, alpha, member).epoch
    member.wait_known(NAME, ownership="idle")
    alpha.kill()
    head = wait_members(records, volume_id, member, other)
    assert (head.epoch, head.phase) == (epoch, "idle")
    assert shape(live(other, volume_id)) == shape(live(member, volume_id))
    alpha.start()
    wait_gone(alpha, volume_id)
    assert wait_members(records, volume_id, member, other).epoch == epoch


def test_copies_of_a_released_volume_are_replaced_though_a_node_gave_it_up(
    three: Three, records: Records
) -> None:
    """The copies have promised an epoch that nobody begins any more."""
    alpha = three[0]
    volume_id = create(*three)
    member, other = with_copy(three, records, volume_id)
    alpha.unmount(NAME)
    epoch = wait_members(records, volume_id, alpha, member).epoch
    other.wait_known(NAME, ownership="idle")
    # Neither of them can hand its bytes out, so the Mount fails.
    manifests = [each.copy(volume_id) / "manifest.db" for each in (alpha, member)]
    for each in manifests:
        each.rename(each.with_name("moved"))
        each.mkdir()
    assert other.call("Mount", {"Name": NAME, "ID": "one"}).error
    for each in manifests:
        each.rmdir()
        each.with_name("moved").rename(each)
    head = records.head(volume_id)
    assert (head.epoch, head.phase, head.owner) == (epoch + 1, "idle", other.id)
    assert member.replica(volume_id).promised == epoch + 1
    alpha.kill()
    head = wait_members(records, volume_id, member, other)
    assert (head.epoch, head.phase) == (epoch + 1, "idle")
    assert shape(live(other, volume_id)) == shape(live(member, volume_id))
    replicas = f"/v1/volumes/{NAME}/replicas"
    other.control_ok("DELETE", f"{replicas}/{member.name}")
    wait_gone(member, volume_id)
    moved = other.control_ok("POST", f"/v1/volumes/{NAME}/move", {"node": member.name})
    assert moved["owner"] == other.name
    wait_members(records, volume_id, member, other)


def test_a_node_that_was_removed_is_replaced(three: Three, records: Records) -> None:
    alpha = three[0]
    volume_id = create(*three)
    member, other = with_copy(three, records, volume_id)
    member.kill()
    wait_until(
        lambda: alpha.control("DELETE", f"/v1/nodes/{member.name}").status == 200,
        f"{member.name} is removed",
        timeout_s=WAIT_S,
    )
    wait_members(records, volume_id, alpha, other)


def test_a_third_node_that_mounts_a_volume_takes_the_place_of_one(
    three: Three, records: Records
) -> None:
    alpha = three[0]
    volume_id = create(*three)
    member, other = with_copy(three, records, volume_id)
    alpha.unmount(NAME)
    before = shape(live(alpha, volume_id))
    other.mount_at_last(NAME)
    assert shape(live(other, volume_id)) == before
    wait_until(
        lambda: len(records.head(volume_id).members) == 2, "two", timeout_s=WAIT_S
    )
    left = member if alpha.id in records.head(volume_id).members else alpha
    kept = alpha if left is member else member
    wait_members(records, volume_id, other, kept)
    wait_gone(left, volume_id)
    wait_same(other, kept, volume_id)


def test_a_drained_node_gives_its_copies_away(three: Three, records: Records) -> None:
    alpha = three[0]
    volume_id = create(*three)
    member, other = with_copy(three, records, volume_id)
    alpha.control_ok("POST", f"/v1/nodes/{member.name}/drain")
    wait_members(records, volume_id, alpha, other)
    wait_gone(member, volume_id)


def test_a_copy_with_snapshots_stays(three: Three, records: Records) -> None:
    alpha = three[0]
    volume_id = create(*three)
    member, other = with_copy(three, records, volume_id)
    # As it is left there from when this node was the owner.
    (member.copy(volume_id) / "snapshots/kept/data").mkdir(parents=True)
    alpha.control_ok("POST", f"/v1/nodes/{member.name}/drain")
    wait_members(records, volume_id, alpha, other)
    wait_until(
        lambda: member.logged("a copy stays though this node is no member"),
        "the reason is logged",
        timeout_s=WAIT_S,
    )
    assert member.copy(volume_id).exists()
    member.control_ok("DELETE", f"/v1/volumes/{NAME}/snapshots/kept")
    wait_gone(member, volume_id)


def test_what_a_dead_owner_alone_has_is_set_apart(
    three: Three, records: Records
) -> None:
    alpha = three[0]
    volume_id = create(*three)
    member, other = with_copy(three, records, volume_id)
    alpha.kill()
    (live(alpha, volume_id) / "unsent").write_text("of alpha alone")
    member.mount_at_last(NAME)
    wait_members(records, volume_id, member, other)
    alpha.start()
    alpha.wait_member()
    alpha.unmount(NAME)
    wait_until(
        lambda: alpha.logged("a copy stays though this node is no member"),
        "the reason is logged",
        timeout_s=WAIT_S,
    )
    apart = alpha.copy(volume_id) / "quarantine"
    found = list(apart.glob("*/unsent"))
    assert [each.read_text() for each in found] == ["of alpha alone"]
    assert alpha.get(NAME)["Status"]["set_apart"] == [found[0].parent.name]
    wait_members(records, volume_id, member, other)
    shutil.rmtree(apart)  # as a person does who has what it takes
    wait_gone(alpha, volume_id)


def test_who_is_filled_later_comes_in_step_while_containers_write(
    three: Three, records: Records
) -> None:
    """Both others get one commit in a round; a commit counts only with both."""
    alpha, beta, gamma = three
    volume_id = alpha.create(NAME, interval="1s", replicas="3", min_acks="2")
    for each in (beta, gamma):
        each.wait_known(NAME)
    writer = Writer(alpha, alpha.mount_at_last(NAME))
    wait_members(records, volume_id, *three)
    writer.wait_writing()
    writer.end()


def test_copies_are_added_and_removed_by_hand(
    three: Three,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From any node; what was asked for is not undone by what happens by itself."""
    alpha = three[0]
    volume_id = create(*three)
    member, other = with_copy(three, records, volume_id)
    cli = caller(other, monkeypatch, capsys)
    assert cli("replica", "add", NAME, other.name) == Done(0, f"{other.name}\n", "")
    wait_members(records, volume_id, *three)
    [heading, first, *rows] = cli("replica", "ls", NAME).out.splitlines()
    assert heading.split() == ["NODE", "STATE", "COMMIT", "ALIVE", "LACKS"]
    assert first.split()[:2] == ["alpha", "owner"]
    assert {row.split()[1] for row in rows} <= {"holder", "behind"}
    other.wait_known(NAME)
    assert other.get(NAME)["Status"]["options"]["replicas"] == "3"
    assert cli("replica", "rm", NAME, member.name).code == 0
    wait_gone(member, volume_id)
    assert cli("replica", "rm", NAME, other.name).code == 0
    wait_gone(other, volume_id)
    time.sleep(3)  # rounds in which nobody comes back
    assert records.head(volume_id).members == (alpha.id,)
    refused = cli("replica", "rm", NAME, "alpha")
    assert refused.code == 14
    assert refused.error.startswith("not-owner: 'data' is in use on node 'alpha'")
    alpha.unmount(NAME)
    other.wait_known(NAME, ownership="idle")
    refused = cli("replica", "rm", NAME, "alpha")
    assert refused.code == 14
    assert "is on 'alpha' only" in refused.error
    assert cli("replica", "add", NAME, member.name).code == 0
    wait_members(records, volume_id, alpha, member)
    assert records.head(volume_id).phase == "idle"
    assert cli("replica", "rm", NAME, "alpha").code == 0
    wait_gone(alpha, volume_id)
    wait_members(records, volume_id, member)


def test_named_nodes_are_kept_and_changed_by_name(
    three: Three, records: Records
) -> None:
    alpha, beta, gamma = three
    volume_id = create(*three, members="alpha,beta")
    wait_members(records, volume_id, alpha, beta)
    replicas = f"/v1/volumes/{NAME}/replicas"
    gamma.control_ok("POST", replicas, {"node": "gamma"})
    wait_members(records, volume_id, *three)
    alpha.control_ok("DELETE", f"{replicas}/beta")
    wait_gone(beta, volume_id)
    assert alpha.get(NAME)["Status"]["options"]["members"] == "alpha,gamma"
    # The same creation finds it, whatever has been changed since.
    assert not alpha.call(
        "Create",
        {"Name": NAME, "Opts": {"interval": "1s", "members": "alpha,beta"}},
    ).error


def test_what_cannot_be_is_refused_in_a_line(make_owner: Make) -> None:
    alpha, beta = make_owner("alpha"), make_owner("beta")
    alpha.create(NAME)
    beta.wait_known(NAME)
    replicas = f"/v1/volumes/{NAME}/replicas"
    for method, target, body, cause in (
        ("GET", "/v1/volumes/other/replicas", None, "there is no volume 'other'"),
        ("POST", replicas, {"node": "delta"}, "there is no node 'delta'"),
        ("POST", replicas, {"nodes": 1}, "the request cannot be read"),
        ("DELETE", f"{replicas}/delta", None, "there is no node 'delta'"),
        ("DELETE", f"{replicas}/beta", None, "'beta' keeps no copy of 'data'"),
        ("DELETE", f"{replicas}/alpha", None, "is on 'alpha' only"),
    ):
        assert cause in beta.control_refused(method, target, body)
    beta.control_ok("POST", "/v1/nodes/beta/drain")
    alpha.wait_drained("beta")
    refused = alpha.control_refused("POST", replicas, {"node": "beta"})
    assert "node 'beta' is drained" in refused
    alpha.mount_at_last(NAME)
    beta.wait_known(NAME, ownership="owned")
    alpha.kill()
    refused = beta.control_refused("DELETE", f"{replicas}/alpha")
    assert "was in use on node 'alpha', which does not answer" in refused


def test_killed_between_any_two_steps_it_comes_to_the_same_end(
    three: Three, records: Records
) -> None:
    alpha = three[0]
    volume_id = create(*three)
    member, other = with_copy(three, records, volume_id)
    alpha.unmount(NAME)
    wait_members(records, volume_id, alpha, member)
    alpha.control_ok("POST", f"/v1/nodes/{member.name}/drain")
    for pause_s in (0.5, 2.0, 4.0, 7.0):
        time.sleep(pause_s)
        for each in three:
            each.kill()
            each.start()
        for each in three:
            each.wait_member()
    wait_members(records, volume_id, alpha, other)
    wait_gone(member, volume_id)
    assert shape(live(other, volume_id)) == shape(live(alpha, volume_id))


def test_a_removed_volume_leaves_no_copy_of_who_was_no_member(
    three: Three, records: Records
) -> None:
    alpha = three[0]
    volume_id = create(*three)
    member, other = with_copy(three, records, volume_id)
    member.kill()
    wait_members(records, volume_id, alpha, other)
    alpha.unmount(NAME)
    alpha.ok("Remove", Name=NAME)
    assert member.copy(volume_id).exists()
    member.start()
    wait_gone(member, volume_id)
