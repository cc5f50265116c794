"""What a takeover that cannot be does to the owner: nothing."""

from __future__ import annotations

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


def test_a_takeover_that_cannot_be_leaves_the_owner_be(
    make_owner: Make, records: Records
) -> None:
    """An owner that was only cut off goes on in its epoch, with its writers."""
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id, _ = begin(records, alpha, beta, failover="refuse")
    beta.kill()
    (live(alpha, volume_id) / "more").write_text("more")
    alpha.unmount(NAME)
    alpha.mount(NAME)
    epoch = records.head(volume_id).epoch
    alpha.kill()
    beta.start()
    beta.wait_member()
    answers = []

    def refused() -> bool:
        answers.append(beta.call("Mount", {"Name": NAME, "ID": "one"}).error)
        return "'alpha', which is silent" in answers[-1]

    wait_until(refused, "the lease of alpha has ended", timeout_s=WAIT_S)
    assert records.head(volume_id).epoch == epoch
    alpha.start()
    alpha.wait_member()
    (live(alpha, volume_id) / "after").write_text("after")
    wait_holders(records, volume_id, alpha, beta)
    assert names(live(beta, volume_id)) == ["after", "first", "more"]
    assert records.head(volume_id).epoch == epoch
