"""A volume that was written to, and never copied, does not begin empty elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.protocol.node import wait_until
from tests.support.owners import WAIT_S, Owner, Records

Make = Callable[..., Owner]
NAME = "new"
# Between two looks at volumes that are behind.
IDLE_ROUND_S = 12.0


def refusal(owner: Owner) -> str:
    """Return why *owner* may not mount the volume once its last owner is over."""
    end_s = time.monotonic() + WAIT_S
    passing = ("is in use", "may still be written to")
    while any(
        each in (error := owner.refused("Mount", Name=NAME, ID="one"))
        for each in passing
    ):
        assert time.monotonic() < end_s, error
        time.sleep(0.2)
    return error


def test_only_the_node_that_wrote_has_the_bytes(
    make_owner: Make, records: Records
) -> None:
    alpha, beta, gamma = (make_owner(name) for name in ("alpha", "beta", "gamma"))
    volume_id = alpha.create(NAME, members="alpha,beta,gamma", interval="1s")
    for each in (beta, gamma):
        each.wait_known(NAME)
    beta.mount(NAME)
    wait_until(
        lambda: len(records.head(volume_id).members) == 3,
        "all are members",
        timeout_s=WAIT_S,
    )
    # Before the first commit has come anywhere.
    beta.kill()
    told = "would begin empty: what was written is on node 'beta'"
    assert told in refusal(gamma)
    assert told in refusal(alpha)
    time.sleep(IDLE_ROUND_S)
    assert gamma.id not in records.head(volume_id).holders
    assert told in refusal(alpha)
    beta.start()
    beta.wait_member()
    beta.unmount(NAME)
    alpha.mount_at_last(NAME)
