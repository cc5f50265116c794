"""A volume of which no commit can be made harms no other, and everybody is told."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from tests.protocol.node import wait_until
from tests.support.copies import live
from tests.support.owners import WAIT_S, Owner, Records

MOST = 20


def failed(owner: Owner) -> set[str]:
    """Return the volumes of which metrics say that no commit is made."""
    text = owner.control("GET", "/metrics").body.decode()
    return {
        sample.labels["volume"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "remora_sync_failed"
    }


def test_a_volume_of_too_many_names(
    make_owner: Callable[..., Owner], records: Records
) -> None:
    alpha, beta = make_owner("alpha"), make_owner("beta")
    ids = {
        name: alpha.create(name, interval="1s", members="alpha,beta", **options)
        for name, options in (("many", {"max_names": str(MOST)}), ("few", {}))
    }
    beta.wait_known("many")
    for name in ids:
        alpha.mount_at_last(name)

    def why() -> str:
        return str(alpha.get("many")["Status"]["behind"].get("beta", ""))

    def held(name: str) -> bool:
        return len(records.head(ids[name]).holders) == 2

    wait_until(lambda: held("many") and held("few"), "in step", timeout_s=WAIT_S)
    more = live(alpha, ids["many"])
    for number in range(MOST + 1):
        (more / f"{number}").touch()
    wait_until(lambda: bool(why()), "the reason is told", timeout_s=WAIT_S)
    assert f"more than {MOST} names (hint: remove some" in why()
    assert failed(alpha) == {"many"}
    events = alpha.control_ok("GET", "/v1/volumes/many/events?limit=100")["events"]
    assert [each["kind"] for each in events].count("not-synced") == 1
    # The other one goes on.
    before = records.head(ids["few"]).committed
    (live(alpha, ids["few"]) / "file").write_text("x")
    wait_until(
        lambda: records.head(ids["few"]).committed > before and held("few"),
        "the other one is in step",
        timeout_s=WAIT_S,
    )
    for each in more.iterdir():
        each.unlink()
    wait_until(lambda: not why() and held("many"), "it goes on", timeout_s=WAIT_S)
    assert failed(alpha) == set()
