"""More keys than one answer of etcd has: all are read as they were at one moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from plugin.errors import StoreError
from plugin.store.base import Delete, Put
from plugin.store.etcd.client import Client
from plugin.store.etcd.errors import NoAnswerError
from plugin.store.etcd.pages import PAGE_KEYS
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from tests.support.mirrors import WITHIN_S, MirrorBench, keys, put

pytestmark = pytest.mark.xdist_group("etcd")
# So that there are three pages, the last one not full.
KEYS = 2 * PAGE_KEYS + 100
FIRST, LAST = "k/00000", f"k/{KEYS - 1:05}"


@pytest.fixture
def other(mirrors: MirrorBench) -> EtcdStore:
    """Return a store with `KEYS` records in it, that is another node's."""
    store = mirrors.etcd()
    for first in range(0, KEYS, 100):
        store.transact([], [Put(f"k/{first + n:05}", b"old") for n in range(100)])
    return store


def after_pages(
    monkeypatch: pytest.MonkeyPatch, reader: EtcdStore, act: Callable[[int], None]
) -> list[int]:
    """Have *act* done after each page that *reader* reads; return the pages' sizes."""
    sizes: list[int] = []
    call = Client.call

    def acted(client: Client, path: str, body: Any, **options: Any) -> dict[str, Any]:
        answer = call(client, path, body, **options)
        if client is reader._client and len(answer.get("kvs", ())) > 1:
            sizes.append(len(answer["kvs"]))
            act(len(sizes))
        return answer

    monkeypatch.setattr(Client, "call", acted)
    return sizes


def test_writes_between_pages_do_not_show(
    mirrors: MirrorBench, other: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = mirrors.etcd()

    def write(page: int) -> None:
        other.transact([], [Delete(LAST), Put(FIRST, b"new"), Put(f"k/9{page}", b"")])

    sizes = after_pages(monkeypatch, reader, write)
    records, revision = reader.prefix("k/")
    assert len(sizes) >= 3
    assert [each.key for each in records] == [f"k/{n:05}" for n in range(KEYS)]
    assert {each.value for each in records} == {b"old"}
    assert revision == max(each.mod_revision for each in records)


def test_a_member_that_tells_little_in_time_is_asked_for_less(
    mirrors: MirrorBench, other: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a loaded machine nobody could else read a page, and so nothing."""
    can_tell = PAGE_KEYS // 3
    call = Client.call

    def slow(client: Client, path: str, body: Any, **options: Any) -> dict[str, Any]:
        if isinstance(body, dict) and int(body.get("limit", 0)) > can_tell:
            raise NoAnswerError("it is silent", maybe_done=True)
        return call(client, path, body, **options)

    monkeypatch.setattr(Client, "call", slow)
    reader = mirrors.etcd()
    sizes = after_pages(monkeypatch, reader, lambda _: None)
    assert len(reader.prefix("k/")[0]) == KEYS
    assert max(sizes) <= PAGE_KEYS // 4
    assert sum(sizes) == KEYS
    can_tell = 1
    with pytest.raises(NoAnswerError, match="silent"):
        reader.prefix("k/")


def test_history_that_goes_between_pages_is_read_anew(
    mirrors: MirrorBench, other: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = mirrors.etcd()

    def compact(page: int) -> None:
        if page == 1:
            revision = put(other, FIRST, b"new")
            mirrors.cluster.ctl("compact", str(revision))

    after_pages(monkeypatch, reader, compact)
    records, _ = reader.prefix("k/")
    assert len(records) == KEYS
    assert records[0].value == b"new"


def test_history_that_keeps_going_is_an_error(
    mirrors: MirrorBench, other: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = mirrors.etcd()

    def compact(_page: int) -> None:
        mirrors.cluster.ctl("compact", str(put(other, FIRST, b"new")))

    sizes = after_pages(monkeypatch, reader, compact)
    with pytest.raises(StoreError, match="history went"):
        reader.prefix("k/")
    assert len(sizes) < 10


def test_a_mirror_reads_and_refreshes_by_pages(
    mirrors: MirrorBench, other: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its watch, which tells of single changes sooner."""
    mirror = mirrors.mirror()
    sizes = after_pages(monkeypatch, mirror._etcd, lambda _: None)
    mirror.refresh(WITHIN_S)
    assert len(keys(mirror)) == KEYS
    monkeypatch.setattr(mirror._mirrored, "follow", lambda _: None)
    for first in range(0, 400, 100):
        other.transact([], [Put(f"k/{first + n:05}", b"new") for n in range(100)])
    other.transact([], [Delete(LAST)])
    assert max(sizes) == PAGE_KEYS
    sizes.clear()
    mirror.refresh(WITHIN_S)
    assert mirror.prefix("")[0] == other.prefix("")[0]
    # Only where a key has gone are all keys asked for.
    assert sizes == [400, KEYS % (PAGE_KEYS // 2) - 1]
    sizes.clear()
    mirror._etcd.prefix("", parts=mirror._parts())
    assert max(sizes) == PAGE_KEYS // 2
    # It reads all others again, though many have come and gone between two cuts.
    many = range(0, PAGE_KEYS, 100)
    for first in many:
        other.transact([], [Put(f"k/000000{first + n}", b"") for n in range(100)])
    again = other.prefix("")[0]
    assert mirror._etcd.prefix("", parts=mirror._parts())[0] == again
    assert len(again) == KEYS - 1 + PAGE_KEYS


def test_what_was_seen_to_be_complete_is_not_read_again(
    mirrors: MirrorBench, other: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch does not tell of others' keys, so it never reaches their revision."""
    mirror = mirrors.ready()
    elsewhere = EtcdStore(EtcdSettings(mirrors.cluster.endpoints, prefix="/elsewhere/"))
    put(elsewhere, "x")
    elsewhere.close()
    mirror.refresh(WITHIN_S)
    asked: list[int] = []
    monkeypatch.setattr(
        EtcdStore, "changed_since", lambda _, revision, **__: asked.append(revision)
    )
    mirror.refresh(WITHIN_S)
    assert asked == []
    assert len(keys(mirror)) == len(keys(other))
