"""A removal that does not know of a volume's use destroys no bytes of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from plugin.ownership.heads import drop_head, drop_lock, put_tomb
from plugin.ownership.state import Tomb
from plugin.store.base import Delete
from tests.cluster.test_ownership_leases import wait_lock_gone
from tests.cluster.test_replication_scenarios import apart, live, wait_holders
from tests.protocol.node import wait_until
from tests.support.link import Link
from tests.support.owners import WAIT_S, Owner, Records, Writer

Make = Callable[..., Owner]


def test_a_volume_whose_owner_goes_on_without_etcd_is_not_removed(
    make_owner: Make, records: Records, link: Link
) -> None:
    """Nor does asking for its removal keep the members from agreeing any longer."""
    alpha = make_owner("alpha")
    beta = make_owner("beta", link=link, freeze_max_s=300)
    gamma = make_owner("gamma")
    volume_id = beta.create("db", members="alpha,beta")
    writer = Writer(beta, beta.mount("db"))
    wait_until(
        lambda: len(records.head(volume_id).holders) == 2, "a copy", timeout_s=WAIT_S
    )
    link.cut()
    wait_lock_gone(records, volume_id)
    assert "may still be written to" in alpha.refused("Remove", Name="db")
    # Nor by a node that only others can tell.
    gamma.wait_known("db")
    assert "may still be written to" in gamma.refused("Remove", Name="db")
    # Members agree for four seconds.
    time.sleep(5)
    writer.wait_writing()
    assert "may still be written to" in alpha.refused("Remove", Name="db")


def test_a_tomb_takes_no_copy_that_is_mounted_and_no_bytes_that_are_of_no_commit(
    make_owner: Make, records: Records
) -> None:
    alpha = make_owner("alpha")
    crashed, mounted = (alpha.create(name) for name in ("crashed", "mounted"))
    target = alpha.mount("crashed")
    (alpha.path(target) / "file").write_text("bytes")
    alpha.unmount("crashed")
    # As after a power failure.
    copy = alpha.replica(crashed)
    live = msgspec.structs.replace(copy, live_epoch=copy.commit.epoch)
    (alpha.copy(crashed) / "replica.json").write_bytes(msgspec.json.encode(live))
    writer = Writer(alpha, alpha.mount("mounted"))
    pending = (alpha.id,)
    for name, volume_id in (("crashed", crashed), ("mounted", mounted)):
        tomb = Tomb(name=name, backend="rsync", removed_at="", pending=pending)
        gone = [Delete(f"volumes/{name}"), drop_head(volume_id), drop_lock(volume_id)]
        records.store.transact([], [*gone, put_tomb(volume_id, tomb)])
    wait_until(
        lambda: [*alpha.copy(crashed).glob("quarantine/*/**/file")],
        "its bytes are set apart",
        timeout_s=WAIT_S,
    )
    wait_until(
        lambda: alpha.logged("the writers of 'mounted' are being ended"),
        "its copy stays",
        timeout_s=WAIT_S,
    )
    writer.process.wait(WAIT_S)
    assert (alpha.copy(mounted) / "live/stamps").exists()


def test_a_tomb_takes_nothing_that_was_written_while_cut_off(
    make_owner: Make, records: Records, link: Link
) -> None:
    """The container has ended by itself: what it wrote is a commit that nobody knew."""
    alpha = make_owner("alpha")
    beta = make_owner("beta", link=link)
    volume_id = beta.create("db", members="alpha,beta", interval="1s")
    alpha.wait_known("db")
    beta.mount("db")
    (live(beta, volume_id) / "first").write_text("first")
    wait_holders(records, volume_id, alpha, beta)
    link.cut()
    wait_lock_gone(records, volume_id)
    (live(beta, volume_id) / "second").write_text("second")
    beta.unmount("db")
    wait_until(
        lambda: not alpha.call("Remove", {"Name": "db"}).error,
        "alpha has removed it",
        timeout_s=WAIT_S,
    )
    link.mend()
    wait_until(
        lambda: [*apart(beta, volume_id).values()] == [["first", "second"]],
        "what beta has is set apart",
        timeout_s=WAIT_S,
    )
