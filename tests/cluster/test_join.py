"""`remora cluster join` on a real etcd: what moves, what forbids it, kills."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from plugin.cli import cmd_cluster
from plugin.daemon.node import lock_state
from plugin.errors import StoreError
from plugin.joining.joined import joined, refuse_joined
from plugin.joining.plan import Planner
from plugin.membership.loading import LOADING
from plugin.membership.nodes import PROTOCOL, AliveRecord, NodeRecord
from plugin.model import VolumeRecord
from plugin.ownership.rules import acquire, choose, resume
from plugin.ownership.state import (
    EMPTY,
    FILLED,
    Commit,
    Epoch,
    Head,
    Lineage,
    RefusedError,
)
from plugin.store.base import Put
from tests.protocol.command import Cli, caller
from tests.support import etcd
from tests.support.fuse import STEPS_MAX
from tests.support.joining import Machine, dies, put_head, put_volume, volume

pytestmark = pytest.mark.xdist_group("etcd-members")


def stored(machine: Machine, name: str) -> VolumeRecord:
    value = machine.records_there()[f"volumes/{name}"]
    return msgspec.json.decode(value, type=VolumeRecord)


def head(machine: Machine, record: VolumeRecord) -> Head:
    value = machine.records_there()[f"v/{record.id}/head"]
    return msgspec.json.decode(value, type=Head)


def test_volumes_move_without_their_locks(machine: Machine, cli: Cli) -> None:
    plain, owned = volume("plain", filled=False), volume("owned")
    shared = volume("shared", backend="nfs")
    ours = Head(
        epoch=3, owner=machine.id, boot_id="boot", phase="owned",
        committed=Commit(2, 5), holders=(machine.id,), members=(machine.id,),
    )  # fmt: skip
    epoch = Put(
        f"v/{owned.id}/epochs/0000000003",
        msgspec.json.encode(Epoch(Commit(2, 5), machine.id)),
    )
    machine.write(
        *map(put_volume, (plain, owned, shared)),
        put_head(owned, ours),
        epoch,
        Put(f"v/{owned.id}/lock", b'{"node":"x","epoch":3}'),
        Put(f"nodes/{machine.id}", b"{}"),
        Put("node_names/other", machine.id.encode()),
    )
    assert cli(*machine.join).code == 0
    there = machine.records_there()
    assert sorted(there) == sorted(
        [
            *(f"volumes/{each}" for each in ("owned", "plain", "shared")),
            f"v/{owned.id}/head",
            epoch.key,
            f"v/{plain.id}/head",
        ]
    )
    assert there[epoch.key] == epoch.value
    # A container that runs goes on in its epoch: the daemon takes the lock again.
    kept = head(machine, owned)
    assert kept == ours
    resumed = resume(kept, locked_by="", node=machine.id, boot_id="boot", epoch=3)
    assert resumed == kept
    assert stored(machine, "owned").node == stored(machine, "plain").node == machine.id
    assert stored(machine, "shared") == shared
    assert stored(machine, "plain").filled


def test_no_other_node_begins_a_volume_empty(machine: Machine, cli: Cli) -> None:
    data = volume("data")
    machine.write(put_volume(data))
    assert cli(*machine.join).code == 0
    found = head(machine, data)
    assert found.holders == found.members == (machine.id,)
    taken = acquire(found, locked_by="", node="other", boot_id="b")
    for votes in ({"other": EMPTY}, {}):
        with pytest.raises(RefusedError):
            choose(taken, Lineage({}), votes, accept_loss=True)
    choice = choose(
        taken, Lineage({}), {"other": EMPTY, machine.id: FILLED}, accept_loss=False
    )
    assert (choice.base, choice.holders) == (FILLED, (machine.id,))


def test_names_that_are_taken_refuse_the_whole_join(machine: Machine, cli: Cli) -> None:
    machine.write(*(put_volume(volume(name)) for name in ("a", "b", "free")))
    machine.write_there(*(put_volume(volume(name)) for name in ("a", "b")))
    before = machine.records_there()
    for more in ((), ("--dry-run",)):
        done = cli(*machine.join, *more)
        assert done.code == 27
        lines = done.err.splitlines()
        assert [each.split(":")[0] for each in lines] == [
            "conflict",
            "conflict",
            "remora",
        ]
        assert "the name 'a'" in lines[0]
        assert "the name 'b'" in lines[1]
        assert machine.records_there() == before
    with closing(machine.node()) as node:
        assert joined(node) is None
        refuse_joined(node, machine.loaded())
    again = cli(*machine.join, "--rename", "a=a2", "--rename", "b=b2")
    assert again.code == 0
    assert again.out.splitlines() == ["a as a2: moves", "b as b2: moves", "free: moves"]
    assert {key for key in machine.records_there() if key.startswith("volumes/")} == {
        f"volumes/{each}" for each in ("a", "b", "a2", "b2", "free")
    }
    assert stored(machine, "a2").name == "a2"


def test_who_shows_a_renamed_volume_goes_on_to_show_that(
    machine: Machine, cli: Cli
) -> None:
    there = volume("there")
    shows = {
        each.name: volume(
            f"{each.name}-read",
            backend="readonly",
            requested={"backend": "readonly", "readonly_copy": each.name},
            options={"readonly_copy": each.name},
        )
        for each in (volume("a"), volume("free"), there)
    }
    machine.write(put_volume(volume("a")), put_volume(there), put_volume(volume("z")))
    machine.write(*map(put_volume, shows.values()))
    as_there = msgspec.structs.replace(there, name="there2")
    machine.write_there(put_volume(volume("a")), put_volume(as_there))
    assert cli(*machine.join, "--rename", "a=a2").code == 0
    for name, now in {"a": "a2", "there": "there2", "free": "free"}.items():
        record = stored(machine, f"{name}-read")
        assert record.options == {"readonly_copy": now}
        assert record.requested == {"backend": "readonly", "readonly_copy": now}


def test_wrong_renames_are_refused(machine: Machine, cli: Cli) -> None:
    held, free = volume("held"), volume("free")
    machine.write(*map(put_volume, (held, free, volume("s", backend="nfs"))))
    with closing(machine.node()) as node:
        node.references.add(held.id, "engine")
    for rename, why in {
        "held=x": "a container holds it",
        "s=x": "on its share",
        "none=x": "no volume 'none'",
        "free=held": "two volumes",
    }.items():
        done = cli(*machine.join, "--rename", rename)
        assert (done.code, why in done.err) == (27, True), done.err
    assert cli(*machine.join, "--rename", "free=../x").code == 10
    assert cli(*machine.join, "--rename", "free").code == 2
    assert machine.records_there() == {}


def test_an_nfs_volume_that_others_know_is_the_same(machine: Machine, cli: Cli) -> None:
    shared = volume("shared", backend="nfs")
    theirs = msgspec.structs.replace(shared, requested={"profile": "theirs"})
    ours = Head(epoch=1, owner=machine.id, phase="owned")
    machine.write(put_volume(shared), put_head(shared, ours))
    machine.write_there(put_volume(theirs))
    assert cli(*machine.join).out == "shared: is there already\n"
    assert stored(machine, "shared") == theirs
    assert head(machine, shared) == ours


def test_the_daemon_must_be_stopped(machine: Machine, cli: Cli) -> None:
    lock = lock_state(machine.state_dir)
    try:
        done = cli(*machine.join)
    finally:
        os.close(lock)
    assert done.code == StoreError.exit_code
    assert "systemctl stop remora.socket remora.service" in done.error
    assert "systemctl start remora.socket remora.service" in done.error


def a_node(name: str, node_id: str, protocol: int = PROTOCOL) -> NodeRecord:
    return NodeRecord(
        id=node_id, name=name, peer_port=1, version="9", protocol=protocol,
        protocol_oldest=protocol, machine_id="another", boot_id="b", host_key="",
        public_key="", joined_at="",
    )  # fmt: skip


def alive(node_id: str) -> Put:
    record = AliveRecord(boot_id="b", started_at="", session="s")
    return Put(f"alive/{node_id}", msgspec.json.encode(record))


def test_a_node_that_does_not_fit_is_refused(machine: Machine, cli: Cli) -> None:
    machine.write(put_volume(volume("data")))
    machine.write_there(Put(f"node_names/n{machine.directory.name}", b"other"))
    assert "belongs to node other" in cli(*machine.join).error
    other = a_node("other", "other", protocol=PROTOCOL + 1)
    newer = (Put("nodes/other", msgspec.json.encode(other)), alive("other"))
    machine.write_there(Put(f"node_names/n{machine.directory.name}", b""), *newer)
    assert "speaks protocol" in cli(*machine.join).error
    clone = a_node("me", machine.id)
    machine.write_there(
        Put(f"nodes/{machine.id}", msgspec.json.encode(clone)), alive(machine.id)
    )
    assert "running on another machine" in cli(*machine.join).error
    assert not any(key.startswith("volumes/") for key in machine.records_there())


def test_alone_the_daemon_no_longer_starts(machine: Machine, cli: Cli) -> None:
    machine.write(put_volume(volume("data")))
    alone = machine.loaded()
    with closing(machine.node()) as node:
        refuse_joined(node, alone)
    before = machine.config.read_text()
    machine.config.write_text(f"{before}[cluster]\netcd = ['{machine.endpoints[0]}']\n")
    with closing(machine.node()) as node, pytest.raises(StoreError, match="data"):
        # [cluster] written by hand: the volumes would not be seen any more.
        refuse_joined(node, machine.loaded())
    machine.config.write_text(before)
    assert cli(*machine.join).code == 0
    with closing(machine.node()) as node:
        refuse_joined(node, machine.loaded())
        with pytest.raises(StoreError, match="are in cluster"):
            refuse_joined(node, alone)


def test_a_removed_volume_does_not_come_back(machine: Machine, cli: Cli) -> None:
    data, gone = volume("data"), volume("gone")
    machine.write(put_volume(data), put_volume(gone))
    machine.write_there(Put(f"tomb/{gone.id}", b"{}"))
    assert "gone: was removed there" in cli(*machine.join).out
    assert "volumes/gone" not in machine.records_there()
    # A repeat after the end moves nothing at all.
    machine.write(put_volume(volume("later")))
    assert cli(*machine.join).code == 0
    assert "volumes/later" not in machine.records_there()


def test_a_volume_that_went_on_here_is_refused(machine: Machine, cli: Cli) -> None:
    data = volume("data")
    machine.write_there(put_volume(data), put_head(data, Head(epoch=4)))
    machine.write(put_volume(data), put_head(data, Head(epoch=5)))
    assert "was used here since" in cli(*machine.join).err
    machine.write(put_head(data, Head(epoch=4, committed=Commit(4, 9))))
    assert "was used here since" in cli(*machine.join).err
    for store in (machine.write_there, machine.write):
        store(put_head(data, Head(epoch=4 + (store == machine.write_there))))
    epoch = Put(f"v/{data.id}/epochs/0000000004", b'[[1,1],"a"]')
    machine.write(epoch)
    machine.write_there(Put(epoch.key, b'[[2,1],"b"]'))
    assert "was used here since" in cli(*machine.join).err
    machine.write_there(epoch)
    assert cli(*machine.join).out == "data: is there already\n"
    assert head(machine, data) == Head(epoch=5)


def test_another_cluster_is_refused_after_a_join(machine: Machine, cli: Cli) -> None:
    machine.write(put_volume(volume("data")))
    before = machine.config.read_bytes()
    assert cli(*machine.join).code == 0
    machine.config.write_bytes(before)
    machine.prefix += "other/"
    assert "went into cluster" in cli(*machine.join).error
    assert machine.records_there() == {}


def test_what_is_taken_meanwhile_is_a_conflict(
    machine: Machine, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.write(put_volume(volume("data")))
    plan = Planner.plan

    def overtaken(self: Planner, *args: object) -> object:
        made = plan(self, *args)  # type: ignore[arg-type]
        machine.write_there(put_volume(volume("data")))
        return made

    monkeypatch.setattr(Planner, "plan", overtaken)
    assert "the name 'data'" in cli(*machine.join).err
    with closing(machine.node()) as node, pytest.raises(StoreError, match="finished"):
        refuse_joined(node, machine.loaded())
    monkeypatch.undo()


def many_epochs(machine: Machine, record: VolumeRecord) -> Iterator[Put]:
    """Yield more records of one volume than go into one transaction."""
    for number in range(1, 131):
        epoch = Epoch(Commit(number - 1, 1), "us")
        yield Put(f"v/{record.id}/epochs/{number:010}", msgspec.json.encode(epoch))
    yield put_head(record, Head(epoch=130, owner="us"))


def join(machine: Machine, options: dict[str, str | None]) -> None:
    config = cmd_cluster._with_options(machine.config, options)
    cmd_cluster._join(config, machine.config, {}, dry_run=False)


def test_a_kill_at_any_step_is_repaired_by_a_repeat(
    server: etcd.Cluster,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    states = set()
    for step in range(1, STEPS_MAX):
        machine = Machine(disk / str(step), server.endpoints)
        data, long = volume("data"), volume("long")
        machine.write(put_volume(data), put_volume(long), *many_epochs(machine, long))
        options = dict(zip(("etcd", "prefix"), machine.join[3::2], strict=False))
        alone = machine.loaded()

        died = dies(partial(join, machine, options), step)
        there = machine.records_there()
        with closing(machine.node()) as node:
            noted = joined(node)
            # Whatever has moved, no daemon works with the old records any more.
            if there:
                assert noted is not None
            if noted is not None:
                with pytest.raises(StoreError):
                    refuse_joined(node, alone)
        # No volume is seen in the cluster before all that belongs to it is there.
        if "volumes/long" in there:
            assert {each.key for each in many_epochs(machine, long)} <= set(there)
        states.add((len(there), noted and noted.finished, machine.loaded() == alone))
        tomllib.loads(machine.config.read_text())
        cli = caller(SimpleNamespace(config=machine.config), monkeypatch, capsys)  # type: ignore[arg-type]
        assert cli(*machine.join[:6]).code == 0
        assert len(machine.records_there()) == 2 + 1 + 131
        with closing(machine.node()) as node:
            refuse_joined(node, machine.loaded())
        if not died:
            break
    else:
        pytest.fail(f"still dying at step {STEPS_MAX}")
    # The kills came where they should: also between transactions, and at the end.
    assert any(0 < count < 134 and finished is False for count, finished, _ in states)
    assert {(0, None, True), (0, False, True)} <= states
    assert {(134, False, True), (134, True, True), (134, True, False)} <= states


def test_two_thousand_volumes(machine: Machine, cli: Cli) -> None:
    made = [volume(f"v{number:04}") for number in range(2000)]
    machine.write(*map(put_volume, made))
    done = cli(*machine.join, "--json").json()
    assert [each["name"] for each in done["volumes"]] == [each.name for each in made]
    there = machine.records_there()
    assert len(there) == 4000
    assert {json.loads(there[f"volumes/{each.name}"])["id"] for each in made} == {
        each.id for each in made
    }


def test_half_of_a_load_is_no_store_to_join(machine: Machine, cli: Cli) -> None:
    machine.write(put_volume(volume("data")))
    machine.write_there(Put(LOADING, b"{}"))
    assert "being restored" in cli(*machine.join).error
    assert machine.records_there() == {LOADING: b"{}"}


def test_a_load_that_begins_meanwhile_stops_the_join(
    machine: Machine, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.write(put_volume(volume("data")))
    plan = Planner.plan

    def overtaken(self: Planner, *args: object) -> object:
        machine.write_there(Put(LOADING, b"{}"))
        return plan(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Planner, "plan", overtaken)
    assert "being restored" in cli(*machine.join).error
    assert machine.records_there() == {LOADING: b"{}"}
