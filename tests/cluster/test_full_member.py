"""A member takes no more than its disk has room for, and its owner says so."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from backends.system.copying import CopyError
from plugin.replication.room import NoSpaceError, on_disk_of
from tests.protocol.node import wait_until
from tests.support.copies import live
from tests.support.owners import WAIT_S, Owner, Records

NAME = "data"
MIB = 2**20


def test_a_member_without_room_is_sent_nothing(
    make_owner: Callable[..., Owner], records: Records
) -> None:
    alpha = make_owner("alpha")
    beta = make_owner("beta", daemon={"disk": True})  # of 64 MiB
    volume_id = alpha.create(NAME, interval="1s", members="alpha,beta")
    beta.wait_known(NAME)
    big = live(alpha, volume_id) / "big"
    big.write_bytes(os.urandom(100 * MIB))
    alpha.mount_at_last(NAME)

    def why() -> str:
        return str(alpha.get(NAME)["Status"]["behind"].get("beta", ""))

    wait_until(
        lambda: "no-space: node 'beta': " in why(),
        f"alpha says whose disk is full: {why()}",
        timeout_s=WAIT_S,
    )
    # It was asked before anything was sent.
    assert "free; 100 MiB and 2 MiB of reserve are needed" in why()
    assert int(beta.run("du", "-sm", str(beta.pool)).split()[0]) < 10
    big.write_bytes(os.urandom(MIB))
    wait_until(
        lambda: len(records.head(volume_id).holders) == 2,
        "it is in step",
        timeout_s=WAIT_S,
    )
    wait_until(lambda: not why(), "nothing is wrong any more", timeout_s=WAIT_S)
    # With less than the reserve left it can still be relieved.
    free = int(beta.run("df", "--output=avail", "-B1", str(beta.pool)).split()[-1])
    filler = beta.pool / "filler"
    beta.run("fallocate", "-l", str(free - 2 * MIB), str(filler))
    big.unlink()
    copied = live(beta, volume_id)
    wait_until(
        lambda: not beta.run("ls", str(copied)).split(),
        "what was deleted goes",
        timeout_s=WAIT_S,
    )


def test_of_the_senders_own_disk_the_node_is_named_too() -> None:
    with (
        pytest.raises(NoSpaceError, match="no-space: node 'gamma': /x has 0 MiB"),
        on_disk_of("gamma"),
    ):
        raise CopyError("/x has 0 MiB free", no_space=True)
