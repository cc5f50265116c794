"""Records of a mounted volume become older ones: etcd was restored from a backup."""

from __future__ import annotations

from collections.abc import Callable

from plugin.store.base import Delete, Put
from tests.support.owners import Owner, Records, Writer


def test_writers_of_a_later_epoch_wait_for_the_right_records(
    make_owner: Callable[..., Owner], records: Records
) -> None:
    """Nobody else owns the volume: its writers stand still, and are not killed."""
    alpha = make_owner("alpha")
    volume_id = alpha.create("db")
    alpha.mount("db")
    alpha.unmount("db")
    key, lock = f"v/{volume_id}/head", f"v/{volume_id}/lock"
    older = records.store.get(key)
    writer = Writer(alpha, alpha.mount("db"))
    newer = records.store.get(key)
    assert older is not None
    assert newer is not None
    records.store.transact([], [Put(key, older.value), Delete(lock)])
    writer.wait_still()
    assert "killed" not in alpha.guard_log()
    records.store.transact([], [Put(key, newer.value)])
    writer.wait_writing()
    writer.end()
