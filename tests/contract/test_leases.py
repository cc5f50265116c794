"""What a cluster's store has besides: leases; and etcd, whose changes are watched."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plugin.errors import StoreError
from plugin.store.base import Delete, Event, Put
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from plugin.store.etcd.watch import EtcdWatch
from plugin.store.mirror import MirrorStore
from tests.support import etcd
from tests.support.memory_store import Memory, MemoryStore

from .conftest import ON_ETCD, ON_THREE

Leased = EtcdStore | MemoryStore | MirrorStore
ON_EACH_ETCD = (
    pytest.param("etcd_single", marks=ON_ETCD),
    pytest.param("etcd_three", marks=ON_THREE),
)


def on_etcd(request: pytest.FixtureRequest, kind: str) -> EtcdSettings:
    """Return how to reach an etcd of *kind*, with keys of the test's own."""
    cluster: etcd.Cluster = request.getfixturevalue(kind)
    cluster.heal()
    return EtcdSettings(cluster.endpoints, prefix=f"/{uuid.uuid4()}/")


@pytest.fixture(
    params=[
        "memory",
        *ON_EACH_ETCD,
        pytest.param("mirror etcd_single", marks=ON_ETCD),
        pytest.param("mirror etcd_three", marks=ON_THREE),
    ]
)
def leased(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Leased]:
    """Yield each store that has leases."""
    mirrored, _, kind = str(request.param).rpartition(" ")
    store: Leased
    if kind == "memory":
        store = MemoryStore(Memory())
    else:
        store = EtcdStore(on_etcd(request, kind))
        if mirrored:
            store = MirrorStore(store, path=tmp_path / "mirror.db")
            store.refresh(30)
    yield store
    store.close()


@pytest.fixture(params=ON_EACH_ETCD)
def watched(request: pytest.FixtureRequest) -> Iterator[Callable[[], EtcdStore]]:
    """Yield a function that opens the same store, whose changes can be watched."""
    opened: list[EtcdStore] = []
    settings = on_etcd(request, request.param)

    def open_again() -> EtcdStore:
        opened.append(EtcdStore(settings))
        return opened[-1]

    yield open_again
    for store in opened:
        store.close()


@pytest.fixture
def ttl_s(leased: Leased) -> float:
    """Return a short time to live; etcd's shortest is two seconds."""
    return 0.6 if isinstance(leased, MemoryStore) else 3.0


def put(store: Leased, key: str, value: bytes = b"", *, lease: int = 0) -> int:
    outcome = store.transact([], [Put(key, value, lease)])
    assert outcome.succeeded
    return outcome.revision


def revoke(store: Leased, lease: int) -> None:
    """End a lease, as somebody with etcdctl does."""
    if isinstance(store, MemoryStore):
        store.revoke_lease(lease)
        return
    etcd_store = store._etcd if isinstance(store, MirrorStore) else store
    client = etcd_store._client
    client.call("/v3/lease/revoke", {"ID": str(lease)}, deadline=client.deadline())
    store.refresh(30)


def changes(watch: EtcdWatch, count: int) -> list[Event]:
    """Return the next *count* changes; they may come one by one."""
    events: list[Event] = []
    deadline = time.monotonic() + 30
    while len(events) < count and time.monotonic() < deadline:
        events += watch.next(5)
    return events


def test_a_lease_takes_its_keys_with_it(leased: Leased, ttl_s: float) -> None:
    lease = leased.grant_lease(ttl_s)
    put(leased, "mine", lease=lease)
    put(leased, "other")
    etcd.wait_until(lambda: leased.get("mine") is None, "the lease's end")
    assert leased.get("other") is not None
    assert not leased.keep_alive(lease)
    with pytest.raises(StoreError, match="lease"):
        put(leased, "mine", lease=lease)


def test_a_lease_kept_alive_lives(leased: Leased, ttl_s: float) -> None:
    lease = leased.grant_lease(ttl_s)
    put(leased, "mine", lease=lease)
    for _ in range(4):
        time.sleep(ttl_s / 3)
        assert leased.keep_alive(lease)
    assert leased.get("mine") is not None


def test_a_revoked_lease_ends_now(leased: Leased) -> None:
    lease = leased.grant_lease(60)
    put(leased, "mine", lease=lease)
    revoke(leased, lease)
    assert leased.get("mine") is None


def test_a_key_put_again_without_the_lease_outlives_it(leased: Leased) -> None:
    lease = leased.grant_lease(60)
    put(leased, "a", lease=lease)
    put(leased, "a")
    revoke(leased, lease)
    assert leased.get("a") is not None


def test_a_lease_is_there_after_reopening(
    watched: Callable[[], EtcdStore],
) -> None:
    first = watched()
    lease = first.grant_lease(60)
    put(first, "mine", lease=lease)
    first.close()
    assert watched().keep_alive(lease)


def test_a_watch_tells_every_change_once_in_order(
    watched: Callable[[], EtcdStore],
) -> None:
    store = watched()
    watch = store.watch("w/", after_revision=put(store, "w/a", b"old"))
    put(store, "w/a", b"1")
    put(store, "x", b"elsewhere")
    put(store, "w/b", b"2")
    store.transact([], [Delete("w/a")])
    events = changes(watch, 3)
    seen = [(each.key, each.record.value if each.record else None) for each in events]
    assert seen == [("w/a", b"1"), ("w/b", b"2"), ("w/a", None)]
    assert watch.next(0) == []


def test_a_watch_tells_that_a_lease_has_ended(
    watched: Callable[[], EtcdStore],
) -> None:
    store = watched()
    revision = put(store, "mine", lease=store.grant_lease(3))
    [event] = changes(store.watch("", after_revision=revision), 1)
    assert (event.key, event.record) == ("mine", None)


def test_a_waiting_watch_wakes_at_a_change(watched: Callable[[], EtcdStore]) -> None:
    store = watched()
    watch = store.watch("", after_revision=store.prefix("")[1])
    timer = threading.Timer(0.2, lambda: put(store, "a"))
    timer.start()
    began = time.monotonic()
    assert [each.key for each in watch.next(30)] == ["a"]
    assert time.monotonic() - began < 20
    timer.join()


def test_a_watch_resumes_after_reopening(watched: Callable[[], EtcdStore]) -> None:
    first = watched()
    revision = put(first, "a")
    put(first, "b")
    first.close()
    watch = watched().watch("", after_revision=revision)
    assert [each.key for each in changes(watch, 1)] == ["b"]
