"""A node that lives and does not answer is waited for: only a lease's end is death."""

from __future__ import annotations

import shutil
import signal

import pytest

from plugin.store.base import Delete
from tests.cluster.test_replication_scenarios import (
    NAME,
    Make,
    begin,
    live,
    names,
    wait_holders,
)
from tests.protocol.node import wait_until
from tests.support.owners import WAIT_S, Records

# Longer than all that happens while a node stands still.
LEASE_TTL_S = 40.0


def take_away(records: Records, volume_id: str) -> None:
    """Delete the lock of a volume, as an end of its owner's lease does."""
    records.store.transact([], [Delete(f"v/{volume_id}/lock")])


def test_what_the_last_owner_has_not_sent_is_not_given_up_while_it_lives(
    make_owner: Make, records: Records
) -> None:
    """It may be ending its writers, which takes longer than a promise is waited for."""
    alpha = make_owner("alpha", lease_ttl_s=LEASE_TTL_S)
    beta = make_owner("beta")
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


@pytest.mark.parametrize("failover", ["accept_loss", "refuse"])
def test_a_holder_that_lives_is_not_passed_over(
    make_owner: Make, records: Records, failover: str
) -> None:
    """Its newer commit is no loss to be accepted: it comes as soon as it answers."""
    alpha, beta, gamma = (
        make_owner("alpha"),
        make_owner("beta", lease_ttl_s=LEASE_TTL_S),
        make_owner("gamma"),
    )
    volume_id, _ = begin(records, alpha, beta, gamma, failover=failover)
    gamma.kill()
    (live(alpha, volume_id) / "more").write_text("more")
    wait_holders(records, volume_id, alpha, beta)
    alpha.unmount(NAME)
    newest = wait_holders(records, volume_id, alpha, beta)
    alpha.kill()
    gamma.start()
    gamma.wait_member()
    gamma.wait_down("alpha")
    beta.signal(signal.SIGSTOP)
    error = gamma.refused("Mount", Name=NAME, ID="one")
    assert "'beta'" in error
    assert records.head(volume_id).committed == newest
    beta.signal(signal.SIGCONT)
    gamma.mount_at_last(NAME)
    assert names(live(gamma, volume_id)) == ["first", "more"]


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
