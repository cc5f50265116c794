"""What a mirror does with keys that it cannot take, and after a fault of its watch."""

from __future__ import annotations

import base64

import pytest
import urllib3

from plugin.store.base import Delete
from plugin.store.etcd.codec import Namespace
from tests.support import etcd
from tests.support.etcd import wait_until
from tests.support.mirrors import WITHIN_S, MirrorBench, keys, put

pytestmark = pytest.mark.xdist_group("etcd")


def test_a_key_that_is_no_text_is_passed_over(mirrors: MirrorBench) -> None:
    """Before any is read, by the watch, and while the mirror is refreshed."""
    client, etcd_store = mirrors.cluster, mirrors.etcd()
    put_odd(client, mirrors.prefix, b"records/volumes/one\xe9")
    put(etcd_store, "a")
    mirror = mirrors.ready()
    put_odd(client, mirrors.prefix, b"records/volumes/two\xe9")
    put(etcd_store, "b")
    wait_until(lambda: keys(mirror) == ["a", "b"], "what came after it")
    etcd_store.transact([], [Delete("a")])
    mirror.refresh(WITHIN_S)
    assert keys(mirror) == keys(etcd_store) == ["b"]
    assert mirror.fault() is None


def test_a_watch_that_fails_has_all_read_anew(
    mirrors: MirrorBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, writer = mirrors.ready(), mirrors.etcd()
    with monkeypatch.context() as broken:
        broken.setattr(Namespace, "events", lambda *_: int("no number"))
        put(writer, "a")
        wait_until(lambda: keys(mirror) == ["a"], "it was read anew")
    put(writer, "b")
    wait_until(lambda: keys(mirror) == ["a", "b"], "it is followed again")


def put_odd(cluster: etcd.Cluster, prefix: str, name: bytes) -> None:
    """Write a key that no text is, as etcd takes it from anybody."""
    key = base64.b64encode(prefix.encode() + name).decode()
    url = f"{cluster.endpoints[0]}/v3/kv/put"
    assert urllib3.request("POST", url, json={"key": key}, timeout=10).status == 200
