"""
How volumes begin and end in a cluster: removals, creations cut short, snapshots.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable

import msgspec
import pytest

from plugin.model import VolumeRecord
from plugin.ownership.state import Commit
from plugin.store.base import Compare, Delete, Put
from tests.protocol.node import wait_until
from tests.support.owners import WAIT_S, Owner, Records

Make = Callable[..., Owner]


@pytest.fixture
def name() -> str:
    """Return the name of a volume that no other test has."""
    return f"v-{uuid.uuid4().hex[:8]}"


def write(owner: Owner, name: str, text: str) -> None:
    """Write *text* into a file of the volume, mounted for that."""
    target = owner.mount(name, "writes")
    owner.run("sh", "-c", f"echo {text} > {target}/file")
    owner.unmount(name, "writes")


def test_a_volume_in_use_on_another_node_is_not_removed(
    alpha: Owner, beta: Owner, name: str, shared_records: Records
) -> None:
    volume_id = alpha.create(name, replicas="1")
    alpha.mount(name)
    beta.wait_known(name, owner="alpha")
    before = shared_records.head(volume_id)
    refused = beta.refused("Remove", Name=name)
    assert "is in use on node 'alpha'" in refused
    assert shared_records.head(volume_id) == before
    assert beta.get(name)["Status"]["phase"] == "ready"
    # And at once when it is not any more, whatever beta has heard.
    alpha.unmount(name)
    beta.ok("Remove", Name=name)
    alpha.wait_unknown(name)
    wait_until(
        lambda: not alpha.copy(volume_id).exists(),
        "alpha's copy goes",
        timeout_s=WAIT_S,
    )


def test_a_node_that_was_away_does_not_bring_a_removed_volume_back(
    make_owner: Make, records: Records, name: str
) -> None:
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id = alpha.create(name)
    write(alpha, name, "precious")
    alpha_id = alpha.id
    assert alpha.stop() == 0
    beta.wait_known(name, ownership="idle")
    beta.ok("Remove", Name=name)
    assert records.heads.tombs()[volume_id].pending == (alpha_id,)
    assert records.heads.read(volume_id).head is None
    # The name is free, though the old copy is still there.
    new_id = beta.create(name)
    assert new_id != volume_id
    assert alpha.copy(volume_id).exists()
    alpha.start()
    alpha.wait_member()
    alpha.control_ok("POST", "/v1/repair", {})
    wait_until(
        lambda: volume_id not in records.heads.tombs(),
        "alpha says that its copy is gone, and the tomb ends",
        timeout_s=WAIT_S,
    )
    assert not alpha.copy(volume_id).exists()
    assert alpha.control_ok("POST", "/v1/repair", {})["adopted"] == []
    alpha.wait_known(name, id=new_id)
    assert alpha.names() == [name]


def test_snapshots_of_which_a_removal_did_not_know_stay_within_reach(
    make_owner: Make, records: Records, name: str
) -> None:
    """As after a removal by an older version, or in the moment they were taken."""
    alpha, beta = make_owner("alpha"), make_owner("beta")
    volume_id = alpha.create(name)
    write(alpha, name, "precious")
    target = f"/v1/volumes/{name}/snapshots"
    alpha.control_ok("POST", target, {"snapshot": "s"})
    beta.wait_known(name, ownership="idle")
    alpha_id = alpha.id
    alpha.stop()
    key = f"v/{volume_id}/snapshots/{alpha_id}"
    assert records.store.transact([], [Delete(key)]).succeeded
    wait_until(
        lambda: not beta.call("Remove", {"Name": name}).error,
        "beta removes it",
        timeout_s=WAIT_S,
    )
    alpha.start()
    alpha.wait_member()
    report = alpha.control_ok("POST", "/v1/repair", {})
    assert report["adopted"] == []
    assert any("it was removed" in each for each in report["refused"])
    assert alpha.copy(volume_id).exists()
    for known_as in (name, volume_id):
        [row] = alpha.control_ok("GET", f"/v1/volumes/{known_as}/snapshots")
        assert (row["name"], row["node"]) == ("s", "alpha")
    body = {"name": f"{name}-saved", "source": f"{name}@s", "options": {}}
    saved = alpha.control_ok("POST", "/v1/clone", body)
    assert (alpha.copy(saved["id"]) / "live/file").read_text() == "precious\n"
    alpha.control_ok("DELETE", f"/v1/volumes/{volume_id}/snapshots/s")
    wait_until(
        lambda: not alpha.copy(volume_id).exists(), "its copy goes", timeout_s=WAIT_S
    )


def check_shown_to_people(alpha: Owner, name: str) -> None:
    """Assert that people see what maker makes, and where, and engines do not."""
    [row] = [
        each for each in alpha.control_ok("GET", "/v1/volumes") if each["name"] == name
    ]
    assert row == alpha.control_ok("GET", f"/v1/volumes/{name}")
    shown = (row["health"], row["phase"], row["being_made_on"])
    assert shown == ("creating", "creating", "maker")
    assert name not in alpha.names()
    refused = alpha.control_refused("DELETE", f"/v1/volumes/{name}")
    assert "another node, 'maker'" in refused
    assert alpha.control_ok("GET", "/v1/status")["left_over"] == []


def test_what_another_node_is_making_is_not_rolled_back(
    make_owner: Make, records: Records, name: str
) -> None:
    alpha = make_owner("alpha")
    maker = make_owner("maker")
    maker_id = maker.id
    record = VolumeRecord(
        id=str(uuid.uuid4()),
        name=name,
        backend="rsync",
        requested={"backend": "rsync"},
        options={"backend": "rsync"},
        created_at="2026-01-02T03:04:05Z",
        phase="creating",
        node=maker_id,
    )
    maker.kill()
    key = f"volumes/{name}"
    records.store.transact([Compare(key, 0)], [Put(key, msgspec.json.encode(record))])
    own = msgspec.structs.replace(
        record, id=str(uuid.uuid4()), name=f"{name}-own", node=alpha.id
    )
    own_key = f"volumes/{own.name}"
    records.store.transact(
        [Compare(own_key, 0)], [Put(own_key, msgspec.json.encode(own))]
    )
    # The pass that rolls back our own, which comes later, has seen the other one.
    wait_until(
        lambda: records.store.get(own_key) is None,
        "our own is rolled back",
        timeout_s=WAIT_S,
    )
    assert records.store.get(key) is not None
    assert "is being made on another node" in alpha.refused("Create", Name=name)
    check_shown_to_people(alpha, name)
    # A node that is gone for good finishes nothing.
    wait_until(
        lambda: alpha.control("DELETE", "/v1/nodes/maker").status == 200,
        "the dead node's lease ends, and it is removed",
        timeout_s=WAIT_S,
    )
    alpha.create(name)
    assert alpha.get(name)["Status"]["id"] != record.id


@pytest.fixture
def with_snapshot(alpha: Owner, name: str) -> str:
    """Return the id of a volume with `first` in its snapshot `s` and then `second`."""
    volume_id = alpha.create(name, replicas="1")
    write(alpha, name, "first")
    alpha.control_ok("POST", f"/v1/volumes/{name}/snapshots", {"snapshot": "s"})
    write(alpha, name, "second")
    return volume_id


def test_restoring_an_idle_volume_is_a_change_that_its_owner_has_made(
    alpha: Owner, beta: Owner, name: str, with_snapshot: str, shared_records: Records
) -> None:
    before = shared_records.head(with_snapshot)
    alpha.control_ok("POST", f"/v1/volumes/{name}/restore", {"snapshot": "s"})
    after = shared_records.head(with_snapshot)
    assert after.epoch == before.epoch + 1
    assert (after.phase, after.committed) == ("idle", Commit(after.epoch, 1))
    assert after.holders == (alpha.id,)
    assert (alpha.copy(with_snapshot) / "live/file").read_text() == "first\n"
    beta.wait_known(name, commit=str(after.committed))
    alpha.mount(name)
    alpha.unmount(name)


def test_a_volume_that_another_node_owns_is_not_restored(
    alpha: Owner, beta: Owner, name: str, shared_records: Records
) -> None:
    volume_id = alpha.create(name, replicas="1")
    beta.wait_known(name)
    # A snapshot of what was never written to; then another node has the volume.
    alpha.control_ok("POST", f"/v1/volumes/{name}/snapshots", {"snapshot": "s"})
    beta.mount(name)
    alpha.wait_known(name, owner="beta")
    before = shared_records.head(volume_id)
    target = f"/v1/volumes/{name}/restore"
    assert "is in use on node 'beta'" in alpha.control_refused(
        "POST", target, {"snapshot": "s"}
    )
    head = shared_records.head(volume_id)  # beta's commits may have come to it
    assert (head.owner, head.epoch, head.phase) == (beta.id, before.epoch, "owned")
    assert len(alpha.control_ok("GET", f"/v1/volumes/{name}/snapshots")) == 1
    beta.unmount(name)
    alpha.wait_known(name, ownership="idle")
    wait_until(
        lambda: alpha.control("POST", target, {"snapshot": "s"}).status == 200,
        "alpha has got the newest bytes, and restores older ones",
        timeout_s=WAIT_S,
    )
    assert shared_records.head(volume_id).epoch > before.epoch


def test_a_restore_that_fails_lets_the_volume_go(
    alpha: Owner, name: str, with_snapshot: str, shared_records: Records
) -> None:
    target = f"/v1/volumes/{name}/restore"
    assert "never" in alpha.control_refused("POST", target, {"snapshot": "never"})
    state = shared_records.heads.read(with_snapshot)
    assert state.lock is None
    assert state.head.phase == "idle"
    assert (alpha.copy(with_snapshot) / "live/file").read_text() == "second\n"
