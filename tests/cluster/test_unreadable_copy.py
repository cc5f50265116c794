"""A pool comes back from a backup, and one of its copies cannot be read."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from plugin.ownership.state import Commit
from tests.support.host import wait_until
from tests.support.owners import WAIT_S, Owner, Records


def test_the_others_count_as_held_no_more(
    make_owner: Callable[..., Owner], records: Records
) -> None:
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volumes = sorted(alpha.create(name, replicas="2") for name in ("a", "b"))
    for name in ("a", "b"):
        alpha.mount(name)
        alpha.unmount(name)
    for each in volumes:
        wait_until(
            lambda each=each: beta.id in records.head(each).holders,
            timeout_s=WAIT_S,
            what="beta has it",
        )
    beta_id = beta.id
    beta.stop()
    spoilt, older = volumes
    state = msgspec.structs.replace(beta.replica(older), commit=Commit(0, 0))
    (beta.copy(older) / "replica.json").write_bytes(msgspec.json.encode(state))
    (beta.copy(spoilt) / "replica.json").write_bytes(b"{")
    beta.start()
    wait_until(
        lambda: beta_id not in records.head(older).holders,
        timeout_s=WAIT_S,
        what="it is known that beta has not got it",
    )
