"""What every store must do; a new implementation adds one fixture parameter."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from plugin.errors import StoreError
from plugin.store.base import Compare, Delete, Put, Store
from tests.support.etcd import wait_until

Open = Callable[[], Store]


def put(store: Store, key: str, value: bytes) -> int:
    outcome = store.transact([], [Put(key, value)])
    assert outcome.succeeded
    return outcome.revision


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
    assert [each.mod_revision for each in store.prefix("")[0]] == [before]


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
    last = put(first, "b", b"2")
    first.close()
    second = open_store()
    assert [each.key for each in second.prefix("")[0]] == ["a", "b"]
    assert put(second, "c", b"3") > last


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.get("a")
    with pytest.raises(StoreError, match="closed"):
        store.transact([], [Put("a", b"")])
