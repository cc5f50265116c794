"""A node that lives and does not answer is waited for: only a lease's end is death."""

from __future__ import annotations

import shutil
import signal

import pytest

from plugin.ownership.state import Commit
from plugin.store.base import Delete
from tests.cluster.test_mount_wait import PATIENT_S, mount_meanwhile
from tests.cluster.test_replication_scenarios import (
    NAME,
    Make,
    begin,
    live,
    names,
    wait_holders,
)
from tests.protocol.node import wait_until
from tests.support.link import Link
from tests.support.owners import WAIT_S, Owner, Records
from tests.support.peers import control_sshs
from tests.support.processes import signal_all

# Longer than all that happens while a node stands still.
LEASE_TTL_S = 40.0
# A Mount waits for a node that lives for half of its time.
HASTY = {"mount_deadline_s": 8}


def take_away(records: Records, volume_id: str) -> None:
    """Delete the lock of a volume, as an end of its owner's lease does."""
    records.store.transact([], [Delete(f"v/{volume_id}/lock")])


def test_what_the_last_owner_has_not_sent_is_not_given_up_while_it_lives(
    make_owner: Make, records: Records
) -> None:
    """It may be ending its writers, which takes longer than a promise is waited for."""
    alpha = make_owner("alpha", lease_ttl_s=LEASE_TTL_S)
    beta = make_owner("beta", daemon=HASTY)
    volume_id, _ = begin(records, alpha, beta)
    beta.wait_known(NAME)
    alpha.signal(signal.SIGSTOP)
    (live(alpha, volume_id) / "tail").write_text("tail")
    take_away(records, volume_id)
    # Just started, beta keeps a word that an earlier process may have given.
    wait_until(
        lambda: "'alpha'" in beta.refused("Mount", Name=NAME, ID="one"),
        "beta waits for alpha",
        timeout_s=WAIT_S,
    )
    alpha.signal(signal.SIGCONT)
    alpha.wait_member()
    alpha.call("Unmount", {"Name": NAME, "ID": "one"})
    beta.mount_at_last(NAME)
    assert names(live(beta, volume_id)) == ["first", "tail"]


def test_a_mount_waits_for_the_vote_of_a_node_that_is_slow(
    make_owner: Make, records: Records
) -> None:
    """To end writers takes ten seconds at times: the vote comes when they are dead."""
    alpha = make_owner("alpha", lease_ttl_s=LEASE_TTL_S)
    # Just started, beta keeps a word that an earlier process may have given.
    beta = make_owner("beta", mount_wait_s=PATIENT_S)
    volume_id, _ = begin(records, alpha, beta)
    alpha.signal(signal.SIGSTOP)
    (live(alpha, volume_id) / "tail").write_text("tail")
    take_away(records, volume_id)
    thread, errors = mount_meanwhile(beta)
    wait_until(
        lambda: beta.logged("did not answer 'promise' in time"),
        "beta has asked in vain",
        timeout_s=WAIT_S,
    )
    alpha.signal(signal.SIGCONT)
    thread.join(WAIT_S)
    assert errors == [""]
    assert names(live(beta, volume_id)) == ["first", "tail"]


def behind(
    make_owner: Make, records: Records, *, lease_ttl_s: float, **options: str
) -> tuple[str, Commit, Owner, Owner]:
    """Return a released volume whose newest commit beta has; gamma is behind."""
    alpha = make_owner("alpha")
    beta = make_owner("beta", lease_ttl_s=lease_ttl_s)
    gamma = make_owner("gamma", daemon=HASTY)
    volume_id, _ = begin(records, alpha, beta, gamma, **options)
    gamma.kill()
    (live(alpha, volume_id) / "more").write_text("more")
    wait_holders(records, volume_id, alpha, beta)
    alpha.unmount(NAME)
    newest = wait_holders(records, volume_id, alpha, beta)
    alpha.kill()
    gamma.start()
    gamma.wait_member()
    gamma.wait_down("alpha")
    return volume_id, newest, beta, gamma


@pytest.mark.parametrize("failover", ["accept_loss", "refuse"])
def test_a_holder_that_lives_is_not_passed_over(
    make_owner: Make, records: Records, failover: str
) -> None:
    """Its newer commit is no loss to be accepted: it comes as soon as it answers."""
    volume_id, newest, beta, gamma = behind(
        make_owner, records, lease_ttl_s=LEASE_TTL_S, failover=failover
    )
    beta.signal(signal.SIGSTOP)
    error = gamma.refused("Mount", Name=NAME, ID="one")
    assert "newer data on node 'beta', which lives" in error
    assert "restart remora there" in error
    assert records.head(volume_id).committed == newest
    beta.signal(signal.SIGCONT)
    gamma.mount_at_last(NAME)
    assert names(live(gamma, volume_id)) == ["first", "more"]


def test_a_holder_that_is_dead_is_a_loss_that_is_accepted_and_told(
    make_owner: Make, records: Records
) -> None:
    volume_id, newest, beta, gamma = behind(make_owner, records, lease_ttl_s=9)
    beta.kill()
    gamma.mount_at_last(NAME)
    assert names(live(gamma, volume_id)) == ["first"]
    (event,) = gamma.events("owned", NAME)
    assert event["lost"] == str(newest)


def test_a_member_that_lives_may_have_what_no_record_names(
    make_owner: Make, records: Records, link: Link
) -> None:
    """Its owner died between sending a commit and telling the store."""
    alpha = make_owner("alpha", link=link)
    beta = make_owner("beta", lease_ttl_s=LEASE_TTL_S)
    gamma = make_owner("gamma", daemon=HASTY)
    volume_id, before = begin(records, alpha, beta, gamma)
    gamma.kill()
    link.cut()
    (live(alpha, volume_id) / "more").write_text("more")
    copy = live(beta, volume_id) / "more"
    wait_until(copy.exists, "beta has it", timeout_s=WAIT_S)
    alpha.kill()
    gamma.start()
    gamma.wait_member()
    gamma.wait_down("alpha")
    beta.signal(signal.SIGSTOP)
    wait_until(
        lambda: "'beta', which lives" in gamma.refused("Mount", Name=NAME, ID="one"),
        "gamma waits for beta",
        timeout_s=WAIT_S,
    )
    assert records.head(volume_id).committed == before
    beta.signal(signal.SIGCONT)
    gamma.mount_at_last(NAME)
    assert names(live(gamma, volume_id)) == ["first", "more"]


def test_a_connection_stands_before_it_is_needed(
    shared_owners: tuple[Owner, Owner],
) -> None:
    """When a volume needs a vote there is no time to connect."""
    owner, _ = shared_owners
    pid = owner.process.pid
    wait_until(lambda: control_sshs(pid), "it is there", timeout_s=WAIT_S)
    before = control_sshs(pid)
    signal_all(before, signal.SIGKILL)
    # Far sooner than nodes greet each other.
    wait_until(
        lambda: set(control_sshs(pid)) - set(before), "it is renewed", timeout_s=20
    )


def test_a_last_owner_without_a_copy_has_been_heard(
    make_owner: Make, records: Records
) -> None:
    """It lives and answers, and nothing can come of waiting for it."""
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id, _ = begin(records, alpha, beta)
    target = alpha.get(NAME)["Mountpoint"]
    alpha.kill()
    # As a reboot does: what is still mounted it would take back.
    alpha.run("umount", target)
    beta.wait_down("alpha")
    shutil.rmtree(alpha.copy(volume_id))
    alpha.start()
    alpha.wait_member()
    beta.mount_at_last(NAME)
    assert names(live(beta, volume_id)) == ["first"]


def test_a_last_sync_waits_for_a_member_that_was_silent_once(
    make_owner: Make, records: Records
) -> None:
    """Nothing comes after it: this node may be shut down next."""
    alpha = make_owner("alpha")
    beta = make_owner("beta", lease_ttl_s=LEASE_TTL_S)
    volume_id, _ = begin(records, alpha, beta)
    beta.signal(signal.SIGSTOP)
    (live(alpha, volume_id) / "last").write_text("last")
    # It has not answered whether it has room, or not that it has a commit: what had
    # been sent when it stopped is waited for.
    wait_until(
        lambda: any(
            "a copy is not up to date" in each["event"]
            or (each["event"], each.get("copies")) == ("synced", 0)
            for each in alpha.log_lines()
        ),
        "beta was silent",
        timeout_s=WAIT_S,
    )
    beta.signal(signal.SIGCONT)
    alpha.unmount(NAME)
    assert names(live(beta, volume_id)) == ["first", "last"]
    assert beta.id in records.head(volume_id).holders
