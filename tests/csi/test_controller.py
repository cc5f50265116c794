"""The service Controller, method by method: what holds twice, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.protocol.node import Node
from tests.support.csi import WRITER, Driver, mount

# They share a node and its driver.
pytestmark = pytest.mark.xdist_group("csi-controller")
MIB = 2**20
LONGEST = "n" * 128


def create(driver: Driver, name: str, **fields: Any) -> Any:
    """Return the volume that CreateVolume answers with."""
    return driver.call("CreateVolume", **creating(name, **fields)).volume


def creating(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "volume_capabilities": [mount()], **fields}


def sized(required: int = 0, limit: int = 0) -> dict[str, Any]:
    return {"capacity_range": {"required_bytes": required, "limit_bytes": limit}}


def from_volume(name: str) -> dict[str, Any]:
    return {"volume_content_source": {"volume": {"volume_id": name}}}


def from_snapshot(name: str) -> dict[str, Any]:
    return {"volume_content_source": {"snapshot": {"snapshot_id": name}}}


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("CreateVolume", {"volume_capabilities": [mount()]}),
        ("CreateVolume", {"name": "x"}),
        ("CreateVolume", creating("x" * 129)),
        ("CreateVolume", creating("no/name")),
        ("CreateVolume", creating("x", mutable_parameters={"a": "b"})),
        ("CreateVolume", creating("x", parameters={"colour": "blue"})),
        ("CreateVolume", creating("x", parameters={"a": "b" * 5000})),
        ("CreateVolume", creating("x", parameters={"size": "1G"})),
        ("CreateVolume", creating("x", parameters={"enforceSize": "perhaps"})),
        ("CreateVolume", {"name": "x", "volume_capabilities": [{"mount": {}}]}),
        (
            "CreateVolume",
            {
                "name": "x",
                "volume_capabilities": [{"block": {}, "access_mode": {"mode": 1}}],
            },
        ),
        # A pool's volume is in use on one node at a time.
        ("CreateVolume", {"name": "x", "volume_capabilities": [mount(3)]}),
        ("CreateVolume", {"name": "x", "volume_capabilities": [mount(1, "noatime")]}),
        ("DeleteVolume", {}),
        ("ValidateVolumeCapabilities", {"volume_id": "x"}),
        ("ValidateVolumeCapabilities", {"volume_capabilities": [mount()]}),
        ("ControllerGetVolume", {}),
        ("CreateSnapshot", {"name": "x"}),
        ("CreateSnapshot", {"source_volume_id": "x"}),
        (
            "CreateSnapshot",
            {"name": "x", "source_volume_id": "x", "parameters": {"a": "b"}},
        ),
        ("DeleteSnapshot", {}),
        ("ControllerExpandVolume", {"volume_id": "x"}),
        ("ControllerExpandVolume", sized(MIB)),
        ("ListVolumes", {"max_entries": -1}),
    ],
)
def test_what_can_never_work_is_an_invalid_argument(
    driver: Driver, method: str, fields: dict[str, Any]
) -> None:
    code, text = driver.refused(method, **fields)
    assert (code, bool(text)) == ("INVALID_ARGUMENT", True)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("CreateVolume", creating("x", **from_volume("nobody"))),
        ("CreateVolume", creating("x", **from_snapshot("nobody@s"))),
        ("CreateVolume", creating("x", **from_snapshot("nothing"))),
        (
            "ValidateVolumeCapabilities",
            {"volume_id": "nobody", "volume_capabilities": [mount()]},
        ),
        (
            "ValidateVolumeCapabilities",
            {"volume_id": "no/name", "volume_capabilities": [mount()]},
        ),
        ("ControllerGetVolume", {"volume_id": "nobody"}),
        ("CreateSnapshot", {"name": "s", "source_volume_id": "nobody"}),
        ("ControllerExpandVolume", {"volume_id": "nobody", **sized(MIB)}),
    ],
)
def test_what_is_not_there_is_not_found(
    driver: Driver, method: str, fields: dict[str, Any]
) -> None:
    assert driver.refused(method, **fields)[0] == "NOT_FOUND"


@pytest.mark.parametrize("name", ["nobody", "no/name", LONGEST])
def test_what_is_not_there_is_deleted(driver: Driver, name: str) -> None:
    driver.call("DeleteVolume", volume_id=name)
    driver.call("DeleteSnapshot", snapshot_id=name)
    driver.call("DeleteSnapshot", snapshot_id=f"{name}@gone")


def test_the_same_volume_is_made_once(driver: Driver, node: Node) -> None:
    first = create(driver, "once", **sized(10 * MIB, 20 * MIB))
    assert create(driver, "once", **sized(10 * MIB, 20 * MIB)) == first
    assert create(driver, "once", **sized(5 * MIB)) == first
    assert first.volume_id == "once"
    assert first.capacity_bytes == 10 * MIB
    assert first.volume_context == {"sizeEnforced": "false"}
    assert not first.accessible_topology
    assert "once" in node.names()


@pytest.mark.parametrize(
    "other",
    [sized(11 * MIB), sized(MIB, 9 * MIB), {"parameters": {"mode": "0700"}}],
)
def test_another_volume_of_that_name_is_refused(
    driver: Driver, other: dict[str, Any]
) -> None:
    create(driver, "taken", **sized(10 * MIB))
    assert driver.refused("CreateVolume", **creating("taken", **other))[0] == (
        "ALREADY_EXISTS"
    )


def test_a_name_may_be_long(driver: Driver) -> None:
    assert create(driver, LONGEST).volume_id == LONGEST
    driver.call("DeleteVolume", volume_id=LONGEST)


def test_what_schedulers_add_is_no_option(driver: Driver, node: Node) -> None:
    added = {
        "csi.storage.k8s.io/pvc/namespace": "shop",
        "csi.storage.k8s.io/pvc/name": "db",
        "storage.kubernetes.io/csiProvisionerIdentity": "x",
    }
    made = create(driver, "added", parameters={**added, "mode": "0700"})
    assert made.volume_context["claim"] == "shop/db"
    assert node.get("added")["Status"]["options"]["mode"] == "0700"


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (sized(2 * MIB, MIB), "OUT_OF_RANGE"),
        (sized(0, 1024), "OUT_OF_RANGE"),
        (sized(-1), "OUT_OF_RANGE"),
        (sized(2**60), "OUT_OF_RANGE"),
    ],
)
def test_sizes_that_cannot_be(driver: Driver, asked: dict[str, Any], code: str) -> None:
    assert driver.refused("CreateVolume", **creating("odd", **asked))[0] == code
    assert driver.code("ControllerGetVolume", volume_id="odd") == "NOT_FOUND"


def test_a_size_that_has_to_be_held_is_refused_where_it_cannot(driver: Driver) -> None:
    wanted = creating("held", parameters={"enforceSize": "true"}, **sized(MIB))
    code, text = driver.refused("CreateVolume", **wanted)
    assert code == "INVALID_ARGUMENT"
    assert "cannot limit a directory" in text or "no project quota" in text
    assert driver.code("ControllerGetVolume", volume_id="held") == "NOT_FOUND"


def test_capabilities_are_confirmed_or_told(driver: Driver) -> None:
    create(driver, "capable")
    asked = {"volume_id": "capable", "volume_capabilities": [mount(7)]}
    found = driver.call("ValidateVolumeCapabilities", **asked)
    assert found.confirmed.volume_capabilities[0].access_mode.mode == 7
    asked["volume_capabilities"] = [mount(3)]
    found = driver.call("ValidateVolumeCapabilities", **asked)
    assert not found.HasField("confirmed")
    assert "several nodes" in found.message


def test_what_no_volume_can_be_called_is_not_there(driver: Driver) -> None:
    """However long it is: no answer is a fault of ours."""
    for name in ("no/name", "..", "x" * 2**20):
        code = driver.code
        assert not driver.call("ListSnapshots", source_volume_id=name).entries
        assert not driver.call("ListSnapshots", snapshot_id=f"{name}@x").entries
        assert code("DeleteVolume", volume_id=name) == "OK"
        assert code("DeleteSnapshot", snapshot_id=f"{name}@x") == "OK"
        assert code("ControllerGetVolume", volume_id=name) == "NOT_FOUND"
        asked = {"volume_id": name, "volume_path": f"/{name}"}
        assert code("NodeGetVolumeStats", **asked) == "NOT_FOUND"


def test_lists_show_what_is_new_page_by_page(driver: Driver) -> None:
    names = [f"page-{number}" for number in range(5)]
    for name in names:
        create(driver, name)
    token, told = "", []
    while True:
        found = driver.call("ListVolumes", max_entries=2, starting_token=token)
        told += [each.volume.volume_id for each in found.entries]
        assert len(found.entries) <= 2
        if not (token := found.next_token):
            break
        if told[-1] in names[:4]:
            driver.call("DeleteVolume", volume_id=told[-1])
            create(driver, "page-later")
    assert {*names, "page-later"} <= {*told}
    assert len(told) == len({*told})
    assert driver.code("ListVolumes", starting_token="invalid-token") == "ABORTED"
    assert driver.code("ListSnapshots", starting_token="1") == "ABORTED"


def test_a_volume_in_use_is_not_deleted(driver: Driver) -> None:
    create(driver, "used")
    target = driver.target("used")
    driver.publish("used", target)
    assert driver.refused("DeleteVolume", volume_id="used")[0] == "FAILED_PRECONDITION"
    driver.unpublish("used", target)
    driver.call("DeleteVolume", volume_id="used")
    assert driver.code("ControllerGetVolume", volume_id="used") == "NOT_FOUND"


def test_snapshots_are_taken_listed_and_copied(driver: Driver) -> None:
    create(driver, "origin")
    target = driver.target("origin")
    driver.publish("origin", target)
    (driver.inside(target) / "file").write_text("then")
    asked = {"name": "daily", "source_volume_id": "origin"}
    taken = driver.call("CreateSnapshot", **asked).snapshot
    assert driver.call("CreateSnapshot", **asked).snapshot == taken
    assert taken.snapshot_id == "origin@daily"
    assert taken.ready_to_use
    assert taken.creation_time.seconds
    create(driver, "other")
    again = {"name": "daily", "source_volume_id": "other"}
    assert driver.refused("CreateSnapshot", **again)[0] == "ALREADY_EXISTS"
    (driver.inside(target) / "file").write_text("now")
    driver.unpublish("origin", target)

    restored = create(driver, "restored", **from_snapshot("origin@daily"))
    assert restored.content_source.snapshot.snapshot_id == "origin@daily"
    assert create(driver, "restored", **from_snapshot("origin@daily")) == restored
    clone = create(driver, "clone", **from_volume("origin"))
    assert clone.content_source.volume.volume_id == "origin"
    for name, text in (("restored", "then"), ("clone", "now")):
        where = driver.target(name)
        driver.publish(name, where)
        assert (driver.inside(where) / "file").read_text() == text
        driver.unpublish(name, where)
    other = creating("restored", **from_volume("origin"))
    assert driver.refused("CreateVolume", **other)[0] == "ALREADY_EXISTS"

    code, text = driver.refused("DeleteVolume", volume_id="origin")
    assert (code, "snapshots" in text) == ("FAILED_PRECONDITION", True)
    listed = driver.call("ListSnapshots", source_volume_id="origin").entries
    assert [each.snapshot for each in listed] == [taken]
    listed = driver.call("ListSnapshots", snapshot_id="origin@daily").entries
    assert [each.snapshot for each in listed] == [taken]
    for nothing in (
        {"snapshot_id": "origin@none"},
        {"source_volume_id": "nobody"},
        {"source_volume_id": "other", "snapshot_id": "origin@daily"},
    ):
        assert not driver.call("ListSnapshots", **nothing).entries
    driver.call("DeleteSnapshot", snapshot_id="origin@daily")
    driver.call("DeleteSnapshot", snapshot_id="origin@daily")
    assert not driver.call("ListSnapshots", source_volume_id="origin").entries
    driver.call("DeleteVolume", volume_id="origin")


def test_a_snapshots_name_may_be_long(driver: Driver) -> None:
    create(driver, "long-names")
    asked = {"name": LONGEST, "source_volume_id": "long-names"}
    taken = driver.call("CreateSnapshot", **asked).snapshot
    assert driver.call("CreateSnapshot", **asked).snapshot == taken
    assert len(taken.snapshot_id) <= 128
    driver.call("DeleteSnapshot", snapshot_id=taken.snapshot_id)


def test_snapshots_come_page_by_page(driver: Driver) -> None:
    create(driver, "many")
    for number in range(3):
        asked = {"name": f"many-{number}", "source_volume_id": "many"}
        driver.call("CreateSnapshot", **asked)
    first = driver.call("ListSnapshots", source_volume_id="many", max_entries=2)
    rest = driver.call(
        "ListSnapshots", source_volume_id="many", starting_token=first.next_token
    )
    found = [each.snapshot.snapshot_id for each in (*first.entries, *rest.entries)]
    assert sorted(found) == ["many@many-0", "many@many-1", "many@many-2"]
    assert not rest.next_token
    for each in found:
        driver.call("DeleteSnapshot", snapshot_id=each)


def test_a_volume_grows_and_never_shrinks(driver: Driver) -> None:
    create(driver, "grown", **sized(2 * MIB))
    asked = {"volume_id": "grown", **sized(4 * MIB)}
    for _ in range(2):
        grown = driver.call("ControllerExpandVolume", **asked)
        # Nothing here could hold it.
        assert (grown.capacity_bytes, grown.node_expansion_required) == (4 * MIB, False)
    assert create(driver, "grown", **sized(3 * MIB)).capacity_bytes == 4 * MIB
    smaller = {"volume_id": "grown", **sized(MIB, 2 * MIB)}
    assert driver.refused("ControllerExpandVolume", **smaller)[0] == "OUT_OF_RANGE"


def test_what_is_free_is_told(driver: Driver) -> None:
    assert driver.call("GetCapacity").available_capacity > 0
    elsewhere = {"segments": {"remora/node": "nowhere"}}
    assert not driver.call(
        "GetCapacity", accessible_topology=elsewhere
    ).available_capacity


def test_what_we_are_able_to_do(driver: Driver, node: Node) -> None:
    info = driver.call("GetPluginInfo")
    assert (info.name, bool(info.vendor_version)) == ("remora.io", True)
    assert driver.call("Probe").ready.value
    plugin = driver.call("GetPluginCapabilities").capabilities
    assert [each.service.type for each in plugin] == [1, 2, 0]
    rpcs = driver.call("ControllerGetCapabilities").capabilities
    # No PUBLISH_UNPUBLISH_VOLUME (2): the lease of the node that uses it counts.
    assert [each.rpc.type for each in rpcs] == [1, 3, 4, 5, 6, 7, 9, 11, 12, 13]
    rpcs = driver.call("NodeGetCapabilities").capabilities
    # No STAGE_UNSTAGE_VOLUME (1): Swarm never unstages.
    assert [each.rpc.type for each in rpcs] == [2, 3, 4, 5]
    told = driver.call("NodeGetInfo")
    name = node.control("GET", "/v1/status").json()["node"]["name"]
    assert told.node_id == name
    assert told.accessible_topology.segments == {"remora/node": name}
    for method in ("ControllerPublishVolume", "NodeStageVolume", "GetSnapshot"):
        assert driver.refused(method)[0] == "UNIMPLEMENTED"


def test_a_volume_is_told_of(driver: Driver, node: Node) -> None:
    create(driver, "told", **sized(MIB))
    found = driver.call("ControllerGetVolume", volume_id="told")
    assert (found.volume.volume_id, found.volume.capacity_bytes) == ("told", MIB)
    assert not found.status.volume_condition.abnormal
    assert found.status.volume_condition.message
    assert WRITER == 1
    # What Docker has made is seen as well, and the other way round.
    node.create("by-docker")
    listed = driver.call("ListVolumes").entries
    assert "by-docker" in {each.volume.volume_id for each in listed}
