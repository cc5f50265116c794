"""A member whose disk hangs holds up neither the others nor the last sync."""

from __future__ import annotations

from collections.abc import Callable

from tests.cluster.test_replication_scenarios import live, wait_holders
from tests.protocol.node import wait_until
from tests.support.owners import Owner, Records

NAME = "data"
# Of what hangs, rsync is ended after a minute.
SOON_S = 40.0


def test_a_member_whose_disk_hangs_holds_up_nobody(
    make_owner: Callable[..., Owner], records: Records
) -> None:
    alpha, beta = make_owner("alpha"), make_owner("beta")
    gamma = make_owner("gamma", daemon={"disk": True})
    volume_id = alpha.create(NAME, interval="1s", members="alpha,beta,gamma")
    for each in (beta, gamma):
        each.wait_known(NAME)
    alpha.mount(NAME)
    source, copy = live(alpha, volume_id) / "file", live(beta, volume_id) / "file"
    source.write_text("first")
    wait_holders(records, volume_id, alpha, beta, gamma)
    gamma.freeze()
    try:
        for text in ("second", "third"):
            source.write_text(text)
            wait_until(
                lambda text=text: copy.read_text() == text,  # type: ignore[misc]
                f"beta has the {text}",
                timeout_s=SOON_S,
            )
        wait_holders(records, volume_id, alpha, beta)
        source.write_text("last")
        alpha.unmount(NAME)
        assert copy.read_text() == "last"
        assert beta.id in records.head(volume_id).holders
    finally:
        gamma.thaw()
    wait_holders(records, volume_id, alpha, beta, gamma)
