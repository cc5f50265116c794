"""A pool that cannot be read, or hangs, ends no writer: the store says whose it is."""

from __future__ import annotations

from collections.abc import Callable

from tests.protocol.node import wait_until
from tests.support.hung_disk import hung
from tests.support.owners import (
    FENCED_WITHIN_S,
    MARGIN_S,
    TTL_S,
    WAIT_S,
    Owner,
    Records,
    Writer,
    now_s,
)

Make = Callable[..., Owner]


def wait_past_deadline(*writers: Writer) -> None:
    """Return when all have written for longer than a deadline that is not renewed."""
    end_s = now_s() + TTL_S - MARGIN_S + 2 * FENCED_WITHIN_S
    wait_until(
        lambda: all(max(each.stamps(), default=0.0) > end_s for each in writers),
        "they write on",
        timeout_s=WAIT_S,
    )


def test_what_cannot_be_read_ends_no_writer(make_owner: Make, records: Records) -> None:
    alpha = make_owner("alpha", failsafe=False)
    spoilt = alpha.create("spoilt")
    writers = [Writer(alpha, alpha.mount("spoilt"))]
    alpha.create("well")
    writers.append(Writer(alpha, alpha.mount("well")))
    state = alpha.copy(spoilt) / "replica.json"
    kept = state.read_bytes()
    state.write_bytes(b"{")
    identity = alpha.pool / "pool.json"
    away = identity.rename(identity.with_name("away"))
    wait_past_deadline(*writers)
    assert " stops " not in alpha.guard_log()
    # A daemon that is started meanwhile has nothing but the records.
    away.rename(identity)
    before = records.head(spoilt)
    alpha.kill()
    alpha.start()
    identity.rename(away)
    wait_past_deadline(*writers)
    away.rename(identity)
    state.write_bytes(kept)
    assert records.head(spoilt) == before
    for writer, name in zip(writers, ("spoilt", "well"), strict=True):
        writer.end()
        alpha.unmount(name)
    assert records.head(spoilt).phase == "idle"


def test_a_daemon_starts_beside_a_disk_that_hangs(
    make_owner: Make, records: Records
) -> None:
    alpha = make_owner("alpha", failsafe=False)
    volume_id = alpha.create("db")
    writer = Writer(alpha, alpha.mount("db"))
    before = records.heads.read(volume_id)
    alpha.kill()
    with hung(alpha):
        alpha.start()
        alpha.wait_member()
        wait_past_deadline(writer)
        assert records.heads.read(volume_id).lock == before.lock
    assert records.head(volume_id) == before.head
    writer.end()
