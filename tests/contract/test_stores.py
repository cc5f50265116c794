"""What every store must do; a new implementation adds one fixture parameter."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from plugin.errors import StoreError
from plugin.limits import WATCH_HISTORY_MAX
from plugin.store.base import (
    CompactedError,
    Compare,
    Delete,
    Event,
    Put,
    Store,
    Watch,
)
from plugin.store.sqlite import SqliteStore
from tests.support.etcd import wait_until

Open = Callable[[], Store]


def put(store: Store, key: str, value: bytes, *, lease: int = 0) -> int:
    outcome = store.transact([], [Put(key, value, lease)])
    assert outcome.succeeded
    return outcome.revision


def changes(watch: Watch, count: int) -> list[Event]:
    """Return the next *count* changes; they may come one by one."""
    events: list[Event] = []
    deadline = time.monotonic() + 30
    while len(events) < count and time.monotonic() < deadline:
        events += watch.next(5)
    return events


def test_an_absent_key_has_no_record(store: Store) -> None:
    assert store.get("a") is None
    assert store.prefix("")[0] == []


def test_a_put_is_read_back_with_its_revisions(store: Store) -> None:
    first = put(store, "a", b"1")
    second = put(store, "a", b"\x00\xff")
    record = store.get("a")
    assert record is not None
    assert second > first
    assert (record.value, record.create_revision, record.mod_revision) == (
        b"\x00\xff",
        first,
        second,
    )


def test_a_prefix_holds_only_what_starts_so_and_is_sorted(store: Store) -> None:
    for key in ("b/2", "b/1", "b", "b0", "a/1", "c/1", "b/1/x"):
        last = put(store, key, b"")
    records, revision = store.prefix("b/")
    assert [each.key for each in records] == ["b/1", "b/1/x", "b/2"]
    # A mirror shows our own writes before its watch has come as far.
    assert revision <= last
    wait_until(lambda: store.prefix("b/")[1] >= last, "the revision")


@pytest.mark.parametrize("present", [True, False])
def test_create_if_absent_has_one_winner(store: Store, present: bool) -> None:
    if present:
        put(store, "a", b"first")
    outcome = store.transact([Compare("a", 0)], [Put("a", b"second")])
    assert outcome.succeeded is not present
    record = store.get("a")
    assert record is not None
    assert record.value == (b"first" if present else b"second")


def test_a_stale_compare_changes_nothing_at_all(store: Store) -> None:
    old = put(store, "a", b"1")
    new = put(store, "a", b"2")
    outcome = store.transact(
        [Compare("a", old)], [Put("a", b"3"), Put("b", b"3"), Delete("a")]
    )
    assert not outcome.succeeded
    assert outcome.revision == new
    assert store.get("b") is None
    assert store.get("a").value == b"2"  # type: ignore[union-attr]


def test_operations_of_one_transaction_share_a_revision(store: Store) -> None:
    outcome = store.transact([], [Put("a", b""), Put("b", b"")])
    revisions = {each.mod_revision for each in store.prefix("")[0]}
    assert revisions == {outcome.revision}


def test_deleting_an_absent_key_is_no_change(store: Store) -> None:
    before = put(store, "a", b"")
    assert store.transact([], [Delete("b")]).revision >= before
    assert store.watch("", after_revision=before).next(0.2) == []


def test_threads_that_compare_and_set_lose_no_increment(store: Store) -> None:
    put(store, "n", b"0")

    def increment() -> None:
        for _ in range(25):
            while True:
                record = store.get("n")
                assert record is not None
                value = str(int(record.value) + 1).encode()
                if store.transact(
                    [Compare("n", record.mod_revision)], [Put("n", value)]
                ).succeeded:
                    break

    threads = [threading.Thread(target=increment) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get("n").value == b"100"  # type: ignore[union-attr]


def test_what_was_committed_is_there_after_reopening(open_store: Open) -> None:
    first = open_store()
    put(first, "a", b"1")
    lease = first.grant_lease(60)
    last = put(first, "b", b"2", lease=lease)
    first.close()
    second = open_store()
    assert [each.key for each in second.prefix("")[0]] == ["a", "b"]
    assert second.keep_alive(lease)
    assert put(second, "c", b"3") > last


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.get("a")
    with pytest.raises(StoreError, match="closed"):
        store.transact([], [Put("a", b"")])


def test_a_lease_takes_its_keys_with_it(store: Store, lease_ttl_s: float) -> None:
    lease = store.grant_lease(lease_ttl_s)
    put(store, "mine", b"", lease=lease)
    last = put(store, "other", b"")
    watch = store.watch("", after_revision=last)
    events = changes(watch, 1)
    assert [(each.key, each.record) for each in events] == [("mine", None)]
    assert store.get("mine") is None
    assert store.get("other") is not None
    assert not store.keep_alive(lease)
    with pytest.raises(StoreError, match="lease"):
        put(store, "mine", b"", lease=lease)


def test_a_lease_kept_alive_lives(store: Store, lease_ttl_s: float) -> None:
    lease = store.grant_lease(lease_ttl_s)
    put(store, "mine", b"", lease=lease)
    for _ in range(4):
        time.sleep(lease_ttl_s / 3)
        assert store.keep_alive(lease)
    assert store.get("mine") is not None


def test_a_revoked_lease_ends_now(store: Store) -> None:
    lease = store.grant_lease(60)
    put(store, "mine", b"", lease=lease)
    store.revoke_lease(lease)
    assert store.get("mine") is None
    store.revoke_lease(lease)


def test_a_key_put_again_without_the_lease_outlives_it(store: Store) -> None:
    lease = store.grant_lease(60)
    put(store, "a", b"", lease=lease)
    put(store, "a", b"")
    store.revoke_lease(lease)
    assert store.get("a") is not None


def test_a_watch_tells_every_change_once_in_order(store: Store) -> None:
    watch = store.watch("w/", after_revision=put(store, "w/a", b"old"))
    put(store, "w/a", b"1")
    put(store, "x", b"elsewhere")
    put(store, "w/b", b"2")
    store.transact([], [Delete("w/a")])
    events = changes(watch, 3)
    seen = [(each.key, each.record.value if each.record else None) for each in events]
    assert seen == [("w/a", b"1"), ("w/b", b"2"), ("w/a", None)]
    assert watch.next(0) == []


def test_a_waiting_watch_wakes_at_a_change(store: Store) -> None:
    watch = store.watch("", after_revision=0)
    timer = threading.Timer(0.2, lambda: put(store, "a", b""))
    timer.start()
    began = time.monotonic()
    assert [each.key for each in watch.next(30)] == ["a"]
    assert time.monotonic() - began < 20
    timer.join()


def test_a_watch_resumes_after_reopening(open_store: Open) -> None:
    first = open_store()
    revision = put(first, "a", b"")
    put(first, "b", b"")
    first.close()
    watch = open_store().watch("", after_revision=revision)
    assert [each.key for each in changes(watch, 1)] == ["b"]


def test_a_watch_behind_the_kept_history_is_told(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    SqliteStore(path).close()
    with sqlite3.connect(path) as connection:
        # As many revisions as it takes, written as the store writes them.
        connection.execute(f"UPDATE revision SET current = {WATCH_HISTORY_MAX + 2000}")
    connection.close()
    store = SqliteStore(path)
    put(store, "a", b"")
    with pytest.raises(CompactedError):
        store.watch("", after_revision=1).next(0)
    records, revision = store.prefix("")
    assert len(records) == 1
    assert store.watch("", after_revision=revision).next(0) == []
    store.close()
