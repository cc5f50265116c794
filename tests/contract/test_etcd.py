"""What only a cluster of etcd members can suffer."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from backends.system import clock
from plugin.errors import StoreError
from plugin.store.base import CompactedError, Compare, Put
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from plugin.store.etcd.watch import EtcdWatch
from tests.support import etcd

pytestmark = [pytest.mark.xdist_group("etcd"), pytest.mark.long]

Open = Callable[..., EtcdStore]
WITHIN_S = 60.0


@pytest.fixture
def opened(etcd_three: etcd.Cluster) -> Iterator[Open]:
    """Yield a function that opens stores in a healthy cluster, for one test's keys."""
    etcd_three.heal()
    prefix = f"/{uuid.uuid4()}/"
    stores: list[EtcdStore] = []

    def open_one(*members: etcd.Member, **options: float) -> EtcdStore:
        endpoints = tuple(each.endpoint for each in members) or etcd_three.endpoints
        store = EtcdStore(EtcdSettings(endpoints, prefix=prefix, **options))  # type: ignore[arg-type]
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        store.close()
    etcd_three.heal()


def increment(store: EtcdStore, key: str) -> None:
    """Add one to *key*, once; errors of the store are not expected for long."""
    deadline = clock.Deadline(WITHIN_S)
    while not deadline.passed():
        with suppress(StoreError):
            record = store.get(key)
            before = record.mod_revision if record else 0
            value = str(int(record.value) + 1 if record else 1).encode()
            if store.transact([Compare(key, before)], [Put(key, value)]).succeeded:
                return
    pytest.fail("no transaction came through")


def seen(watch: EtcdWatch, count: int) -> list[bytes]:
    """Return the values of the next *count* changes."""
    values: list[bytes] = []
    deadline = clock.Deadline(WITHIN_S)
    while len(values) < count and not deadline.passed():
        with suppress(StoreError):
            events = watch.next(1)
            values += [each.record.value for each in events if each.record]
    return values


def test_members_that_die_are_not_missed(
    opened: Open, etcd_three: etcd.Cluster
) -> None:
    store = opened(call_deadline_s=20.0)
    increment(store, "n")
    watch = store.watch("", after_revision=store.prefix("")[1])
    for member in etcd_three.members:
        member.kill()
        increment(store, "n")
        etcd_three.heal()
        increment(store, "n")
    assert seen(watch, 6) == [str(number).encode() for number in range(2, 8)]
    assert store.get("n").value == b"7"  # type: ignore[union-attr]


def test_a_frozen_leader_loses_and_doubles_nothing(
    opened: Open, etcd_three: etcd.Cluster
) -> None:
    increments, threads_count = 15, 3
    leader = etcd_three.leader()
    others = [each for each in etcd_three.members if each is not leader]
    # Time for any election, so that no outcome stays unknown.
    counter = opened(leader, *others, call_deadline_s=20.0)
    watch = counter.watch("n", after_revision=counter.prefix("")[1])

    def count() -> None:
        for _ in range(increments):
            increment(counter, "n")

    threads = [threading.Thread(target=count) for _ in range(threads_count)]
    for thread in threads:
        thread.start()
    clock.pause(0.05)
    leader.freeze()
    for thread in threads:
        thread.join(WITHIN_S)
    leader.thaw()
    etcd_three.heal()
    # Every success was one increment; what was thought failed was not done later.
    total = increments * threads_count
    assert counter.get("n").value == str(total).encode()  # type: ignore[union-attr]
    assert seen(watch, total) == [str(n + 1).encode() for n in range(total)]


def test_a_watch_leaves_a_silent_member(opened: Open, etcd_three: etcd.Cluster) -> None:
    silent, *others = etcd_three.members
    watch = opened(silent, *others, watch_idle_s=1.0).watch("", after_revision=0)
    writer = opened(*others)
    increment(writer, "n")
    assert seen(watch, 1) == [b"1"]
    silent.freeze()
    increment(writer, "n")
    assert seen(watch, 1) == [b"2"]


def test_without_a_majority_every_call_ends_in_time_with_an_error(
    opened: Open, etcd_three: etcd.Cluster
) -> None:
    default, store = opened(), opened(call_deadline_s=1.0, attempt_s=0.5)
    increment(store, "n")
    lease = store.grant_lease(60)
    revision = store.prefix("")[1]
    watch = store.watch("", after_revision=revision)
    for member in etcd_three.members[1:]:
        member.kill()
    calls: list[Callable[[], object]] = [
        lambda: store.get("n"),
        lambda: store.prefix(""),
        lambda: store.refresh(1.0),
        lambda: default.transact([], [Put("n", b"x")]),
        lambda: store.transact([], [Put("n", b"x")]),
        lambda: store.grant_lease(5),
        lambda: store.keep_alive(lease),
    ]
    for call in calls:
        began_s = clock.monotonic_s()
        with pytest.raises(StoreError, match="etcd"):
            call()
        assert clock.monotonic_s() - began_s < 15
    # The member that is left has no leader, and the watch says so.
    fault_s = clock.Deadline(WITHIN_S)
    with pytest.raises(StoreError, match="cannot watch"):
        while not fault_s.passed():
            watch.next(0.2)
    etcd_three.heal()
    record = store.get("n")
    assert record is not None
    outcome = store.transact([], [Put("after", b"again")])
    assert outcome.succeeded
    assert b"again" in seen(watch, 1 if record.mod_revision <= revision else 2)
    assert store.keep_alive(lease)


def test_a_member_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    address = etcd.new_address()
    store = EtcdStore(EtcdSettings((f"http://{address}:1",), call_deadline_s=0.5))
    with pytest.raises(StoreError, match=f"cannot connect to http://{address}") as why:
        store.get("a")
    assert "majority" in why.value.hint
    store.close()


def test_a_watch_behind_a_compaction_is_told(tmp_path: Path) -> None:
    # A server of its own: other tests watch from the first revision.
    with etcd.single(etcd.memory_directory(tmp_path)) as cluster:
        watch_behind_a_compaction(cluster)


def watch_behind_a_compaction(cluster: etcd.Cluster) -> None:
    store = EtcdStore(EtcdSettings(cluster.endpoints))
    old = store.transact([], [Put("a", b"1")]).revision
    for number in range(3):
        last = store.transact([], [Put("a", str(number).encode())]).revision
    cluster.ctl("compact", str(last))
    behind = store.watch("", after_revision=old)
    for _ in range(2):
        with pytest.raises(CompactedError, match="no longer kept"):
            behind.next(30)
    records, revision = store.prefix("")
    assert [each.value for each in records] == [b"2"]
    watch = store.watch("", after_revision=revision)
    store.transact([], [Put("a", b"new")])
    assert seen(watch, 1) == [b"new"]
    store.close()


def test_a_watch_ahead_of_a_cluster_is_told(etcd_single: etcd.Cluster) -> None:
    """As after the cluster's data was replaced by an old copy."""
    etcd_single.heal()
    store = EtcdStore(EtcdSettings(etcd_single.endpoints))
    ahead = store.watch("", after_revision=store.prefix("")[1] + 1000)
    with pytest.raises(CompactedError, match="etcd is at revision"):
        ahead.next(30)
    store.close()


def test_a_quiet_watch_goes_on_after_the_member_restarts(
    etcd_single: etcd.Cluster,
) -> None:
    etcd_single.heal()
    settings = EtcdSettings(etcd_single.endpoints, prefix=f"/{uuid.uuid4()}/")
    store = EtcdStore(settings)
    revision = store.transact([], [Put("a", b"1")]).revision
    watch = store.watch("", after_revision=revision)
    etcd_single.members[0].kill()
    etcd_single.heal()
    store.transact([], [Put("a", b"2")])
    assert seen(watch, 1) == [b"2"]
    store.close()
    with pytest.raises(StoreError, match="closed"):
        watch.next(5)


def test_a_watch_that_nobody_holds_ends_its_thread(
    etcd_single: etcd.Cluster,
) -> None:
    etcd_single.heal()
    store = EtcdStore(EtcdSettings(etcd_single.endpoints, prefix=f"/{uuid.uuid4()}/"))
    revision = store.prefix("")[1]
    before = set(threading.enumerate())
    watch = store.watch("", after_revision=revision)
    (reader,) = set(threading.enumerate()) - before
    assert watch.next(0.5) == []
    assert reader.is_alive()
    del watch
    reader.join(WITHIN_S)
    assert not reader.is_alive()
    store.close()
