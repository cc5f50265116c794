"""What a takeover that cannot be does to the owner, nothing; and what ends its wait."""

from __future__ import annotations

from tests.cluster.test_replication_scenarios import (
    NAME,
    Make,
    apart,
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


def test_who_removes_the_last_holder_gives_its_commit_up(
    make_owner: Make, records: Records
) -> None:
    """Not before, and not unasked; if it comes back, what it had is set apart."""
    alpha, beta, gamma = (make_owner(name) for name in ("alpha", "beta", "gamma"))
    volume_id, _ = begin(records, alpha, beta, gamma, failover="refuse")
    beta.kill()
    (live(alpha, volume_id) / "more").write_text("more")
    alpha.unmount(NAME)
    newest = wait_holders(records, volume_id, alpha, gamma)
    alpha.kill()
    gamma.kill()
    beta.start()
    beta.wait_member()
    for each in ("alpha", "gamma"):
        beta.wait_down(each)
    beta.control_ok("DELETE", "/v1/nodes/alpha")
    refused = beta.call("Mount", {"Name": NAME, "ID": "one"}).error
    assert f"commit {newest} of 'data' is on 'gamma', which is silent" in refused
    assert "remora node rm gamma --force" in refused
    refused = beta.control_refused("DELETE", "/v1/nodes/gamma")
    assert "that no other node has: the newest bytes of data" in refused
    beta.control_ok("DELETE", "/v1/nodes/gamma?force=1")
    beta.mount_at_last(NAME)
    assert names(live(beta, volume_id)) == ["first"]
    (event,) = beta.events("owned", NAME)
    assert event["lost"] == str(newest)
    # A node that was removed is still called by its name.
    copies = beta.control_ok("GET", f"/v1/volumes/{NAME}/replicas")
    states = {each["node"]: each["state"] for each in copies}
    assert states == {"alpha": "gone", "beta": "owner", "gamma": "gone"}
    beta.control_ok("DELETE", f"/v1/volumes/{NAME}/replicas/alpha")
    gamma.start()
    gamma.wait_member()
    wait_until(
        lambda: apart(gamma, volume_id) == {str(newest): ["first", "more"]},
        "what gamma had is set apart",
        timeout_s=WAIT_S,
    )
