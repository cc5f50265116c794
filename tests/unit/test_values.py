"""Records as values: decoded once, and one that cannot be read stops nobody."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from backends.errors import InvalidRequestError
from plugin.errors import StoreError
from plugin.membership.directory import NodeDirectory
from plugin.membership.nodes import NodeRecord
from plugin.membership.quarantine_records import QuarantineRecord, QuarantineRecords
from plugin.model import VolumeRecord
from plugin.ownership.heads import Heads, Lock, put_head
from plugin.ownership.state import Epoch, Head, Tomb
from plugin.store import values as module
from plugin.store.base import Delete, Put, Record, Store
from plugin.store.sqlite import SqliteStore
from plugin.store.values import RecordKind, value_of
from plugin.volumes.catalogue import Catalogue
from tests.support.ids import id_of
from tests.support.memory_store import MemoryStore
from tests.support.world import World, set_phase

RECORD = VolumeRecord(
    id=id_of("good"),
    name="good",
    backend="rsync",
    requested={},
    options={},
    created_at="",
    phase="ready",
)
ID = RECORD.id
TOMB = {"name": "v", "backend": "rsync", "removed_at": "", "pending": []}
NODE = {
    **dict.fromkeys(
        ("version", "machine_id", "boot_id", "host_key", "public_key", "joined_at"), ""
    ),
    "id": "a",
    "name": "a",
    "peer_port": 1,
    "protocol": 1,
    "protocol_oldest": 1,
}
NEWER = msgspec.json.encode(RECORD).replace(b'"ready"', b'"of a newer version"')
FIELDS = msgspec.to_builtins(RECORD)
ODD = [
    {"id": ""},
    {"id": "../.."},
    {"id": "/etc"},
    {"id": id_of("good").upper()},
    {"id": f"{id_of('good')}\n"},
    {"name": "other"},
    {"name": "../x"},
    {"backend": "zfs"},
    {"backend": "rsync\n"},
    {"options": {"replicas": "2\n"}},
    {"requested": {"a b": ""}},
    {"options": {"a": "x" * 5000}},
    {"node": "../.."},
    {"created_at": "\x1b[2J"},
]
UNREADABLE = [b"", b"\xff", b'{"id": "\xff"}', b"{}", b"[" * 100_000]


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Yield a store that gives the same objects again, or equal ones."""
    made = SqliteStore(tmp_path / "s") if request.param == "sqlite" else MemoryStore()
    yield made
    made.close()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the keys of records that are decoded from now on."""
    found: list[str] = []
    monkeypatch.setattr(
        module,
        "value_of",
        lambda record, kind: found.append(record.key) or value_of(record, kind),
    )
    return found


def volume(name: str) -> Put:
    record = msgspec.structs.replace(RECORD, id=id_of(name), name=name)
    return Put(f"volumes/{name}", msgspec.json.encode(record))


@pytest.mark.parametrize("value", UNREADABLE)
def test_one_that_cannot_be_read_is_told_once_and_passed_over(
    store: Store, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    module._told.clear()
    catalogue = Catalogue(store)
    store.transact([], [volume("a"), Put("volumes/bad", value), volume("c")])
    for _ in range(3):
        assert [each.name for each in catalogue.heads()] == ["a", "c"]
        assert catalogue.unreadable() == ["bad"]
    assert caplog.text.count("volumes/bad cannot be read") == 1
    # It is there all the same.
    with pytest.raises(StoreError, match="volumes/bad cannot be read"):
        catalogue.find("bad")
    assert catalogue.insert(msgspec.structs.replace(RECORD, name="bad")) is None


@pytest.mark.parametrize("field", ODD, ids=str)
def test_a_volume_whose_fields_have_no_form_cannot_be_read(
    store: Store, field: dict[str, object]
) -> None:
    catalogue = Catalogue(store)
    odd = Put("volumes/good", msgspec.json.encode({**FIELDS, **field}))
    store.transact([], [odd, volume("a")])
    with pytest.raises(StoreError, match="volumes/good cannot be read"):
        catalogue.find("good")
    assert [each.name for each in catalogue.of_ids(catalogue.names())] == ["a"]
    # Nor does this version write such a one.
    record = msgspec.structs.replace(
        RECORD, **{"id": id_of("new"), "name": "new", **field}
    )
    if record.name != "other":
        with pytest.raises(InvalidRequestError, match="cannot be recorded"):
            catalogue.insert(record)


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        (f"v/{ID}/head", {"owner": "../x"}, Head),
        (f"v/{ID}/head", {"holders": [""]}, Head),
        (f"v/{ID}/head", {"epoch": -1}, Head),
        (f"v/{ID}/head", {"committed": [1, 2**64]}, Head),
        ("v/../head", {}, Head),
        (f"v/{ID}/lock", {"node": "", "epoch": 1}, Lock),
        (f"v/{ID}/epochs/x", {"base": [0, 0], "owner": "a"}, Epoch),
        ("tomb/", TOMB, Tomb),
        (f"tomb/{ID}/..", TOMB, Tomb),
        (f"tomb/{ID}", {**TOMB, "name": "/"}, Tomb),
        ("nodes/a", {**NODE, "id": "b"}, NodeRecord),
        ("nodes/a", {**NODE, "host_key": "x\ny"}, NodeRecord),
        ("nodes/a", {**NODE, "addresses": ["10.0.0.1"] * 17}, NodeRecord),
        (
            f"v/{ID}/conflicts/a/1.1",
            {"set_apart_at": "", "files": -1},
            QuarantineRecord,
        ),
    ],
)
def test_nor_can_any_other_record(
    key: str, value: dict[str, object], kind: type[RecordKind]
) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        value_of(Record(key, msgspec.json.encode(value), 1, 1), kind)


def test_a_phase_of_a_newer_version_is_shown_and_nothing_is_done(store: Store) -> None:
    catalogue = Catalogue(store)
    store.transact([], [volume("a"), Put("volumes/good", NEWER)])
    assert [each.name for each in catalogue.heads()] == ["a", "good"]
    assert catalogue.unreadable() == []
    assert [each.name for each in catalogue.of_ids([id_of("a"), id_of("good")])] == [
        "a"
    ]
    with pytest.raises(StoreError, match="volumes/good cannot be read"):
        catalogue.find("good")


def test_what_has_not_changed_is_not_decoded_again(
    store: Store, decoded: list[str]
) -> None:
    catalogue = Catalogue(store)
    store.transact([], [volume("a"), volume("b"), Put("volumes/bad", b"")])
    catalogue.heads()
    decoded.clear()
    for _ in range(3):
        catalogue.heads()
        catalogue.names()
        catalogue.unreadable()
    assert decoded == []
    store.transact([], [volume("b"), volume("c"), Delete("volumes/a")])
    store.transact([], [Delete("volumes/c"), Delete("volumes/bad")])
    assert [each.name for each in catalogue.heads()] == ["b"]
    assert decoded == ["volumes/b"]
    decoded.clear()
    assert [each.id for each in catalogue.of_ids([id_of("b"), "other"])] == [id_of("b")]
    assert catalogue.of_ids([]) == []
    assert decoded == ["volumes/b"]


def test_a_store_that_has_not_changed_is_not_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue, read = Catalogue(store), store.prefix
    asked: list[str] = []
    monkeypatch.setattr(store, "prefix", lambda key: asked.append(key) or read(key))
    store.transact([], [volume("a")])
    for _ in range(3):
        assert [each.name for each in catalogue.heads()] == ["a"]
    assert asked == ["volumes/"]
    store.transact([], [volume("b")])
    assert [each.name for each in catalogue.heads()] == ["a", "b"]


def test_heads_of_volumes_of_other_nodes_cost_nothing(
    store: Store, decoded: list[str]
) -> None:
    heads = Heads(store, QuarantineRecords(store))
    owned = {"phase": "owned", "members": ("us", "a")}
    store.transact(
        [],
        [
            put_head(id_of("ours"), Head(owner="us", **owned)),  # type: ignore[arg-type]
            put_head(id_of("copied"), Head(owner="a", **owned)),  # type: ignore[arg-type]
            put_head(id_of("theirs"), Head(owner="b", phase="owned", members=("b",))),
            Put("v/bad/head", b"{"),
            Put(f"v/{id_of('ours')}/lock", b"{}"),
        ],
    )
    assert heads.owned_by("us") == {id_of("ours")}
    assert set(heads.naming("us")) == {id_of("copied"), id_of("ours")}
    assert set(decoded) == {f"v/{id_of(each)}/head" for each in ("copied", "ours")}


def test_a_head_that_cannot_be_read_may_be_that_of_a_node_that_leaves(
    store: Store,
) -> None:
    heads = Heads(store, QuarantineRecords(store))
    store.transact([], [Put("v/bad/head", b"{"), Put("nodes/us", b"{}")])
    assert heads.held_only_by("us") == {"all of": ["bad"]}
    assert heads.head("bad") is None
    with pytest.raises(StoreError, match="v/bad/head cannot be read"):
        heads.read("bad")


def test_an_epoch_that_cannot_be_read_is_not_left_out(store: Store) -> None:
    heads = Heads(store, QuarantineRecords(store))
    for key in ("v/id/epochs/0000000001", "v/id/epochs/x"):
        store.transact([], [Put(key, b"{")])
        with pytest.raises(StoreError, match=key):
            heads.lineage("id")
        store.transact([], [Delete(key)])


def test_a_node_whose_record_cannot_be_read_is_in_the_cluster(store: Store) -> None:
    """Else its copies would count as given up by people."""
    nodes = NodeDirectory(store, data_only_on=lambda _: [])
    store.transact([], [Put("nodes/bad", b"{")])
    assert nodes.record("bad") is None
    assert nodes.has("bad")
    assert nodes.ids() == ["bad"]


def test_an_idle_pass_decodes_nothing(tmp_path: Path, decoded: list[str]) -> None:
    world = World(tmp_path)
    try:
        for number in range(20):
            world.volumes.creation.create(f"v{number}", {})
            theirs = put_head(id_of(f"{number}"), Head(owner="b", phase="owned"))
            world.store.transact([], [volume(f"theirs-{number}"), theirs])
        world.volumes.reconciler.run_once()
        decoded.clear()
        world.volumes.reconciler.run_once()
        assert len(world.volumes.views.all()) == 40
        assert decoded == []
    finally:
        world.close()


def test_a_pass_goes_on_behind_records_that_cannot_be_read(tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        world.volumes.creation.create("good", {})
        good_id = world.volume_id("good")
        garbage = [Put(f"volumes/{n}", v) for n, v in enumerate(UNREADABLE)]
        world.store.transact([], [*garbage, Put("v/x/head", b"{"), Put("tomb/x", b"{")])
        assert [each.name for each in world.volumes.views.all()] == ["good"]
        stored = world.catalogue.find("good")
        assert stored is not None
        set_phase(world.catalogue, stored, "removing", stored.record.node)
        world.volumes.reconciler.run_once()
        assert world.catalogue.find("good") is None
        assert good_id not in world.disk
        assert world.store.get("tomb/x") is not None
        # Nobody knows whether what lies in the pool is that of a record.
        with pytest.raises(StoreError, match="cannot be read"):
            world.volumes.adoption.adopt(dry_run=False)
    finally:
        world.close()


def test_a_volume_is_found_by_its_id_without_a_look_at_all_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Heads change with each sync of each node, and volumes hardly ever."""
    store = MemoryStore()
    catalogue = Catalogue(store)
    store.transact([], [volume(name) for name in "abc"])
    assert [e.name for e in catalogue.of_ids([id_of("c"), "none", id_of("a")])] == [
        "a",
        "c",
    ]
    walks: list[str] = []
    walk = store.prefix
    monkeypatch.setattr(store, "prefix", lambda key: walks.append(key) or walk(key))
    for number in range(3):
        store.transact([], [put_head(id_of("b"), Head(epoch=number))])
        assert [each.name for each in catalogue.of_ids([id_of("b")])] == ["b"]
    assert walks == []
    store.transact([], [Delete("volumes/b"), volume("d")])
    assert catalogue.of_ids([id_of("b")]) == []
    assert [each.name for each in catalogue.of_ids([id_of("d")])] == ["d"]


def test_a_known_volume_is_found_without_a_walk_through_all(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members are asked all the time, while elsewhere volumes come and go."""
    catalogue = Catalogue(store)
    store.transact([], [volume("a"), volume("b")])
    ids = [id_of("b"), id_of("a")]
    assert [each.name for each in catalogue.of_ids(ids)] == ["a", "b"]
    store.transact([], [volume("c")])
    walks: list[str] = []
    prefix = store.prefix
    monkeypatch.setattr(store, "prefix", lambda key: walks.append(key) or prefix(key))
    assert [each.name for each in catalogue.of_ids(ids)] == ["a", "b"]
    assert walks == []
    # One that is new, or made anew, is looked for.
    assert [each.name for each in catalogue.of_ids([id_of("c")])] == ["c"]
    assert walks
