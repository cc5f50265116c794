"""
What the key of a node opens that has no part in a volume: nothing of that volume.

The node is a real one. The thief has its key, and no more; the node itself can
write to the store as well, so what its people wish of the volume is done.
"""

from __future__ import annotations

import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugin.errors import PeerUnreachableError, RemoteError
from plugin.ownership.wishes import WISHES, Wish
from plugin.peers.channel import Peers
from plugin.peers.keys import ensure_keys
from plugin.peers.sharing import SharedSsh
from plugin.store.base import Delete, Put
from tests.cluster.conftest import owners_of
from tests.cluster.test_ownership_promises import key_of
from tests.cluster.test_replica_members import (
    NAME,
    create,
    wait_members,
    with_copy,
)
from tests.protocol.node import wait_until
from tests.support import etcd
from tests.support.owners import WAIT_S, Owner, Records

Make = Callable[..., Owner]
Ask = Callable[..., Any]
# They say nothing of a volume but of those that the asker has a part in.
OF_NO_VOLUME = {"hello", "transfers"}
# Earlier versions ask them: what changes a volume is a wish in the store by now.
OF_EARLIER_VERSIONS = {"move", "replica"}


class Cluster:
    """Owner `alpha`, a `member` with the copy, and an `other` with no part in it."""

    def __init__(self, make_owner: Make, records: Records) -> None:
        three = (make_owner("alpha"), make_owner("beta"), make_owner("gamma"))
        self.records = records
        self.alpha = three[0]
        self.volume = create(*three, replicas="2")
        self.member, self.other = with_copy(three, records, self.volume)

    def body(self) -> dict[str, Any]:
        """Return what a request needs to be understood, whichever it is."""
        head = self.records.head(self.volume)
        return {
            "volume": self.volume,
            "name": NAME,
            "node": self.other.id,
            "action": "remove",
            "epoch": head.epoch,
            "seq": head.committed.seq,
            "commit": [head.committed.epoch, head.committed.seq],
            "have": [0, 0],
            "limit": 5,
            "size_bytes": 5,
        }

    def wishes(self) -> list[str]:
        return [each.key for each in self.records.store.prefix(WISHES)[0]]


@pytest.fixture(scope="module")
def cluster(server: etcd.Cluster) -> Iterator[Cluster]:
    """Yield a cluster that tests leave as it was."""
    server.heal()
    place = f"/{uuid.uuid4()}/"
    made, found = owners_of(server, place), Records(server, place)
    yield Cluster(next(made), found)
    next(made, None)
    found.close()


@pytest.fixture(scope="module")
def thiefs_key(cluster: Cluster) -> Iterator[Ask]:
    """Yield what asks alpha with the key of the node that has no part in the volume."""
    with key_of(cluster.other, cluster.alpha) as ask:
        yield ask


def refusal(ask: Ask, request: str, **body: object) -> RemoteError:
    """Return why *request* is refused."""
    with pytest.raises(RemoteError) as refused:
        ask(request, **body)
    return refused.value


def all_requests(ask: Ask) -> list[str]:
    """Return what the daemon answers, as it says itself: none can be forgotten here."""
    found = refusal(ask, "none").hint.removeprefix("there are: ").split(", ")
    assert {"promise", "hold", "stand", "send", *OF_NO_VOLUME} <= {*found}
    return found


def test_without_a_part_in_the_volume_nothing_is_answered(cluster: Cluster) -> None:
    alpha, member, thief = cluster.alpha, cluster.member, cluster.other
    before = cluster.records.head(cluster.volume).members
    for victim in (alpha, member):
        with key_of(thief, victim) as ask:
            for request in all_requests(ask):
                if request in OF_NO_VOLUME:
                    assert cluster.volume not in str(ask(request))
                    continue
                error = refusal(ask, request, **cluster.body())
                assert error.code == "peer-refused", (request, error)
                if request not in OF_EARLIER_VERSIONS:
                    assert "has no part in volume" in error.cause, (request, error)
    assert cluster.records.head(cluster.volume).members == before
    assert not thief.copy(cluster.volume).exists()
    # With the same key, a node that has a part in it is answered.
    with key_of(member, alpha) as ask:
        assert ask("events", volume=cluster.volume, limit=5)["events"]
        assert "commit" in ask("stand", volume=cluster.volume)


def test_neither_bytes_nor_copies_come_with_a_key(cluster: Cluster) -> None:
    """A stranger writes to no copy, and a member to none but as its owner says."""
    alpha, member, thief = cluster.alpha, cluster.member, cluster.other
    head = cluster.records.head(cluster.volume)
    source = thief.directory / "source"
    (source / "tree").mkdir(parents=True)
    (source / "tree/file-0").write_text("the thief's")
    names = b"tree/file-0\0"
    for sender, victim in ((thief, member), (thief, alpha), (member, alpha)):
        for commit in ((head.epoch, 10**6), (head.epoch + 1, 1), (0, 1), (10**17, 0)):
            sent = sender.send_files(
                victim, source, volume=cluster.volume, commit=commit, names=names
            )
            assert sent.returncode != 0
            assert re.search(rb"not-a-member|stale-epoch", sent.stderr), sent.stderr
    for each in (alpha, member):
        content = (each.copy(cluster.volume) / "live/file-0").read_text()
        assert content == "0" * 1000
        assert not list((each.copy(cluster.volume)).glob("staging/tree/file-0"))


@pytest.mark.parametrize(
    "volume",
    [
        "../../../../etc",
        "x" * 3000,
        "",
        "a\nb",
        f"{uuid.UUID(int=7)}/..",
        str(uuid.UUID(int=7)).replace("0", "A"),
        7,
        None,
        ["x"],
        {"id": str(uuid.UUID(int=7))},
    ],
)
def test_what_is_no_id_is_none(thiefs_key: Ask, volume: object) -> None:
    for request in all_requests(thiefs_key):
        if request in OF_NO_VOLUME | OF_EARLIER_VERSIONS:
            continue
        error = refusal(
            thiefs_key, request, volume=volume, name="n", epoch=1, seq=1, limit=1
        )
        assert error.code == "invalid-request", (request, error)
        assert "cannot be read" in error.cause


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch", -1),
        ("epoch", 2**63),
        ("epoch", 1.5),
        ("epoch", "1"),
        ("name", "../x"),
        ("name", "x" * 256),
        ("name", "a b"),
        ("commit", [1, -1]),
        ("commit", [1, 2, 3]),
        ("have", [-1, 0]),
    ],
)
def test_what_is_no_number_or_name_is_none(
    thiefs_key: Ask, field: str, value: object
) -> None:
    body = {
        "volume": str(uuid.UUID(int=7)),
        "name": "n",
        "epoch": 1,
        "commit": [1, 1],
        "have": [0, 0],
        field: value,
    }
    assert refusal(thiefs_key, "send", **body).code == "invalid-request"


def test_what_is_nested_too_deep_ends_nothing(thiefs_key: Ask) -> None:
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    refusal(thiefs_key, "stand", volume=str(uuid.UUID(int=7)), more=deep)
    assert "version" in thiefs_key("hello")


def test_a_removed_node_asks_nothing(make_owner: Make, records: Records) -> None:
    """Also over the connection that it has."""
    cluster = Cluster(make_owner, records)
    node_id, body = cluster.other.id, cluster.body()
    with key_of(cluster.other, cluster.alpha) as ask:
        cluster.other.kill()
        cluster.alpha.wait_down(cluster.other.name)
        cluster.alpha.control_ok("DELETE", f"/v1/nodes/{node_id}?force=1")

        def shut_out() -> bool:
            try:
                ask("hello")
            except PeerUnreachableError:
                return True
            return False

        wait_until(shut_out, "it is shut out", timeout_s=WAIT_S)
        for request in ("hello", "stand", "events", "unused"):
            with pytest.raises(PeerUnreachableError):
                ask(request, **body)


def test_a_node_that_was_never_enrolled_asks_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    ensure_keys(tmp_path / "peer")
    peer = cluster.alpha.as_peer()
    with tempfile.TemporaryDirectory(prefix="rs-", dir="/tmp") as sockets:
        peers = Peers(SharedSsh(tmp_path / "peer", sockets=Path(sockets)))
        peers.update([peer])
        try:
            with pytest.raises(PeerUnreachableError):
                peers.call(peer.id, "hello", {}, deadline_s=20)
        finally:
            peers.close()


def test_what_people_on_any_node_wish_is_done_and_leaves_nothing(
    cluster: Cluster,
) -> None:
    alpha, member, other = cluster.alpha, cluster.member, cluster.other
    replicas = f"/v1/volumes/{NAME}/replicas"
    found = other.control_ok("GET", f"/v1/volumes/{NAME}/events?limit=100")
    assert found["silent"] == []
    assert {each["node"] for each in found["events"]} >= {"alpha", member.name}
    rows = other.control_ok("GET", replicas)
    assert [each["commit"] != "" for each in rows] == [True, True]
    wait_until(lambda: not cluster.wishes(), "nothing is left", timeout_s=WAIT_S)
    other.control_ok("POST", replicas, {"node": other.name})
    wait_members(cluster.records, cluster.volume, alpha, member, other)
    other.control_ok("DELETE", f"{replicas}/{other.name}")
    wait_members(cluster.records, cluster.volume, alpha, member)
    wait_until(lambda: not other.copy(cluster.volume).exists(), "", timeout_s=WAIT_S)
    wait_until(lambda: not cluster.wishes(), "nothing is left", timeout_s=WAIT_S)


def wished(cluster: Cluster, **changes: Any) -> Wish:
    """Return the wish of the other node with *changes*, as it was answered."""
    store = cluster.records.store
    fields = {
        "volume": cluster.volume,
        "node": cluster.other.id,
        "action": "remove",
        "to": cluster.alpha.id,
        "target": cluster.member.id,
        **changes,
    }
    wish = Wish(**fields)
    key = f"{WISHES}{wish.volume}/{wish.node}/{uuid.uuid4()}"
    store.transact([], [Put(key, msgspec.json.encode(wish))])

    def answered() -> Wish | None:
        record = store.get(key)
        assert record is not None
        found = msgspec.json.decode(record.value, type=Wish)
        return found if found.answer else None

    wait_until(answered, "it is answered", timeout_s=WAIT_S)
    found = answered()
    store.transact([], [Delete(key)])
    assert found is not None
    return found


def test_a_wish_is_no_order(cluster: Cluster) -> None:
    before = cluster.records.head(cluster.volume).members
    for who, cause in (
        ({"node": str(uuid.UUID(int=5))}, "is no member of the cluster"),
        ({"volume": str(uuid.UUID(int=6))}, "is not known here"),
        ({"action": "ask"}, "does not know 'ask'"),
        ({"target": str(uuid.UUID(int=8))}, "keeps no copy"),
        ({"to": cluster.member.id}, "is not owned by this node"),
        ({"to": cluster.member.id, "action": "add"}, "is not owned by this node"),
        ({"to": cluster.member.id, "action": "move"}, "changes hands"),
    ):
        if who.get("action") in ("add", "move"):
            who["target"] = cluster.other.id
        answer = wished(cluster, **who).answer
        assert answer is not None
        assert answer.error is not None, who
        assert cause in answer.error.cause, who
    assert cluster.records.head(cluster.volume).members == before


def test_what_an_earlier_version_asks_is_refused_with_one_line(
    cluster: Cluster,
) -> None:
    with key_of(cluster.member, cluster.alpha) as ask:
        for request in sorted(OF_EARLIER_VERSIONS):
            error = refusal(ask, request, **cluster.body())
            assert error.code == "peer-refused"
            assert "read from the store" in error.cause
            assert "update the node that asks" in error.hint
