"""`remora cluster dump`, `load` and `status` on a real etcd, with kills."""

from __future__ import annotations

import gc
import json
import os
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from backends.errors import InvalidRequestError
from plugin.daemon.node import lock_state
from plugin.errors import StoreError
from plugin.joining import dumping
from plugin.joining.dumping import Loading
from plugin.joining.joined import joined, note_joined, refuse_joined
from plugin.membership.loading import LOADING, refuse_loading
from plugin.membership.nodes import PROTOCOL, NodeRecord
from plugin.store.base import Put
from tests.protocol.command import Cli, caller
from tests.support import etcd
from tests.support.fuse import STEPS_MAX
from tests.support.joining import Machine, dies, put_volume, volume
from tests.support.memory_store import MemoryStore

pytestmark = pytest.mark.xdist_group("etcd-members")

Make = Callable[..., tuple[Machine, Cli]]


@pytest.fixture
def make(
    server: etcd.Cluster,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Make:
    """Return a function that makes machines, alone or with [cluster] configured."""

    def made(name: str, *, clustered: bool = True) -> tuple[Machine, Cli]:
        machine = Machine(disk / name, server.endpoints)
        if clustered:
            text = (
                f'[cluster]\netcd = {json.dumps(machine.endpoints)}\nnode_name = "n"\n'
            )
            with machine.config.open("a") as file:
                file.write(f"{text}etcd_prefix = {json.dumps(machine.prefix)}\n")
        node = SimpleNamespace(config=machine.config)
        return machine, caller(node, monkeypatch, capsys)  # type: ignore[arg-type]

    return made


def use(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setenv("REMORA_CONFIG", str(machine.config))


SAMPLES = (
    put_volume(volume("data")),
    Put("node_names/n", b"not json"),
    Put("spaced", b'{"a": 1}'),
    Put("over lines", b'{\n"a": 1}'),
    Put("twice", b'{"a":1,"a":2}'),
    Put("binary", bytes(range(256))),
    Put("empty", b""),
    Put("lines", b"a\nb\r\n\xe2\x80\xa8"),
    Put("number", b"1.0"),
    Put("null", b"null"),
)


def test_every_value_comes_back_as_it_was(make: Make, tmp_path: Path) -> None:
    machine, cli = make("a")
    machine.write_there(*SAMPLES)
    file = tmp_path / "dump"
    assert cli("cluster", "dump", "--output", str(file)).out == ""
    assert file.stat().st_mode & 0o777 == 0o600
    printed = cli("cluster", "dump").out.split("\n")
    assert printed[1:] == file.read_text().split("\n")[1:]
    first, *lines = [json.loads(each) for each in file.read_text().split("\n")[:-1]]
    assert (first["format"], first["records"]) == (1, len(SAMPLES))
    with closing(machine.cluster()) as store:
        assert first["cluster"] == store.identity()
        assert first["revision"] == store.prefix("")[1]
    # What is JSON is shown as such, what is text as text.
    shown = {each["key"]: each for each in lines}
    assert shown["volumes/data"]["json"]["name"] == "data"
    assert shown["node_names/n"]["text"] == "not json"
    assert "base64" in shown["binary"]
    other, load = make("b")
    assert load("cluster", "load", str(file), REMORA_CONFIG=str(other.config)).code == 0
    assert other.records_there() == {each.key: each.value for each in SAMPLES}


def test_what_hangs_on_a_lease_is_left_out(make: Make) -> None:
    machine, cli = make("a")
    with closing(machine.cluster()) as store:
        lease = store.grant_lease(60)
        store.transact([], [Put("v/1/lock", b"{}", lease), Put("v/1/head", b"{}")])
        store.transact([], [Put("alive/n", b"{}", lease), Put("odd", b"{}", lease)])
    assert [
        json.loads(each).get("key") for each in cli("cluster", "dump").out.splitlines()
    ] == [None, "v/1/head"]
    alone, cli = make("b", clustered=False)
    alone.write(
        Put("v/1/lock", b"{}"), Put("v/1/head", b"{}")
    )  # alone there is no lease
    assert "lock" not in cli("cluster", "dump").out


@pytest.mark.parametrize("clustered", [True, False])
def test_a_dump_is_of_one_moment(make: Make, clustered: bool) -> None:
    """Two records are always changed together; no dump shows them apart."""
    machine, cli = make("a", clustered=clustered)
    stop = threading.Event()
    store = machine.cluster() if clustered else machine.local()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            value = str(number).encode()
            store.transact([], [Put("a", value), *SAMPLES, Put("z", value)])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = set()
        while len(seen) < 5:
            dump = dumping.read(cli("cluster", "dump").out.encode())
            assert dump.values.get("a") == dump.values.get("z")
            seen.add(dump.header.revision)
    finally:
        stop.set()
        writer.join()
        store.close()


def test_from_one_node_into_a_cluster_and_back(make: Make, tmp_path: Path) -> None:
    alone, cli = make("a", clustered=False)
    alone.write(*SAMPLES)
    first, second = tmp_path / "first", tmp_path / "second"
    assert cli("cluster", "dump", "--output", str(first)).code == 0
    member, cli = make("b")
    assert cli("cluster", "load", str(first)).out.startswith(f"{len(SAMPLES)} records")
    assert member.records_there() == alone.records()
    assert cli("cluster", "dump", "--output", str(second)).code == 0
    last, cli = make("c", clustered=False)
    assert cli("cluster", "load", str(second)).code == 0
    assert last.records() == alone.records()


def test_leaving_a_cluster(make: Make, tmp_path: Path) -> None:
    """A node that has joined takes the records with it, and starts alone again."""
    machine, cli = make("a", clustered=False)
    machine.write(put_volume(volume("data")))
    alone = machine.config.read_text()
    assert cli(*machine.join).code == 0
    machine.write_there(put_volume(volume("made there")))
    file = tmp_path / "dump"
    assert cli("cluster", "dump", "--output", str(file)).code == 0
    there = machine.records_there()
    machine.config.write_text(alone)
    with closing(machine.node()) as node, pytest.raises(StoreError):
        refuse_joined(node, machine.loaded())
    assert cli("cluster", "load", "--replace", "--yes", str(file)).code == 0
    with closing(machine.node()) as node:
        refuse_joined(node, machine.loaded())
    assert machine.records() == there


def test_only_an_empty_prefix_is_loaded_into(make: Make, tmp_path: Path) -> None:
    machine, cli = make("a")
    machine.write_there(*SAMPLES)
    file = tmp_path / "dump"
    cli("cluster", "dump", "--output", str(file))
    machine.write_there(Put("more", b"1"), Put("binary", b"other"))
    before = machine.records_there()
    refused = cli("cluster", "load", str(file))
    assert refused.code == 27
    assert f"there are {len(SAMPLES) + 1} records already" in refused.error
    declined = cli("cluster", "load", "--replace", str(file), answer="n\n")
    assert (declined.code, "(2 go or change)" in declined.err) == (130, True)
    assert machine.records_there() == before
    assert cli("cluster", "load", "--replace", str(file), answer="y\n").code == 0
    assert machine.records_there() == {each.key: each.value for each in SAMPLES}


def test_living_nodes_forbid_a_replacement(make: Make, tmp_path: Path) -> None:
    machine, cli = make("a")
    file = tmp_path / "dump"
    machine.write_there(*SAMPLES)
    cli("cluster", "dump", "--output", str(file))
    record = NodeRecord(
        id="1", name="living", peer_port=1, version="", protocol=PROTOCOL,
        protocol_oldest=PROTOCOL, machine_id="", boot_id="", host_key="",
        public_key="", joined_at="",
    )  # fmt: skip
    with closing(machine.cluster()) as store:
        lease = store.grant_lease(60)
        store.transact([], [Put("alive/1", b"{}", lease), Put("v/1/lock", b"", lease)])
        store.transact([], [Put("nodes/1", msgspec.json.encode(record))])
    refused = cli("cluster", "load", "--replace", "--yes", str(file))
    assert "these nodes are alive: living" in refused.error
    forced = cli("cluster", "load", "--replace", "--yes", "--force", str(file))
    assert forced.code == 0
    # What a living node holds it keeps holding.
    assert {"alive/1", "v/1/lock"} == machine.records_there().keys() - {
        each.key for each in SAMPLES
    }


def test_the_daemon_must_be_stopped(make: Make, tmp_path: Path) -> None:
    machine, cli = make("a", clustered=False)
    machine.write(*SAMPLES)
    file = tmp_path / "dump"
    lock = lock_state(machine.state_dir)
    try:
        assert cli("cluster", "dump", "--output", str(file)).code == 0
        assert "systemctl stop" in cli("cluster", "load", str(file)).error
    finally:
        os.close(lock)


def test_without_records_there_is_no_dump(make: Make) -> None:
    machine, cli = make("a", clustered=False)
    assert "there are no records" in cli("cluster", "dump").error
    assert not (machine.state_dir / "store.db").exists()


def sample_dump() -> bytes:
    store = MemoryStore()
    store.transact([], SAMPLES)
    return dumping.dump(store, cluster="c")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda text: b"", "no dump"),
        (lambda text: b"[]\n" + text, "no dump"),
        (lambda text: text.replace(b'"format":1', b'"format":2', 1), "format 2"),
        (lambda text: text[: text.rindex(b'{"key"')], "not whole"),
        (lambda text: text[:-20], "cannot be read"),
        (lambda text: text + text.split(b"\n")[1] + b"\n", "not whole"),
        (lambda text: text.replace(b'"base64":"', b'"base64":"?'), "cannot be read"),
        (lambda text: text.replace(b'"base64"', b'"other"'), "cannot be read"),
        (lambda text: text.replace(b'"key":"null"', b'"key":""'), "cannot be read"),
    ],
)
def test_what_is_no_whole_dump_is_refused(
    spoil: Callable[[bytes], bytes], why: str
) -> None:
    assert dumping.read(sample_dump()).header.cluster == "c"
    with pytest.raises(InvalidRequestError, match=why):
        dumping.read(spoil(sample_dump()))


def test_a_load_that_broke_off_is_finished_only_by_its_own() -> None:
    store = MemoryStore()
    dump = dumping.read(sample_dump())
    stop = RuntimeError()

    def fail() -> None:
        raise stop

    store.transact([], [Put("old", b"")])
    with pytest.raises(RuntimeError):
        Loading(store, dump, replace=True, force=False).run(before_end=fail)
    with pytest.raises(StoreError, match="being restored"):
        refuse_loading(store)
    with pytest.raises(StoreError, match="being restored"):
        dumping.dump(store, cluster="")
    other = dumping.read(dumping.dump(MemoryStore(), cluster="other"))
    with pytest.raises(StoreError, match="load of another dump"):
        Loading(store, other, replace=False, force=False).run()
    # It need not be said again that it replaces.
    store.transact([], [Put("old", b"")])
    Loading(store, dump, replace=False, force=False).run()
    assert {each.key: each.value for each in store.prefix("")[0]} == dump.values
    # And with --replace another one takes over.
    with pytest.raises(RuntimeError):
        Loading(store, dump, replace=True, force=False).run(before_end=fail)
    Loading(store, other, replace=True, force=False).run()
    assert store.prefix("")[0] == []


def test_a_load_that_was_overtaken_ends() -> None:
    store = MemoryStore()
    dump = dumping.read(sample_dump())

    def overtake() -> None:
        Loading(store, dump, replace=True, force=False).run()

    with pytest.raises(StoreError, match="another load"):
        Loading(store, dump, replace=False, force=False).run(before_end=overtake)
    assert {each.key: each.value for each in store.prefix("")[0]} == dump.values


@pytest.mark.parametrize("clustered", [True, False])
def test_a_kill_at_any_step_is_repaired_by_a_repeat(
    make: Make, tmp_path: Path, clustered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cli = make("source", clustered=False)
    source.write(*SAMPLES, *(Put(f"k{number:03}", b"1") for number in range(150)))
    file = tmp_path / "dump"
    assert cli("cluster", "dump", "--output", str(file)).code == 0
    wanted = source.records()
    old = {f"old{number}": b"" for number in range(120)}
    seen = set()
    for step in range(1, STEPS_MAX):
        machine, cli = make(str(step), clustered=clustered)
        use(monkeypatch, machine)
        write = machine.write_there if clustered else machine.write
        write(*(Put(key, value) for key, value in old.items()))
        with closing(machine.node()) as node:
            note_joined(node, "a cluster", finished=True)

        command = ("cluster", "load", "--replace", "--yes", str(file))
        died = dies(lambda: cli(*command), step)  # noqa: B023 - called at once
        found = machine.records_there() if clustered else machine.records()
        loading = found.pop(LOADING, None) is not None
        seen.add((loading, found == old, found == wanted))
        # Half of the records are never without the mark that daemons refuse.
        assert loading or found in (old, wanted)
        if not clustered and not loading and found == old:
            # As long as the old records count, the join still forbids them.
            with closing(machine.node()) as node:
                assert joined(node) is not None
        assert cli(*command).code == 0
        assert (machine.records_there() if clustered else machine.records()) == wanted
        with closing(machine.node()) as node:
            assert (joined(node) is None) == (not clustered)
        if not died:
            break
    else:
        pytest.fail(f"still dying at step {STEPS_MAX}")
    assert seen == {
        (False, True, False),
        (True, True, False),
        (True, False, False),
        (True, False, True),
        (False, False, True),
    }


def test_two_thousand_volumes(make: Make, tmp_path: Path) -> None:
    machine, cli = make("a")
    volumes = [put_volume(volume(f"v{number:04}")) for number in range(2000)]
    machine.write_there(*volumes)
    file = tmp_path / "dump"
    assert cli("cluster", "dump", "--output", str(file)).code == 0
    other, cli = make("b")
    use_other = {"REMORA_CONFIG": str(other.config)}
    assert cli("cluster", "load", str(file), **use_other).code == 0
    assert other.records_there() == {each.key: each.value for each in volumes}


# Elsewhere a call of main() is a process, whose end closes its sockets.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_status_without_a_daemon(make: Make) -> None:
    machine, cli = make("a")
    dead = f"http://{etcd.new_address()}:2379"
    text = machine.config.read_text()
    both = json.dumps([*machine.endpoints, dead])
    machine.config.write_text(text.replace(json.dumps(machine.endpoints), both))
    record = NodeRecord(
        id="1", name="known", peer_port=1, version="", protocol=1, protocol_oldest=1,
        machine_id="", boot_id="", host_key="", public_key="", joined_at="",
    )  # fmt: skip
    machine.write_there(Put("nodes/1", msgspec.json.encode(record)))
    done = cli("cluster", "status")
    assert done.code == 0
    rows = [each.split() for each in done.out.splitlines()]
    assert rows[1][:2] == [machine.endpoints[0], "yes"]
    assert rows[2] == [dead, "no", "-"]
    assert ["known", "down"] in rows
    assert "etcd did not answer" in done.err
    assert "there is no daemon" in done.err
    found = cli("cluster", "status", "--json").json()
    with closing(machine.cluster()) as store:
        assert found["cluster"] == store.identity()
    machine.config.write_text(text.replace(machine.endpoints[0], dead))
    away = cli("cluster", "status", "--json")
    assert (away.code, away.json()["answers"]) == (1, False)
    _, cli = make("b", clustered=False)
    alone = cli("cluster", "status")
    assert (alone.code, "alone" in alone.out) == (0, True)
    gc.collect()  # here, where unclosed sockets are expected
