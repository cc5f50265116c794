"""A holder that stops while it sends makes way for another one that has the commit."""

from __future__ import annotations

import os
import signal

from tests.cluster.test_replication_scenarios import (
    NAME,
    Make,
    begin,
    wait_holders,
)
from tests.protocol.node import wait_until
from tests.support.copies import live
from tests.support.owners import WAIT_S, Owner, Records
from tests.support.processes import command, descendants

LIMIT = '[replication]\nbandwidth_limit = "512KiB"'
SIZE = 6_000_000


def sends(owner: Owner) -> bool:
    assert owner.process is not None
    return "rsync" in map(command, descendants(owner.process.pid))


def test_a_holder_whose_daemon_stops_makes_way(
    make_owner: Make, records: Records
) -> None:
    alpha = make_owner("alpha")
    holders = [make_owner(name, profiles=LIMIT) for name in ("beta", "gamma")]
    delta = make_owner("delta", daemon={"mount_deadline_s": 8})
    volume_id, _ = begin(records, alpha, *holders)
    (live(alpha, volume_id) / "large").write_bytes(os.urandom(SIZE))
    for each in holders:
        wait_until(
            (live(each, volume_id) / "large").exists,
            f"{each.name} has it",
            timeout_s=WAIT_S,
        )
    alpha.unmount(NAME)
    wait_holders(records, volume_id, alpha, *holders)
    alpha.kill()
    delta.wait_known(NAME)
    delta.wait_down("alpha")
    delta.refused("Mount", Name=NAME, ID="one")
    wait_until(lambda: any(map(sends, holders)), "one sends", timeout_s=WAIT_S)
    (first,) = filter(sends, holders)
    first.signal(signal.SIGSTOP)
    try:
        delta.mount_at_last(NAME)
    finally:
        first.signal(signal.SIGCONT)
    assert (live(delta, volume_id) / "large").stat().st_size == SIZE
