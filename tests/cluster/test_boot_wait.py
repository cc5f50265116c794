"""
After a power failure a Mount waits for the node that has the newest bytes.

The waiting node runs in a time namespace in which its machine has just booted.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.cluster.test_replication_scenarios import (
    NAME,
    Make,
    begin,
    live,
    names,
    wait_holders,
)
from tests.protocol.node import wait_until
from tests.support.just_booted import just_booted
from tests.support.owners import WAIT_S, Records


def test_a_mount_waits_for_the_node_with_the_newest_bytes(
    make_owner: Make, records: Records
) -> None:
    alpha = make_owner("alpha")
    beta = make_owner("beta", start=False, daemon={"boot_wait_s": 3600})
    just_booted(beta)
    beta.start()
    beta.wait_member()
    volume_id, _ = begin(records, alpha, beta, failover="refuse")
    beta.kill()
    (live(alpha, volume_id) / "more").write_text("more")
    alpha.unmount(NAME)
    wait_holders(records, volume_id, alpha)
    alpha.kill()
    beta.start()
    beta.wait_member()
    with ThreadPoolExecutor(1) as pool:
        mounting = pool.submit(
            beta.call, "Mount", {"Name": NAME, "ID": "one"}, timeout_s=WAIT_S
        )
        wait_until(
            lambda: beta.logged(f"'{NAME}' waits for an answer: not-owner"),
            "the Mount waits",
            timeout_s=WAIT_S,
        )
        alpha.start()
        assert mounting.result(WAIT_S).error == ""
    assert names(live(beta, volume_id)) == ["first", "more"]
