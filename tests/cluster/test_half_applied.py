"""What a Mount fetches: no container begins on a part of it, and no part is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from tests.cluster.test_replication_scenarios import NAME, wait_holders
from tests.protocol.command import caller
from tests.protocol.node import wait_until
from tests.support.copies import live
from tests.support.owners import WAIT_S, Owner, Records
from tests.support.tuning import SHORT, tuned

Make = Callable[..., Owner]
# What a member lacks comes with its Mount alone.
BY_MOUNT = tuned(reconcile_interval_s=60.0, follow_interval_s=60.0, hold_s=4.0)


def left_behind(alpha: Owner, gamma: Owner, records: Records) -> str:
    """Return the id of a volume that *alpha* has mounted; gamma has it, and is down."""
    volume_id = alpha.create(NAME, interval="1s", members="alpha,gamma")
    gamma.wait_known(NAME)
    alpha.mount(NAME)
    (live(alpha, volume_id) / "first").write_text("old")
    wait_holders(records, volume_id, alpha, gamma)
    gamma.stop()
    alpha.wait_down("gamma")
    return volume_id


def test_a_mount_waits_until_what_it_pulled_is_in_place(
    make_owner: Make, records: Records
) -> None:
    """A file of the pool cannot be replaced, as on a full disk: it is a mount point."""
    alpha = make_owner("alpha", tuning=BY_MOUNT)
    gamma = make_owner("gamma", tuning=BY_MOUNT, daemon={"disk": True})
    volume_id = left_behind(alpha, gamma, records)
    for name in ("first", "second"):
        (live(alpha, volume_id) / name).write_text("new")
    alpha.unmount(NAME)
    first = live(gamma, volume_id) / "first"
    gamma.run("mount", "--bind", str(first), str(first))
    try:
        gamma.start()
        gamma.wait_member()
        for _ in range(2):
            wait_until(
                lambda: "cannot apply" in gamma.refused("Mount", Name=NAME, ID="one"),
                "it is refused for that",
                timeout_s=WAIT_S,
            )
    finally:
        gamma.run("umount", str(first))
    gamma.mount_at_last(NAME)
    for name in ("first", "second"):
        assert gamma.path(live(gamma, volume_id) / name).read_text() == "new"


def test_a_copy_that_is_not_in_place_is_told_and_no_other_goes_for_it(
    make_owner: Make,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A commit is the member's from its marker on, and that may be all it ever is."""
    alpha = make_owner("alpha", tuning=SHORT)
    gamma = make_owner("gamma", tuning=SHORT, daemon={"disk": True})
    volume_id = left_behind(alpha, gamma, records)
    (live(alpha, volume_id) / "first").write_text("new")
    alpha.unmount(NAME)
    first = live(gamma, volume_id) / "first"
    gamma.run("mount", "--bind", str(first), str(first))
    try:
        gamma.start()
        gamma.wait_member()
        wait_holders(records, volume_id, alpha, gamma)
        found = alpha.control_ok("GET", f"/v1/volumes/{NAME}/replicas")
        lacks = {each["node"]: each["lacks"] for each in found}
        assert "cannot apply" in lacks["gamma"]
        cli = caller(gamma, monkeypatch, capsys)
        refused = cli("replica", "rm", NAME, "alpha")
        assert refused.code == 14
        assert "wait until another node has it" in refused.error
    finally:
        gamma.run("umount", str(first))
    gamma.mount_at_last(NAME)
    assert gamma.path(first).read_text() == "new"


def test_what_a_mount_has_fetched_is_there_for_the_next(make_owner: Make) -> None:
    """No single one of them has the time for all of it."""
    alpha = make_owner(
        "alpha", profiles='[replication]\nbandwidth_limit = "1MiB"', tuning=BY_MOUNT
    )
    gamma = make_owner("gamma", daemon={"mount_deadline_s": 6})
    volume_id = alpha.create(NAME, replicas="1")
    gamma.wait_known(NAME)
    alpha.mount(NAME)
    (live(alpha, volume_id) / "large").write_bytes(os.urandom(14 << 20))
    alpha.unmount(NAME)
    gamma.wait_known(NAME, ownership="idle")
    end_s = time.monotonic() + WAIT_S
    while error := gamma.call("Mount", {"Name": NAME, "ID": "one"}).error:
        assert "is catching up" in error
        assert time.monotonic() < end_s
        time.sleep(3)  # as an engine waits; the background repair takes its turn
